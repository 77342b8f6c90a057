"""promos: the packs are offered; on silence the order is created and the customer is told.

    offered ──► awaiting_choice ──message──► (responded)
                     └─10 m──► ordering ──order exists──► telling ──result──► (timeout)
                                   └─order failed──► (failed)

The customer is told of an order only in answer to the order's own success (G7).
"""

from collections.abc import Iterator
from typing import Final

from agents_stream.core.instructions import (
    Arm,
    Because,
    CallTool,
    Cancel,
    Cause,
    Change,
    Enter,
    Finish,
    Instruction,
    Proceed,
)
from agents_stream.core.reasons import Reason
from agents_stream.core.session import FlowRun, PendingCommand, SessionRecord, iso

FLOW: Final = "promos"
REPLY = "promos.reply"
PACK = "1x"
ORDER_TOOL = "crm.order.create"
CREATED_TEXT = (
    "He creado tu pedido con el Pack 1x. Un asesor se pondra en contacto contigo pronto para "
    "confirmar los detalles."
)


def on_offered(session: SessionRecord, cause: Cause) -> Iterator[Instruction]:
    """`promos.offered`: wait for the choice; a run that still waits is replaced."""
    earlier = session.flows.get(FLOW)
    if earlier and earlier.step != "awaiting_choice":
        yield Because(Reason.ORDER_IN_PROGRESS)
        return
    if earlier:
        yield Finish(FLOW, "cancelled", "restarted", earlier.workspace_id, earlier.run)
    yield Enter(FLOW, "awaiting_choice", cause.data["conversationId"], cause.data["workspaceId"])
    if session.mode != "ofrecer_promos":
        yield Change("ofrecer_promos", {"ofrecer_promos_at": iso(cause.now_ms)})
    yield Arm(REPLY, cause.now_ms + cause.durations.promos_reply_ms)


def on_message(session: SessionRecord, cause: Cause) -> Iterator[Instruction]:  # noqa: ARG001
    """The customer wrote: a choice, if one is waited for. The engine handles it."""
    if REPLY not in session.deadlines:
        return
    run = session.flows[FLOW]
    yield Cancel(REPLY)
    yield Finish(FLOW, "responded", "awaiting_selection_processing", run.workspace_id, run.run)


def on_reply_due(session: SessionRecord, cause: Cause) -> Iterator[Instruction]:  # noqa: ARG001
    """Silence: create the order."""
    run = session.flows[FLOW]
    if session.contact_id is None:
        yield Because(Reason.CONTACT_UNKNOWN)
        yield Finish(FLOW, "failed", "contact_unknown", run.workspace_id, run.run)
        return
    order = {
        "contact_id": session.contact_id,
        "products": [{"product_id": f"default-pack-{PACK}", "quantity": 1}],
        "notes": f"Auto-created after 10 min timeout. Pack: {PACK}",
    }
    yield Proceed(FLOW, "ordering", run.run)
    yield CallTool(
        ORDER_TOOL,
        order,
        flow=FLOW,
        then="ordered",
        run=run.run,
        conversation_id=run.conversation_id,
        workspace_id=run.workspace_id,
    )


def on_ordered(order: PendingCommand, order_id: str | int) -> Iterator[Instruction]:
    """The order exists: tell the customer."""
    assert order.conversation_id is not None
    yield Change(None, {"pack_seleccionado": PACK})
    yield Proceed(FLOW, "telling", order.run)
    yield CallTool(
        "whatsapp.message.send",
        {"contactId": order.conversation_id, "message": CREATED_TEXT},
        flow=FLOW,
        then="told",
        run=order.run,
        conversation_id=order.conversation_id,
        workspace_id=order.workspace_id,
        status="timeout",
        action="auto_created_order",
        extra={"orderId": order_id},
        redriven=order.redriven,
    )


def on_told(message: PendingCommand, extra: dict[str, object]) -> Iterator[Instruction]:
    """The message has its result, whatever it is; `extra` says if it did not arrive."""
    yield Change("compra_confirmada")
    yield Finish(
        FLOW,
        message.status,
        message.action,
        message.workspace_id,
        message.run,
        {**message.extra, **extra},
    )


def known_order(session: SessionRecord, run: FlowRun) -> dict[str, object]:
    """The order of which a run is telling the customer, as its outcome names it; none: nothing."""
    for command in session.pending.values():
        if command.then == "told" and command.run == run.run:
            return dict(command.extra)
    return {}
