"""Results of commands: success, a retry later, or failure for good (SPEC §5).

A success of any issued attempt of a pending command counts; a failure counts only for the
attempt now awaited. What a result leads to is written on the pending command (`then`).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from agents_stream.core.errors import InvalidEvent
from agents_stream.core.events import ToolError, ToolResult
from agents_stream.core.flows import promos
from agents_stream.core.instructions import (
    Arm,
    Because,
    Bury,
    Cancel,
    Cause,
    Finish,
    Instruction,
    KeepAs,
    Reissue,
    Settle,
)
from agents_stream.core.reasons import Reason
from agents_stream.core.retry import MAX_ATTEMPTS, next_attempt_at_ms
from agents_stream.core.session import PendingCommand, SessionRecord

RETRY = "retry:"
MAX_ERROR_CHARS = 4_096


def on_result(session: SessionRecord, cause: Cause, result: ToolResult) -> Iterator[Instruction]:
    """A tool answered."""
    command = session.pending.get(result.command_id)
    if command is None:
        yield Because(Reason.UNKNOWN_COMMAND)
    elif result.attempt > command.issued_attempts:
        yield Because(Reason.UNKNOWN_ATTEMPT)
    elif command.state == "failed":
        yield Because(Reason.SETTLED_ATTEMPT)
    elif result.status == "succeeded":
        yield from _succeed(session, command, result)
    elif command.state == "retrying" or result.attempt != command.attempt:
        yield Because(Reason.SETTLED_ATTEMPT)
    else:
        yield from _fail(session, cause, command, result)


def on_retry_due(command_id: str) -> Iterator[Instruction]:
    """The backoff is over: the next attempt goes out."""
    yield Reissue(command_id)


def give_up(session: SessionRecord, command_id: str, error: ToolError) -> Iterator[Instruction]:
    """A person cancelled the retry of a command: it has failed for good."""
    command = session.pending[command_id]
    yield from _fail_for_good(session, command, "tool_failed", error, unknown=False)


def _succeed(
    session: SessionRecord, command: PendingCommand, result: ToolResult
) -> Iterator[Instruction]:
    if command.tool == promos.ORDER_TOOL and result.output_id is None:
        # The result named no tool, so ingress could not know that it answers an order.
        raise InvalidEvent("invalid_schema", "outputs.id is required when an order succeeded")
    yield Settle(command.id)
    yield Cancel(RETRY + command.id)
    if command.state == "orphaned":
        yield Because(Reason.SESSION_CLOSED)
        if command.tool == promos.ORDER_TOOL:
            extra = {"orderId": result.output_id}
            action = "order_created_after_close"
            yield Finish(promos.FLOW, "cancelled", action, command.workspace_id, extra=extra)
    elif command.then == "ordered":
        assert result.output_id is not None
        yield from promos.on_ordered(command, result.output_id)
    elif command.then == "told":
        yield from promos.on_told(command, _redriven(command))
    else:
        yield from _end_message(session, command, command.status, _redriven(command))


def _fail(
    session: SessionRecord, cause: Cause, command: PendingCommand, result: ToolResult
) -> Iterator[Instruction]:
    error = _clipped(result.error or ToolError())
    if result.status == "unknown":
        yield from _fail_for_good(session, command, "tool_unknown", error, unknown=True)
    elif not result.retryable:
        yield from _fail_for_good(session, command, "tool_failed", error, unknown=False)
    elif command.state == "orphaned":
        yield Settle(command.id)
        yield Because(Reason.SESSION_CLOSED)
    elif command.attempt >= MAX_ATTEMPTS:
        yield from _fail_for_good(session, command, "retries_exhausted", error, unknown=False)
    else:
        after = result.retry_after_ms
        due = next_attempt_at_ms(
            command.id,
            command.attempt,
            cause.now_ms,
            cause.durations.retry_backoff_ms,
            None if after is None else int(after),
        )
        yield KeepAs(replace(command, state="retrying"))
        yield Arm(RETRY + command.id, due)


def _fail_for_good(
    session: SessionRecord, command: PendingCommand, reason: str, error: ToolError, *, unknown: bool
) -> Iterator[Instruction]:
    yield Bury(reason, f"{error.code}: {error.message}".removesuffix(": "), command)
    if command.state == "orphaned":
        yield Settle(command.id)
        yield Because(Reason.SESSION_CLOSED)
        return
    yield KeepAs(replace(command, state="failed"))
    flagged: dict[str, Any] = {"unknown": True} if unknown else {}
    failure = {"error": {"code": error.code, "message": error.message}, **flagged}
    match command.then:
        case "ordered":
            extra = {**failure, **_redriven(command)}
            yield Finish(
                promos.FLOW, "failed", "order_failed", command.workspace_id, command.run, extra
            )
        case "told":
            notified: dict[str, Any] = {"notified": None if unknown else False}
            yield from promos.on_told(command, {**notified, **flagged, **_redriven(command)})
        case _:
            yield from _end_message(session, command, "failed", {**failure, **_redriven(command)})


def _end_message(
    session: SessionRecord, command: PendingCommand, status: str, extra: dict[str, Any]
) -> Iterator[Instruction]:
    """A flow that ends with its message's result. A run that was replaced has ended already."""
    run = session.flows.get(command.flow)
    over = run is None or run.run != command.run
    if over and command.flow == "data_collection" and not command.redriven:
        yield Because(Reason.RUN_ENDED)
        return
    yield Finish(
        command.flow,
        status,
        command.action,
        command.workspace_id,
        command.run,
        {**command.extra, **extra},
    )


def _clipped(error: ToolError) -> ToolError:
    """An error goes into an outcome, a dead letter and the outbox: a page of it is enough."""
    code, message = error.code[:MAX_ERROR_CHARS], error.message[:MAX_ERROR_CHARS]
    return ToolError(code=code, message=message)


def _redriven(command: PendingCommand) -> dict[str, Any]:
    return {"redriven": True} if command.redriven else {}
