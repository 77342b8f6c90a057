"""The recorded conversations: those of the repository are right, wrong ones are told by line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from agents_stream.core.envelope import read_event
from agents_stream.core.errors import TerminalError
from agents_stream.demo.script import EventStep, read_script

OPENING: dict[str, Any] = {
    "session": "s",
    "title": "t",
    "steps": [{"at": 0, "event": "agent/session.close", "data": {"reason": "completed"}}],
    "expect": {},
}

# Every way in which a flow of SPEC §4 can end, and what must be shown beside that.
PATHS = {
    "data_collection/responded/awaiting_more_data",
    "data_collection/timeout/sent_pending_message",
    "data_collection/timeout/requested_missing_data",
    "data_collection/complete/transitioned_to_promos",
    "data_collection/cancelled/restarted",
    "data_collection/cancelled/session_closed",
    "data_collection/failed/sent_pending_message",
    "promos/responded/awaiting_selection_processing",
    "promos/timeout/auto_created_order",
    "promos/cancelled/restarted",
    "promos/cancelled/session_closed",
    "promos/cancelled/order_created_after_close",
    "promos/failed/order_failed",
    "promos/failed/contact_unknown",
    "proactive/sent/reminder",
    "proactive/sent/followup",
    "proactive/sent/timeout_warning",
    "proactive/failed/followup",
    "proactive/cancelled/session_closed",
    "session/closed/completed",
    "session/closed/handoff",
    "session/closed/timeout",
    "session/closed/cancelled",
    "session/rejected/version_conflict",
}
LETTERS = {
    "invalid_json",
    "invalid_schema",
    "unknown_event",
    "tool_failed",
    "tool_unknown",
    "retries_exhausted",
}


def test_every_path_of_the_contract_is_recorded() -> None:
    """The demo shows each end of each flow, each dead letter, every operator's action, a kill."""
    script = read_script(None)
    ends = {"/".join(one[:3]) for item in script for one in item.expect.outcomes}
    assert not PATHS - ends
    assert not LETTERS - {letter for item in script for letter in item.expect.deadLetters}
    text = "\n".join(item.model_dump_json() for item in script)
    for word in (
        "kill_worker",
        '"mode":"down"',
        '"mode":"429"',
        '"mode":"slow"',
        '"notified":false',
    ):
        assert word in text
    for action in ("fire_timer", "cancel_timer", "pause", "resume", "retry_command"):
        assert f'"action":"{action}"' in text


def test_every_recorded_event_is_one() -> None:
    """What is sent as an event is valid, and conversations share no chat and no contact."""
    script = read_script(None)
    for item in script:
        for step in item.steps:
            if isinstance(step, EventStep):
                data = {"sessionId": item.session, **step.data}
                read_event(None, json.dumps({"name": step.event, "data": data}).encode())
    for field in ("conversationId", "contactId"):
        named = [name for item in script for name in item.named(field)]
        assert len(named) == len(set(named))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [{"at": -1, "world": "kill_worker"}]}, "at"),
        ({"steps": [{"at": 0, "world": "flood"}]}, "world"),
        ({"expect": {"order": 1}}, "expect.order"),
        ({"session": ""}, "session"),
        ({"expect": {"outcomes": [["promos"]]}}, "expect.outcomes.0"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """Who writes a conversation of his own reads which line is wrong, and where."""
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(OPENING)}\n\n{json.dumps({**OPENING, **change})}\n")
    with pytest.raises(TerminalError, match=f"line 3 .*{re.escape(words)}"):
        read_script(path)


@pytest.mark.parametrize("text", ["", "\n", f"{json.dumps(OPENING)}\n" * 2])
def test_none_and_twice_the_same_are_refused(tmp_path: Path, text: str) -> None:
    """A file without a conversation shows nothing; two of one session would mix."""
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    with pytest.raises(TerminalError, match="conversations"):
        read_script(path)
    with pytest.raises(TerminalError, match="cannot be read"):
        read_script(tmp_path)
