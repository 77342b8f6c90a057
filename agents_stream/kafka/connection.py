"""How any of our processes reaches Kafka: one place for addresses, encryption and credentials."""

import asyncio
import ssl
from typing import Any, Final

from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from agents_stream.core.errors import AgentsStreamError, BrokerUnreachable, TerminalError
from agents_stream.kafka.unpacking import bound_fetches
from agents_stream.settings import Settings

_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 2.0
_REQUEST_LIMIT_MS: Final = 5_000
# What no waiting mends.
_LASTING: Final = (
    ssl.SSLCertVerificationError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)


def client_options(settings: Settings) -> dict[str, Any]:
    """Give the options that every aiokafka client of ours takes: where Kafka is, and how safe.

    Whoever has them has consumers that unpack within bounds, see `unpacking.py`.

    Raises:
        TerminalError: the certificate file cannot be read.

    """
    bound_fetches()
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
        TerminalError: it did, and does not let us in, or its certificate is not to be trusted.

    """
    last: BaseException | None = None
    pause_s = _FIRST_PAUSE_S
    try:
        async with asyncio.timeout(timeout_s):
            while (last := await _trial(settings)) is not None:
                _refuse_what_lasts(settings, last)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    except TimeoutError:
        raise BrokerUnreachable(_advice(settings, timeout_s, last)) from last


def in_our_words(settings: Settings, error: KafkaError) -> AgentsStreamError:
    """Say what an error of Kafka's means for a process that cannot go on without an answer."""
    where = f"Kafka at {settings.bootstrap_servers}"
    if error.retriable or isinstance(error, KafkaTimeoutError | KafkaConnectionError):
        return BrokerUnreachable(f"{where} stopped answering: {error!r}")
    return TerminalError(f"{where} refused what is needed: {error!r}")


async def _trial(settings: Settings) -> Exception | None:
    """Connect once; give the reason why that failed, or None."""
    client = AIOKafkaClient(**client_options(settings), request_timeout_ms=_REQUEST_LIMIT_MS)
    try:
        await client.bootstrap()
    except (KafkaError, OSError) as error:
        return await _cause(settings) or error
    finally:
        await client.close()
    return None


async def _cause(settings: Settings) -> Exception | None:
    """Connect to each server alone: the client tries them all and keeps no reason."""
    options = client_options(settings)
    cause: Exception | None = None
    for server in options.pop("bootstrap_servers"):
        host, _, port = server.rpartition(":")
        try:
            connection = await create_conn(
                host.strip("[]"), int(port), request_timeout_ms=_REQUEST_LIMIT_MS, **options
            )
            connection.close()
        except (KafkaError, OSError, TimeoutError) as error:
            if cause is None or isinstance(error, _LASTING):
                cause = error
    return cause


def _refuse_what_lasts(settings: Settings, error: Exception) -> None:
    """End the waiting where time cannot help.

    Raises:
        TerminalError: the login or the certificate is wrong; the message names the setting.

    """
    servers = settings.bootstrap_servers
    if isinstance(error, ssl.SSLCertVerificationError):
        raise TerminalError(
            f"the certificate of Kafka at {servers} is not to be trusted"
            f" ({error.verify_message}): set AGENTS_STREAM_SSL_CAFILE to the certificates of its"
            " authority, and call the broker by a name that is in its certificate"
        ) from error
    if isinstance(error, SaslAuthenticationFailed):
        raise TerminalError(
            f"Kafka at {servers} does not let {settings.sasl_username!r} in by"
            f" {settings.sasl_mechanism}: look at AGENTS_STREAM_SASL_USERNAME, _SASL_PASSWORD and"
            " _SASL_MECHANISM"
        ) from error
    if isinstance(error, UnsupportedSaslMechanismError):
        raise TerminalError(
            f"Kafka at {servers} knows no {settings.sasl_mechanism}: set"
            " AGENTS_STREAM_SASL_MECHANISM to one that it offers"
        ) from error


def _advice(settings: Settings, timeout_s: float, last: BaseException | None) -> str:
    # Some errors have no words of their own: a TLS handshake that nobody answers has none.
    detail = f" ({str(last) or type(last).__name__})" if last else ""
    return (
        f"no Kafka answers at {settings.bootstrap_servers} over {settings.security_protocol}"
        f" within {timeout_s:g} s{detail}. Start one with `agents-stream kafka start`, set"
        " AGENTS_STREAM_BOOTSTRAP_SERVERS to yours, or AGENTS_STREAM_SECURITY_PROTOCOL to what it"
        " speaks"
    )
