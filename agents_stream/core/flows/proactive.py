"""proactive: send one message because the engine asks for it."""

from collections.abc import Iterator
from typing import Final

from agents_stream.core.instructions import CallTool, Cause, Instruction
from agents_stream.core.session import SessionRecord

FLOW: Final = "proactive"
TEXTS = {
    "reminder": "Hola! Sigues interesado en tu pedido?",
    "followup": "Hola! Quedo pendiente por si tienes alguna pregunta sobre tu pedido.",
    "timeout_warning": "Tu sesion se cerrara pronto si no recibimos respuesta.",
}


def on_send(session: SessionRecord, cause: Cause) -> Iterator[Instruction]:  # noqa: ARG001
    """`proactive.send`: the given content, or the text of its type."""
    kind = cause.data["messageType"]
    conversation = cause.data["conversationId"]
    yield CallTool(
        "whatsapp.message.send",
        {"contactId": conversation, "message": cause.data.get("content") or TEXTS[kind]},
        flow=FLOW,
        then="sent",
        run=cause.offset,
        conversation_id=conversation,
        workspace_id=cause.data["workspaceId"],
        status="sent",
        action=kind,
    )
