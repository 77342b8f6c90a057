"""The words and values of SPEC §3 to §5 that the second reading (`contract.py`) is made of."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

REQUIRED: Final = ("nombre", "telefono", "ciudad", "direccion")
PENDING_TEXT: Final = (
    "Quedamos pendientes! Cuando tengas un momento, me cuentas para ayudarte con tu pedido."
)
MISSING_TEXT: Final = "Para continuar con tu pedido, necesito que me confirmes: "
ORDER_TEXT: Final = (
    "He creado tu pedido con el Pack 1x. Un asesor se pondra en contacto contigo pronto para "
    "confirmar los detalles."
)
PROACTIVE_TEXTS: Final = {
    "reminder": "Hola! Sigues interesado en tu pedido?",
    "followup": "Hola! Quedo pendiente por si tienes alguna pregunta sobre tu pedido.",
    "timeout_warning": "Tu sesion se cerrara pronto si no recibimos respuesta.",
}
DATA_REPLY, DATA_PROMOS, PROMOS_REPLY = (
    "data_collection.reply",
    "data_collection.promos",
    "promos.reply",
)
MESSAGE, ORDER = "whatsapp.message.send", "crm.order.create"
MAX_ATTEMPTS: Final = 4
OWN_PREFIX: Final = "agents-stream:"


@dataclass
class Armed:
    """A deadline. `due_ms` is the earliest it may fire; a retry's latest is `latest_ms`."""

    name: str
    generation: int
    armed_ms: int
    due_ms: int
    latest_ms: int
    end: str = "standing"
    ended_ms: int = 0


@dataclass
class Command:
    """A command that must have been issued; `id` is "" where no topic has it."""

    id: str
    tool: str
    inputs: dict[str, Any]
    flow: str
    then: str
    run: int
    attempt: int = 1
    state: str = "awaiting"
    action: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """A flow in progress."""

    run: int
    step: str
    conversation: str


def iso(at_ms: int) -> str:
    """Milliseconds as SPEC has them in a session's state."""
    moment = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"
