"""The operator, and what fires: deadlines by time, by hand, and all at once at a resume."""

from collections.abc import Iterator

from agents_stream.core.events import ToolError
from agents_stream.core.flows import data_collection, promos, tools
from agents_stream.core.fold import Draft
from agents_stream.core.instructions import (
    Because,
    Cancel,
    Cause,
    Enter,
    Finish,
    Fire,
    Instruction,
    Lifecycle,
    Reissue,
)
from agents_stream.core.reasons import Reason
from agents_stream.core.session import FlowName, PendingCommand, SessionRecord

_STEP_OF = {"ordered": "ordering", "told": "telling"}


def act(draft: Draft, cause: Cause) -> None:
    """Do what an `agent/operator.action` asks for."""
    name = cause.data.get("name") or ""
    match cause.data["action"]:
        case "cancel_timer" if name in draft.record.deadlines:
            draft.follow(_cancel(draft.record, name, cause))
        case "fire_timer" if name in draft.record.deadlines:
            fire(draft, name, cause)
        case "cancel_timer" | "fire_timer":
            draft.follow([Because(Reason.NO_SUCH_DEADLINE)])
        case "pause":
            already = draft.record.paused
            draft.follow([Because(Reason.PAUSED)] if already else [Lifecycle({"paused": True})])
        case "resume":
            _resume(draft, cause)
        case "retry_command":
            draft.follow(_retry(draft.record, cause.data.get("commandId") or ""))


def fire(draft: Draft, name: str, cause: Cause) -> None:
    """End a deadline as fired and do what it was armed for.

    A deadline stands only while its run or its command waits for it (a property of the tests), so
    that none of the rules below asks whether it does.
    """
    draft.follow([Fire(name)])
    session = draft.record
    if name == data_collection.REPLY:
        draft.follow(data_collection.on_reply_due(session, cause))
    elif name == data_collection.PROMOS:
        draft.follow(data_collection.on_promos_due(session, cause))
    elif name == promos.REPLY:
        draft.follow(promos.on_reply_due(session, cause))
    elif name.startswith(tools.RETRY):
        draft.follow(tools.on_retry_due(name.removeprefix(tools.RETRY)))
    else:
        raise AssertionError(f"nothing arms a deadline called {name}")


def _cancel(session: SessionRecord, name: str, cause: Cause) -> Iterator[Instruction]:
    """A cancelled deadline ends what waited for it: a flow is never left without a way on."""
    yield Cancel(name)
    if name.startswith(tools.RETRY):
        by = ToolError(code="retry_cancelled", message=f"by {cause.data['by']}")
        yield from tools.give_up(session, name.removeprefix(tools.RETRY), by)
        return
    flow: FlowName = "promos" if name == promos.REPLY else "data_collection"
    run = session.flows[flow]
    yield Finish(flow, "cancelled", "timer_cancelled", run.workspace_id, run.run)


def _resume(draft: Draft, cause: Cause) -> None:
    """Held commands go out, then everything that is due runs, in the order of its time."""
    if not draft.record.paused:
        draft.follow([Because(Reason.NOT_PAUSED)])
        return
    draft.follow([Lifecycle({"paused": False})])
    held = [item.id for item in draft.record.pending.values() if item.state == "held"]
    draft.follow(Reissue(command_id) for command_id in held)
    due = sorted(
        (deadline.due_at_ms, name)
        for name, deadline in draft.record.deadlines.items()
        if deadline.due_at_ms <= cause.now_ms
    )
    for _, name in due:
        if name in draft.record.deadlines:
            fire(draft, name, cause)


def _retry(session: SessionRecord, command_id: str) -> Iterator[Instruction]:
    command = session.pending.get(command_id)
    if command is None or command.state != "failed":
        yield Because(Reason.NO_SUCH_COMMAND)
        return
    yield from _take_up(session, command)
    yield Reissue(command_id, redriven=True)


def _take_up(session: SessionRecord, command: PendingCommand) -> Iterator[Instruction]:
    """An order that is tried again is in progress again, unless another run has begun."""
    if command.flow == promos.FLOW and promos.FLOW not in session.flows:
        yield Enter(
            promos.FLOW,
            _STEP_OF[command.then],
            command.conversation_id or "",
            command.workspace_id or "",
            command.run,
        )
