"""What the processes of one `up` are told, and the lock of its data directory."""

import os
from pathlib import Path
from typing import Any

import pytest

from agents_stream.core.errors import TerminalError
from agents_stream.settings import Settings
from agents_stream.up.environment import claim, environment_of, plan_up


def read_back(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Settings:
    """Read settings as a child does."""
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    return Settings()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"data_reply_timeout": "250ms", "promos_delay": "1h30m", "retry_backoff": 0},
        {"auth_token": "geheim ß", "store": "rocksdb", "partitions": 3, "data_dir": "a b"},
        {"whatsapp_url": "http://127.0.0.1:1/x", "start_from": "latest", "topic_prefix": "p."},
    ],
)
def test_a_child_reads_the_settings_of_its_parent(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    """Every setting survives the way through the environment, secrets and durations too."""
    settings = Settings(**given)
    read = read_back(monkeypatch, settings)
    assert read.model_dump(exclude={"log_format"}) == settings.model_dump(exclude={"log_format"})


def test_flags_beat_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `up` was told by a flag its children do not read from `.env` instead."""
    (tmp_path / ".env").write_text("AGENTS_STREAM_WEB_PORT=1111\n")
    monkeypatch.chdir(tmp_path)
    assert Settings().web_port == 1111
    assert read_back(monkeypatch, Settings(web_port=2222)).web_port == 2222


def test_the_sandbox_plays_only_what_is_not_set() -> None:
    """A tool that has a URL keeps it; with both set there is no sandbox at all."""
    crm = "https://crm.example/orders"
    plan = plan_up(Settings(crm_url=crm, web_port=7000), None)
    assert plan.settings.crm_url == crm
    assert plan.settings.whatsapp_url == "http://127.0.0.1:7001/whatsapp/messages"
    assert plan.settings.engine_webhook_url == "http://127.0.0.1:7001/engine"
    both = plan_up(Settings(crm_url=crm, whatsapp_url="https://wa.example"), None)
    assert (both.sandbox_port, both.settings.engine_webhook_url) == (None, None)
    assert plan_up(Settings(), 7123).sandbox_url == "http://127.0.0.1:7123"


def test_one_data_directory_is_for_one_up(tmp_path: Path) -> None:
    """A second `up` is refused and told who holds the place; afterwards it is free."""
    mine = f"process {os.getpid()}"
    with claim(tmp_path), pytest.raises(TerminalError, match=mine), claim(tmp_path):
        pass
    with claim(tmp_path):
        pass


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    """What stands in the way is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(TerminalError, match="AGENTS_STREAM_DATA_DIR"), claim(tmp_path / "file"):
        pass
