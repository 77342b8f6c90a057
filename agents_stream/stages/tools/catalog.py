"""Which tools there are, where each is called, and what may be assumed of it.

What may live here: facts about tools. What a call's reply means follows from them (`results.py`).
"""

import ipaddress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from agents_stream.core.errors import TerminalError
from agents_stream.kafka.topics import CRM_ORDER_CREATE, WHATSAPP_MESSAGE_SEND
from agents_stream.settings import Settings

WHATSAPP: Final = "whatsapp.message.send"
CRM: Final = "crm.order.create"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where something is called: the full URL, and the bearer token if it asks for one."""

    url: str
    token: SecretStr | None = None

    @property
    def on_this_machine(self) -> bool:
        """Whether the URL names the loopback interface."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool.

    `topic` is its commands' topic without prefix. `idempotent`: calls with the same
    Idempotency-Key act once, so a call without an answer may be repeated. `gives_id`: a success
    without `outputs.id` says too little. `endpoint` is None where no URL is configured.
    """

    name: str
    topic: str
    idempotent: bool
    gives_id: bool
    endpoint: Endpoint | None


def tools_of(settings: Settings) -> tuple[Tool, ...]:
    """Give every tool, with its endpoint if it has one.

    Raises:
        TerminalError: a URL or a token is none.

    """
    return (
        Tool(
            WHATSAPP,
            WHATSAPP_MESSAGE_SEND,
            idempotent=False,
            gives_id=False,
            endpoint=endpoint_of("WHATSAPP", settings.whatsapp_url, settings.whatsapp_token),
        ),
        Tool(
            CRM,
            CRM_ORDER_CREATE,
            idempotent=True,
            gives_id=True,
            endpoint=endpoint_of("CRM", settings.crm_url, settings.crm_token),
        ),
    )


def endpoint_of(setting: str, url: str | None, token: SecretStr | None) -> Endpoint | None:
    """Check a URL and its token once, so that no call can fail because of them.

    Raises:
        TerminalError: one of them is none; the message names the setting and hides the token.

    """
    if url is None:
        return None
    name = f"AGENTS_STREAM_{setting}_URL"
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise TerminalError(f"{name} is no URL: {error}") from error
    if parts.scheme not in {"http", "https"} or not has_host or not (url.isascii()):
        raise TerminalError(f"{name} is no URL: write http://HOST:PORT/PATH or https://HOST/PATH")
    if not url.isprintable() or " " in url:
        raise TerminalError(f"{name} holds a blank or a control character")
    if token is not None and not is_header_text(token.get_secret_value()):
        raise TerminalError(
            f"AGENTS_STREAM_{setting}_TOKEN holds characters that no HTTP header can carry"
        )
    return Endpoint(url, token)


def is_header_text(text: str) -> bool:
    """Whether a text can be an HTTP header's value as it is: visible ASCII, no blank around it."""
    return bool(text) and text.isascii() and text.isprintable() and text == text.strip()
