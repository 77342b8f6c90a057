"""A Kafka that demands TLS and a login: everything works there, and nothing works without."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agents_stream.client import AgentsStream
from agents_stream.kafka import topic_admin
from agents_stream.settings import Settings
from tests.kafka.cluster import cluster
from tests.kafka.command_line import assert_told, cli
from tests.kafka.gateway_world import gateway_process, world_of
from tests.kafka.secure_broker import SecureBroker, allow_what_is_listed, secure_broker

LOGINS = [
    ("SSL", "PLAIN"),
    ("SASL_SSL", "PLAIN"),
    ("SASL_SSL", "SCRAM-SHA-256"),
    ("SASL_PLAINTEXT", "SCRAM-SHA-512"),
]
WEB_TOKEN, TOOL_TOKEN = "web-4711", "tool-4711"
CUSTOMER_TEXT = "quiero-dos-cajas-4711"
CAPTURED = "Calle Secreta 4711"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    """One broker for the module."""
    with secure_broker(tmp_path_factory.mktemp("secured")) as broker:
        yield broker


@pytest.fixture(autouse=True)
async def _farewells() -> AsyncIterator[None]:
    """Let TLS say goodbye: asyncio closes such a connection a little after its owner did."""
    yield
    await asyncio.sleep(0.1)


@pytest.mark.parametrize(("protocol", "mechanism"), LOGINS)
async def test_each_way_in(
    secured: SecureBroker, tmp_path: Path, protocol: str, mechanism: str
) -> None:
    """Topics are made and checked, and an event is acknowledged, over each kind of connection."""
    settings = secured.settings(
        protocol,
        sasl_mechanism=mechanism,
        topic_prefix=f"{protocol}-{mechanism}.",
        data_dir=tmp_path,
        partitions=2,
    )
    assert await topic_admin.apply(settings)
    assert await topic_admin.check(settings) == []
    async with AgentsStream(settings=settings) as client:
        data = {"sessionId": "s-1", "reason": "completed"}
        assert await client.send_envelope({"name": "agent/session.close", "data": data})


async def test_the_main_job_over_tls_with_a_login(secured: SecureBroker, tmp_path: Path) -> None:
    """Worker, gateway, client and commands do a whole sale, with no more rights than are listed.

    No log holds a secret or a text of the customer's.
    """
    await topic_admin.apply(secured.settings("SASL_SSL", topic_prefix="job.", partitions=2))
    await allow_what_is_listed(secured, "job.")
    settings = secured.settings(
        "SASL_SSL",
        "limited",
        sasl_mechanism="SCRAM-SHA-512",
        topic_prefix="job.",
        data_dir=tmp_path / "data",
        partitions=2,
        promos_delay=100,
        promos_reply_timeout=1_500,
        auth_token=WEB_TOKEN,
        whatsapp_token=TOOL_TOKEN,
        log_level="debug",
        log_format="json",
    )
    log = tmp_path / "gateway.log"
    async with (
        world_of(settings) as world,
        cluster(settings, lambda _: None) as seen,
        gateway_process(world.settings, log),
    ):
        worker = seen.worker()
        await worker.ready()
        session = await seen.open()
        await seen.send("agent/data.captured", session, data={"direccion": CAPTURED})
        await seen.message(session, CUSTOMER_TEXT)
        await seen.send("agent/customer.message", session, content=f"broken {CUSTOMER_TEXT}")
        await seen.offer(session)
        await seen.until_outcomes(session, ("promos", "timeout", "auto_created_order"))
        assert [call.path for call in world.calls] == ["/crm", "/whatsapp"]
        answer = await cli(settings, "audit", "--json")
        assert answer.code == 0, answer
        said = await cli(settings, "dead-letters", "list", "--json")
        assert CUSTOMER_TEXT in said.out, "what is dead is shown to those who ask"
        logs = _read(worker.log) + _read(log)
    assert "dead letter" in logs
    secrets = [*secured.passwords.values(), WEB_TOKEN, TOOL_TOKEN]
    for word in (*secrets, CUSTOMER_TEXT, CAPTURED):
        assert word not in logs


def _read(path: Path | str) -> str:
    return Path(path).read_text()


def _wrong(secured: SecureBroker) -> dict[str, tuple[Settings, tuple[str, ...]]]:
    right = secured.settings("SASL_SSL")
    other = secured.settings("SASL_SSL", "stranger")
    return {
        "password": (
            right.model_copy(update={"sasl_password": other.sasl_password}),
            ("'worker'", "AGENTS_STREAM_SASL_USERNAME"),
        ),
        "certificate": (
            right.model_copy(update={"ssl_cafile": None}),
            ("AGENTS_STREAM_SSL_CAFILE",),
        ),
        "rights": (other, ("topics",)),
    }


@pytest.mark.parametrize("what", ["password", "certificate", "rights"])
@pytest.mark.parametrize("command", [("topics", "apply"), ("worker",), ("gateway",)])
async def test_who_is_not_let_in_is_told_why(
    secured: SecureBroker, tmp_path: Path, what: str, command: tuple[str, ...]
) -> None:
    """G11: refused at once (exit 1), with the setting to look at and without the secret."""
    settings, words = _wrong(secured)[what]
    settings = settings.model_copy(update={"data_dir": tmp_path})
    answer = await cli(settings, *command, AGENTS_STREAM_WHATSAPP_URL="http://127.0.0.1:9/x")
    assert_told(answer, 1, *words)
    assert not any(word in answer.out + answer.err for word in secured.passwords.values())


async def test_who_may_create_no_topics_is_told_so(secured: SecureBroker, tmp_path: Path) -> None:
    """The message names the login; the rights that are needed are in the docs."""
    settings = secured.settings("SASL_SSL", "stranger", data_dir=tmp_path)
    answer = await cli(settings, "topics", "apply")
    assert_told(answer, 1, "let 'stranger' create", "docs/operations.md")


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SASL_PLAINTEXT"])
async def test_a_client_that_speaks_another_protocol(
    secured: SecureBroker, tmp_path: Path, protocol: str
) -> None:
    """G11: a clear end within the limit; the advice names the protocol (exit 3)."""
    right = secured.settings("SASL_SSL")
    settings = right.model_copy(update={"security_protocol": protocol, "data_dir": tmp_path})
    answer = await cli(settings, "topics", "check")
    assert_told(answer, 3, protocol, "AGENTS_STREAM_SECURITY_PROTOCOL")


async def test_a_login_needs_a_name_and_a_password(tmp_path: Path) -> None:
    """Without them it is wrong usage, before anything is asked of Kafka."""
    settings = Settings(data_dir=tmp_path)
    answer = await cli(settings, "topics", "check", AGENTS_STREAM_SECURITY_PROTOCOL="SASL_SSL")
    assert_told(answer, 2, "AGENTS_STREAM_SASL_USERNAME")
