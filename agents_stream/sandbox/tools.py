"""The tools that the sandbox plays: WhatsApp, a CRM, and the team's engine with its webhook.

All three take a request the same way: write it down, meet a fault if there is one, check the
sender, check the inputs, have the effect once per idempotency key, answer. (The real WhatsApp
promises no idempotency. Ours has it all the same, and the books show each repeat.)
"""

import asyncio
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import orjson
import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, ValidationError

from agents_stream.sandbox.answers import (
    Rejection,
    error_answer,
    json_answer,
    problems,
    read_json_bytes,
)
from agents_stream.sandbox.books import (
    MAX_CONTACT_CHARS,
    MAX_KEY_CHARS,
    Books,
    Entry,
    KeyReused,
    Receipt,
    Tool,
)
from agents_stream.sandbox.faults import Fault, Faults

log = structlog.get_logger()

MAX_MESSAGE_CHARS = 65_536
MAX_PRODUCTS = 1_000
MAX_JSON_DEPTH = 32

SIGNATURE_HEADER = "x-agents-stream-signature"
ID_HEADERS = ("x-agents-stream-id", "webhook-id", "idempotency-key")

SIGNATURE_TOLERANCE_S = 300

_SIGNATURE = re.compile(r"t=(\d{1,15}),v1=([0-9a-f]{64})")

Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CONTACT_CHARS)]


class _Inputs(BaseModel):
    """Inputs of a tool: what is named here is checked, what else comes is kept."""

    model_config = ConfigDict(extra="allow", strict=True)


class MessageInputs(_Inputs):
    """Inputs of `whatsapp.message.send`. The contactId is the conversationId (SPEC §5)."""

    contactId: Text  # noqa: N815 - the name on the wire
    message: str = Field(min_length=1, max_length=MAX_MESSAGE_CHARS)


class Product(_Inputs):
    """One line of an order."""

    product_id: Text
    quantity: int = Field(ge=1, le=1_000_000)


class OrderInputs(_Inputs):
    """Inputs of `crm.order.create`."""

    contact_id: Text
    products: list[Product] = Field(min_length=1, max_length=MAX_PRODUCTS)
    notes: str | None = Field(None, max_length=MAX_MESSAGE_CHARS)


class WebhookBody(_Inputs):
    """What the gateway posts to an engine: an outcome, or an event in its envelope."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """How one tool takes a request."""

    tool: Tool
    inputs: type[_Inputs]
    contact_of: Callable[[dict[str, Any]], object]
    token: SecretStr | None = None
    webhook_secret: SecretStr | None = None


def session_of(body: dict[str, Any]) -> object:
    """Return the session that a webhook's body is about."""
    data = body.get("data")
    inner = data.get("sessionId") if isinstance(data, dict) else None
    return body.get("sessionId") or inner


def receivers(
    whatsapp_token: SecretStr | None,
    crm_token: SecretStr | None,
    webhook_secret: SecretStr | None,
) -> dict[str, Receiver]:
    """Return who takes the requests at which path."""
    return {
        "/whatsapp/messages": Receiver(
            Tool.WHATSAPP, MessageInputs, lambda body: body.get("contactId"), whatsapp_token
        ),
        "/crm/orders": Receiver(
            Tool.CRM, OrderInputs, lambda body: body.get("contact_id"), crm_token
        ),
        "/engine": Receiver(Tool.WEBHOOK, WebhookBody, session_of, webhook_secret=webhook_secret),
    }


class Tools:
    """Takes the requests to the tools.

    Args:
        books: where each request is written down.
        faults: what is to go wrong.
        on_effect: told of each entry that had its effect, before it is answered.

    """

    def __init__(self, books: Books, faults: Faults, on_effect: Callable[[Entry], None]) -> None:
        self._books = books
        self._faults = faults
        self._on_effect = on_effect

    async def take(self, receiver: Receiver, request: web.Request) -> web.StreamResponse:
        """Take one request: write it down, meet its fault, act, answer."""
        raw = await read_json_bytes(request)
        entry = self._books.enter(_receipt(receiver, request, raw))
        fault = self._faults.take(receiver.tool, entry.receipt.contact)
        if fault is not None:
            log.info("sandbox_fault", tool=receiver.tool.value, mode=fault.mode.value)
            await asyncio.sleep(fault.delay_ms / 1000)
        if fault is None or fault.acts:
            answer = self._act(receiver, entry)
        elif fault.drops:
            answer = web.Response()
        else:
            answer = _misbehave(fault)
        if fault is not None and fault.drops:
            # The client sees its connection end; what we return is written to nobody.
            if request.transport is not None:
                request.transport.close()
            return answer
        entry.status = answer.status
        log.debug(
            "sandbox_request",
            tool=receiver.tool.value,
            status=answer.status,
            performed=entry.performed,
            repeat=entry.repeat,
        )
        return answer

    def _act(self, receiver: Receiver, entry: Entry) -> web.Response:
        """Do what is asked and return the answer. No await: a key cannot act twice at once."""
        try:
            _check(receiver, entry)
            effect_id = self._books.perform(entry)
        except Rejection as refusal:
            return error_answer(refusal.status, refusal.code, str(refusal))
        except KeyReused:
            return error_answer(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "This Idempotency-Key came before, with other inputs",
            )
        if entry.performed:
            self._on_effect(entry)
        return json_answer({"id": effect_id})


