"""The JSON forms of what the views show (SPEC §8). Pure: a record in, an object out."""

from base64 import b64encode
from typing import Any

import orjson

from agents_stream.core.session import Deadline, PendingCommand, SessionRecord, iso
from agents_stream.views.reads import Letter

Json = dict[str, Any]


def summary_json(record: SessionRecord) -> Json:
    """A session as an item of a list: everything but what may be large."""
    return {
        **_identity(record),
        "deadlines": _deadlines(record),
        "flows": _flows(record),
        **_position(record),
    }


def session_json(record: SessionRecord) -> Json:
    """A session in full. Commands that failed for good stand apart: nothing awaits them."""
    failed = [item for item in record.pending.values() if item.state == "failed"]
    pending = [item for item in record.pending.values() if item.state != "failed"]
    return {
        **_identity(record),
        "state": record.state,
        "deadlines": _deadlines(record),
        "flows": _flows(record),
        "pendingCommands": [command_json(item) for item in pending],
        "failedCommands": [command_json(item) for item in failed],
        **_position(record),
    }


def _identity(record: SessionRecord) -> Json:
    return {
        "sessionId": record.session_id,
        "workspaceId": record.workspace_id,
        "agentId": record.agent_id,
        "conversationId": record.conversation_id,
        "contactId": record.contact_id,
        "mode": record.mode,
        "status": record.status,
        "closeReason": record.close_reason,
        "paused": record.paused,
        "version": record.version,
    }


def _deadlines(record: SessionRecord) -> list[Json]:
    """The deadlines, the next one first."""
    by_time = sorted(record.deadlines.items(), key=lambda item: (item[1].due_at_ms, item[0]))
    return [deadline_json(name, deadline) for name, deadline in by_time]


def _flows(record: SessionRecord) -> Json:
    return {
        name: {
            "step": run.step,
            "run": run.run,
            "conversationId": run.conversation_id,
            "workspaceId": run.workspace_id,
            "startedAt": iso(run.started_at_ms),
        }
        for name, run in record.flows.items()
    }


def _position(record: SessionRecord) -> Json:
    """How far the journal is applied, and the time of the last entry."""
    return {
        "journalOffset": record.journal_offset,
        "updatedAt": iso(record.journal_timestamp),
    }


def deadline_json(name: str, deadline: Deadline) -> Json:
    """A deadline of a session that is known from what stands around it."""
    return {"name": name, "dueAt": iso(deadline.due_at_ms), "generation": deadline.generation}


def command_json(command: PendingCommand) -> Json:
    """A command that a session knows of, with the state that it is in."""
    return {
        "id": command.id,
        "tool": command.tool,
        "attempt": command.attempt,
        "state": command.state,
        "flow": command.flow,
        "issuedAt": iso(command.issued_at_ms),
        "inputs": command.inputs,
    }


def timer_json(session_id: str, name: str, deadline: Deadline) -> Json:
    """A deadline as an item of `/api/timers`."""
    return {"sessionId": session_id, **deadline_json(name, deadline)}


def letter_json(letter: Letter) -> Json:
    """A dead letter: its own fields, and where it lies in the topic of the dead letters."""
    place = {"partition": letter.partition, "offset": letter.offset, "at": iso(letter.timestamp)}
    try:
        written = orjson.loads(letter.value or b"")
    except orjson.JSONDecodeError:
        written = None
    if isinstance(written, dict) and isinstance(written.get("reason"), str):
        return {**written, **place}
    # Somebody else wrote to the topic: shown as it is, so that nothing goes unseen.
    return {
        "reason": "unreadable",
        "detail": "this record of the dead letters is no dead letter of ours",
        "source": None,
        "key": None if letter.key is None else letter.key.decode(errors="replace"),
        "value": b64encode(letter.value or b"").decode(),
        "encoding": "base64",
        **place,
    }
