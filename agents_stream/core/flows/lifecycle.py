"""The session itself: started, updated, filled with data, closed."""

from collections.abc import Iterator
from dataclasses import replace

from agents_stream.core.flows import promos
from agents_stream.core.instructions import (
    Because,
    Cancel,
    Cause,
    Change,
    Finish,
    Instruction,
    KeepAs,
    Lifecycle,
    Settle,
)
from agents_stream.core.reasons import Reason
from agents_stream.core.session import SessionRecord

PARTICIPANTS = {
    "workspaceId": "workspace_id",
    "agentId": "agent_id",
    "conversationId": "conversation_id",
    "contactId": "contact_id",
}


def on_started(session: SessionRecord, cause: Cause) -> Iterator[Instruction]:
    """`session.started` for an open session: fill in what is null, once."""
    if session.started:
        yield Because(Reason.ALREADY_STARTED)
        return
    known = {
        name: cause.data[wire]
        for wire, name in PARTICIPANTS.items()
        if getattr(session, name) is None
    }
    yield Lifecycle({**known, "started": True})
    if session.mode is None:
        yield Change(cause.data["mode"])


def on_updated(session: SessionRecord, cause: Cause) -> Iterator[Instruction]:
    """`session.updated`: set the mode, merge the state, unless the version is another."""
    expected = cause.data.get("expectedVersion")
    if expected is not None and expected != session.version:
        yield Because(Reason.VERSION_CONFLICT)
        yield Finish("session", "rejected", "version_conflict", session.workspace_id)
        return
    yield Change(cause.data.get("mode"), cause.data.get("state") or {})


def on_captured(session: SessionRecord, cause: Cause) -> Iterator[Instruction]:
    """`data.captured`: merge the fields; null and "" are kept."""
    captured = {**session.state["datos_capturados"], **cause.data["data"]}
    yield Change(None, {"datos_capturados": captured})


def on_close(session: SessionRecord, cause: Cause) -> Iterator[Instruction]:
    """`session.close`: nothing of this session acts any more."""
    for name in session.deadlines:
        yield Cancel(name)
    for flow in ("data_collection", "promos"):
        if run := session.flows.get(flow):
            # An order that exists already is not passed over: its number goes with the end.
            order = promos.known_order(session, run) if flow == promos.FLOW else {}
            yield Finish(flow, "cancelled", "session_closed", run.workspace_id, run.run, order)
    for command in session.pending.values():
        if command.flow == "proactive" and command.state != "failed":
            yield Finish("proactive", "cancelled", "session_closed", command.workspace_id)
        if command.state == "failed" or command.issued_attempts == 0:
            yield Settle(command.id)
        else:
            yield KeepAs(replace(command, state="orphaned", attempt=command.issued_attempts))
    reason = cause.data["reason"]
    yield Lifecycle({"status": "closed", "close_reason": reason, "paused": False})
    yield Finish("session", "closed", reason, session.workspace_id)