def _receipt(receiver: Receiver, request: web.Request, raw: bytes) -> Receipt:
    """Write down a request as it came, well-formed or not."""
    inputs = _parse(raw)
    contact = receiver.contact_of(inputs) if isinstance(inputs, dict) else None
    more: dict[str, Any] = {}
    if receiver.tool is Tool.WEBHOOK:
        key = next((request.headers[name] for name in ID_HEADERS if name in request.headers), None)
        signature = _judge_signature(request, raw, receiver.webhook_secret)
        authorized = signature in {"valid", "unchecked"}
        more["signature"] = signature
    else:
        key = request.headers.get("Idempotency-Key")
        authorized = _has_token(request, receiver.token)
    return Receipt(
        tool=receiver.tool,
        key=key[: MAX_KEY_CHARS + 1] if key else None,
        inputs=inputs,
        size=len(raw),
        contact=contact[:MAX_CONTACT_CHARS] if isinstance(contact, str) else None,
        authorized=authorized,
        more=more,
    )


def _depth(value: object) -> int:
    """Return how many levels of objects and lists are in one another."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [
            inner for item in level for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _parse(raw: bytes) -> Any:
    """Return the body as JSON, or null for what is none or too deep."""
    try:
        inputs = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return inputs if _depth(inputs) <= MAX_JSON_DEPTH else None


def _has_token(request: web.Request, token: SecretStr | None) -> bool:
    """Whether the sender may call, compared in constant time."""
    if token is None:
        return True
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    same = hmac.compare_digest(
        given.strip().encode("utf-8", "surrogateescape"), token.get_secret_value().encode()
    )
    return same and scheme.lower() == "bearer"


def _judge_signature(request: web.Request, raw: bytes, secret: SecretStr | None) -> str:
    """Say what a webhook's signature is worth: valid, invalid, expired, missing, or unchecked.

    It is checked as docs/engine-webhook.md tells an engine to: `t=<unix seconds>,v1=<hex>`, where
    the hex is the HMAC-SHA256 of `<t>.<body>`.
    """
    given = request.headers.get(SIGNATURE_HEADER)
    if secret is None:
        return "unchecked"
    if given is None:
        return "missing"
    match = _SIGNATURE.fullmatch(given)
    if match is None:
        return "invalid"
    signed = match[1].encode() + b"." + raw
    expected = hmac.new(secret.get_secret_value().encode(), signed, "sha256").hexdigest()
    if not hmac.compare_digest(match[2], expected):
        return "invalid"
    fresh = abs(time.time() - int(match[1])) <= SIGNATURE_TOLERANCE_S
    return "valid" if fresh else "expired"


def _check(receiver: Receiver, entry: Entry) -> None:
    """Check the sender, then the inputs.

    Raises:
        Rejection: 401 or 400.

    """
    receipt = entry.receipt
    if not receipt.authorized:
        raise Rejection(
            HTTPStatus.UNAUTHORIZED,
            "unauthorized",
            "The token or the signature is not the right one",
        )
    if receipt.key is not None and len(receipt.key) > MAX_KEY_CHARS:
        raise Rejection(
            HTTPStatus.BAD_REQUEST,
            "invalid_key",
            f"An idempotency key has at most {MAX_KEY_CHARS} characters",
        )
    if not isinstance(receipt.inputs, dict):
        raise Rejection(HTTPStatus.BAD_REQUEST, "invalid_json", "The body is no JSON object")
    try:
        receiver.inputs.model_validate(receipt.inputs)
    except ValidationError as error:
        raise Rejection(HTTPStatus.BAD_REQUEST, "invalid_schema", problems(error)) from None


def _misbehave(fault: Fault) -> web.Response:
    """Answer what a fault makes of a request that it does not let through."""
    status = fault.answer_status
    return error_answer(
        status,
        "sandbox_fault",
        f"The sandbox was told to: {fault.mode.value}",
        fault.answer_headers,
    )
