"""`up --demo`: plays, compares, ends with 0 or 1, and stays up for a person at a terminal."""

import json
import os
import pty
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agents_stream.demo.script import read_script
from agents_stream.kafka import broker_process, embedded
from tests.kafka.up_process import READY_S, Up, until

pytestmark = pytest.mark.kafka

DEMO_S = 150.0
REMINDER = "Hola! Sigues interesado en tu pedido?"
CHAT = {"conversationId": "wa-1", "workspaceId": "w"}


def reminded(**expect: Any) -> str:
    """A conversation of a second: one reminder is sent."""
    event = "agent/proactive.send"
    line = {
        "session": "uno",
        "title": "one reminder",
        "steps": [{"at": 0, "event": event, "data": {**CHAT, "messageType": "reminder"}}],
        "expect": {
            "outcomes": [["proactive", "sent", "reminder"]],
            "messages": [REMINDER],
            **expect,
        },
    }
    return json.dumps(line)


class Demo(Up):
    """A demo with a data directory and ports of its own."""

    @property
    def command(self) -> list[str]:
        """The command line."""
        return [*super().command, "--demo"]

    @property
    def place(self) -> Path:
        """Where the demo keeps its broker and its lock."""
        return super().place / "demo"


def test_the_recorded_conversations_go_as_expected(tmp_path: Path) -> None:
    """Every path of SPEC §4, an outage, a kill -9: as expected; without a terminal it then ends."""
    script = read_script(None)
    with Demo(tmp_path, variables={"AGENTS_STREAM_PARTITIONS": "8"}) as demo:
        until(demo.has_ended, "the demo has ended", DEMO_S)
        assert demo.process is not None
        assert f"{len(script)} of {len(script)} conversations went as expected" in demo.output
        assert demo.process.returncode == 0, demo.output
        for words in ("Expected against actual", "kill -9", "the worker is back after"):
            assert words in demo.output
        for item in script:
            assert re.search(rf"^. {item.session} ", demo.output, re.MULTILINE)
        assert "Traceback" not in demo.output
        assert demo.is_over()
        assert not broker_process.is_alive(embedded.files_of(demo.settings))


def test_a_wrong_expectation_is_exit_code_1(tmp_path: Path) -> None:
    """The demo proves something: where expected and actual differ it says so and fails."""
    mine = tmp_path / "mine.jsonl"
    mine.write_text(reminded(orders=1))
    with Demo(tmp_path, ("--conversations", str(mine))) as demo:
        until(demo.has_ended, "the demo has ended", DEMO_S)
        assert demo.process is not None
        assert demo.process.returncode == 1
        assert "0 of 1 conversations went as expected" in demo.output
        assert "uno differs in: orders" in demo.output


def test_on_a_terminal_it_stays_until_ctrl_c(tmp_path: Path) -> None:
    """A person may play on: the pages answer after the table, and Ctrl-C ends it with exit 0."""
    mine = tmp_path / "mine.jsonl"
    mine.write_text(reminded())
    demo = Demo(tmp_path, ("--conversations", str(mine)), {"CI": ""})
    ours, theirs = pty.openpty()
    said = b""
    with subprocess.Popen(
        demo.command, env=demo.environment, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        demo.process = process
        while b"it stays up" not in said:
            said += os.read(ours, 65_536)
        assert b"1 of 1 conversations went as expected" in said
        assert demo.answers(f"{demo.web}/api/sessions/uno")
        assert demo.answers(f"{demo.sandbox}/chat")
        process.send_signal(2)
        while (chunk := _read(ours)) != b"":
            said += chunk
        assert process.wait(READY_S) == 0
    assert b"everything is stopped" in said
    until(demo.is_over, "every child has ended")


def _read(terminal: int) -> bytes:
    """Read until the other side of the terminal is closed."""
    try:
        return os.read(terminal, 65_536)
    except OSError:
        return b""
