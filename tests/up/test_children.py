"""A child process: told apart from its deaths, and given up when they do not end."""

import asyncio
import os
from pathlib import Path

import pytest

from agents_stream.settings import Settings
from agents_stream.up import restarts
from agents_stream.up.children import Child, ChildSpec, GaveUp
from agents_stream.up.environment import environment_of


def child_of(folder: Path, *arguments: str, said: list[str]) -> Child:
    """A child with a log of its own; standard input stands for the lock."""
    environment = {**environment_of(Settings()), "PYTHONPATH": str(Path(__file__).parents[2])}
    return Child(ChildSpec("it", arguments, "json"), environment, folder, 0, said.append)


async def test_what_dies_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each death is told with its exit code; the last one with the last words (G11)."""
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(restarts, "MAX_QUICK_DEATHS", 3)
    said: list[str] = []
    child = child_of(tmp_path, "no-such-command", said=said)
    child.release()
    with pytest.raises(GaveUp, match=r"(?s)exit code 2.*no-such-command"):
        await child.keep()
    assert said == ["it died (exit code 2); starting it again in 0 s"] * 2
    assert child.pid is None


async def test_a_child_begins_when_it_is_released(tmp_path: Path) -> None:
    """It is loaded before that, and does nothing; a stop ends it all the same."""
    said: list[str] = []
    child = child_of(tmp_path, "sandbox", "--port", "0", said=said)
    keeping = asyncio.create_task(child.keep())
    await asyncio.sleep(2)
    pid = child.pid
    assert pid is not None
    os.kill(pid, 0)
    assert child.look() == []
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await child.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert said == []


async def test_a_repeated_warning_is_told_once(tmp_path: Path) -> None:
    """A loop that logs the same again and again does not drown everything else."""
    said: list[str] = []
    child = child_of(tmp_path, "worker", said=said)
    child.log.path.write_text('{"event": "no answer", "level": "warning"}\n' * 5)
    child.look()
    child.look()
    assert said == ["it warning: no answer"]
