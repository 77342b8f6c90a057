"""data_collection: wait for the customer's data, ask again once, then make way for the packs.

started ──► awaiting_reply ──message, data missing──► (responded)
│  └─message, data complete──► awaiting_promos ──2 m──► (complete)
└─6 m──► asking ──result──► (timeout | failed)
└─data complete──► awaiting_promos
"""

from collections.abc import Iterator
from typing import Final

from agents_stream.core.instructions import (
    Arm,
    CallTool,
    Cancel,
    Cause,
    Change,
    Enter,
    Finish,
    Instruction,
    Proceed,
    Publish,
)
from agents_stream.core.session import FlowRun, SessionRecord, iso

FLOW: Final = "data_collection"
REPLY = "data_collection.reply"
PROMOS = "data_collection.promos"
PACK_OPTIONS = ("1x", "2x", "3x")
PENDING_TEXT = (
    "Quedamos pendientes! Cuando tengas un momento, me cuentas para ayudarte con tu pedido."
)
MISSING_TEXT = "Para continuar con tu pedido, necesito que me confirmes: "


def on_started(session: SessionRecord, cause: Cause) -> Iterator[Instruction]:
    """`collecting_data.started`: begin; a run under way is replaced."""
    if earlier := session.flows.get(FLOW):
        yield Cancel(REPLY)
        yield Cancel(PROMOS)
        yield Finish(FLOW, "cancelled", "restarted", earlier.workspace_id, earlier.run)
    yield Enter(FLOW, "awaiting_reply", cause.data["conversationId"], cause.data["workspaceId"])
    yield Change("collecting_data", {"proactive_started_at": iso(cause.now_ms)})
    yield Arm(REPLY, cause.now_ms + cause.durations.data_reply_ms)


def on_message(session: SessionRecord, cause: Cause) -> Iterator[Instruction]:
    """The customer wrote: an answer, if one is waited for."""
    if REPLY not in session.deadlines:
        return
    run = session.flows[FLOW]
    yield Cancel(REPLY)
    if session.missing_data():
        yield Finish(FLOW, "responded", "awaiting_more_data", run.workspace_id, run.run)
    else:
        yield from _await_promos(run, cause)


def on_reply_due(session: SessionRecord, cause: Cause) -> Iterator[Instruction]:
    """Silence: ask for what is missing, or go on when nothing is."""
    run = session.flows[FLOW]
    missing = session.missing_data()
    if not missing:
        yield from _await_promos(run, cause)
    elif session.state["datos_capturados"]:
        text = MISSING_TEXT + ", ".join(missing)
        yield from _ask(run, text, "requested_missing_data", {"missing": missing})
    else:
        yield from _ask(run, PENDING_TEXT, "sent_pending_message", {})


def on_promos_due(session: SessionRecord, cause: Cause) -> Iterator[Instruction]:
    """The data has been complete for a while: offer the packs."""
    run = session.flows[FLOW]
    offer = {
        "sessionId": session.session_id,
        "conversationId": run.conversation_id,
        "workspaceId": run.workspace_id,
        "packOptions": list(PACK_OPTIONS),
    }
    yield Publish("agent/promos.offered", offer)
    yield Change("ofrecer_promos", {"ofrecer_promos_at": iso(cause.now_ms)})
    yield Finish(FLOW, "complete", "transitioned_to_promos", run.workspace_id, run.run)


def _await_promos(run: FlowRun, cause: Cause) -> Iterator[Instruction]:
    yield Proceed(FLOW, "awaiting_promos", run.run)
    yield Arm(PROMOS, cause.now_ms + cause.durations.promos_delay_ms)


def _ask(run: FlowRun, text: str, action: str, extra: dict[str, object]) -> Iterator[Instruction]:
    yield Proceed(FLOW, "asking", run.run)
    yield CallTool(
        "whatsapp.message.send",
        {"contactId": run.conversation_id, "message": text},
        flow=FLOW,
        then="asked",
        run=run.run,
        conversation_id=run.conversation_id,
        workspace_id=run.workspace_id,
        status="timeout",
        action=action,
        extra=extra,
    )
