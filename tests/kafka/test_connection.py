"""How a client reaches Kafka, and what is said when it cannot."""

import asyncio
import time
from pathlib import Path

import pytest
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    LeaderNotAvailableError,
    TopicAuthorizationFailedError,
)

from agents_stream.app import Worker, run_worker
from agents_stream.core.errors import AgentsStreamError, BrokerUnreachable, TerminalError
from agents_stream.kafka.connection import client_options, in_our_words, require_broker
from agents_stream.settings import Settings
from tests.conftest import free_port


def test_plain_options() -> None:
    """Without security: where, and nothing more."""
    options = client_options(Settings(bootstrap_servers="a:1, b:2"))
    assert options == {"bootstrap_servers": ["a:1", "b:2"], "security_protocol": "PLAINTEXT"}


def test_secured_options() -> None:
    """SASL over TLS has its mechanism, its credentials and a context that checks certificates."""
    settings = Settings.model_validate(
        {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": "worker",
            "sasl_password": "s3cret",
        }
    )
    options = client_options(settings)
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert options["sasl_plain_username"] == "worker"
    assert options["sasl_plain_password"] == "s3cret"  # noqa: S105 - a test's password
    assert options["ssl_context"].check_hostname
    assert "s3cret" not in repr(settings)


def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    """The setting is named."""
    settings = Settings(security_protocol="SSL", ssl_cafile=tmp_path / "none.pem")
    with pytest.raises(TerminalError, match="AGENTS_STREAM_SSL_CAFILE"):
        client_options(settings)


async def test_a_broker_that_answers(kafka_settings: Settings) -> None:
    """It returns at once."""
    began = time.monotonic()
    await require_broker(kafka_settings)
    assert time.monotonic() - began < 2.0


async def test_nobody_answers_within_the_limit() -> None:
    """G11: it gives up in time and tells who was asked, how, and what to do."""
    address = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    with pytest.raises(BrokerUnreachable, match=rf"{address} over PLAINTEXT.*kafka start"):
        await require_broker(Settings(bootstrap_servers=address), timeout_s=0.6)
    assert time.monotonic() - began < 3.0


@pytest.mark.parametrize(
    ("error", "means"),
    [
        (KafkaTimeoutError("no offsets in 40 s"), BrokerUnreachable),
        (LeaderNotAvailableError(), BrokerUnreachable),
        (TopicAuthorizationFailedError(), TerminalError),
    ],
)
async def test_a_kafka_that_fails_a_worker_at_its_start_is_told_in_our_words(
    error: KafkaError,
    means: type[AgentsStreamError],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """G11: a broker that goes while a worker starts is no fault of the program.

    Seen in chaos: "this is a fault of agents-stream: KafkaTimeoutError", exit code 1.
    """

    async def fail(_self: Worker) -> None:
        raise error

    monkeypatch.setattr(Worker, "start", fail)
    settings = Settings(data_dir=tmp_path, bootstrap_servers="broker:9092")
    assert isinstance(in_our_words(settings, error), means)
    with pytest.raises(means, match="broker:9092"):
        await run_worker(settings, asyncio.Event())
