"""How any of our processes reaches Kafka: one place for addresses, encryption and credentials."""

import asyncio
import ssl
from typing import Any, Final

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from agents_stream.core.errors import BrokerUnreachable, TerminalError
from agents_stream.settings import Settings

_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 2.0
_REQUEST_LIMIT_MS: Final = 5_000


def client_options(settings: Settings) -> dict[str, Any]:
    """Give the options that every aiokafka client of ours takes: where Kafka is, and how safe.

    Raises:
        TerminalError: the certificate file cannot be read.

    """
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers.split(","),
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        secret = settings.sasl_password
        options["sasl_plain_password"] = secret.get_secret_value() if secret else None
    return options


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.ssl_cafile)
    except (OSError, ssl.SSLError) as error:
        raise TerminalError(
            f"AGENTS_STREAM_SSL_CAFILE={settings.ssl_cafile} cannot be used: {error}"
        ) from error


async def require_broker(settings: Settings, timeout_s: float = 20.0) -> None:
    """Wait until Kafka answers.

    Raises:
        BrokerUnreachable: it did not within `timeout_s`. The message says who was asked.

    """
    last: BaseException | None = None
    pause_s = _FIRST_PAUSE_S
    try:
        async with asyncio.timeout(timeout_s):
            while (last := await _trial(settings)) is not None:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    except TimeoutError:
        raise BrokerUnreachable(_advice(settings, timeout_s, last)) from last


async def _trial(settings: Settings) -> Exception | None:
    """Connect once; give the reason why that failed, or None."""
    client = AIOKafkaClient(**client_options(settings), request_timeout_ms=_REQUEST_LIMIT_MS)
    try:
        await client.bootstrap()
    except (KafkaError, OSError) as error:
        return error
    finally:
        await client.close()
    return None


def _advice(settings: Settings, timeout_s: float, last: BaseException | None) -> str:
    detail = f" ({last})" if last else ""
    return (
        f"no Kafka answers at {settings.bootstrap_servers} over {settings.security_protocol}"
        f" within {timeout_s:g} s{detail}. Start one with `agents-stream kafka start`, or set"
        " AGENTS_STREAM_BOOTSTRAP_SERVERS to yours"
    )
