"""`topics apply` and `topics check` against a real broker."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import InvalidTimestampError

from agents_stream.core.errors import BrokerUnreachable, TerminalError
from agents_stream.kafka import topic_admin, topics
from agents_stream.kafka.connection import client_options, require_broker
from agents_stream.kafka.topic_admin import Difference, breaks_guarantee, expected_config
from agents_stream.kafka.topics import load_topics
from agents_stream.settings import Settings
from tests.conftest import free_port

DAY_MS = 86_400_000


@asynccontextmanager
async def admin_of(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """Give an admin client, closed at the end."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def alter(settings: Settings, topic: str, **changed: str) -> None:
    """Change settings of a topic behind our back (Kafka's call replaces all of them)."""
    config = expected_config(load_topics()[topic], settings)
    config |= {name.replace("_", "."): value for name, value in changed.items()}
    resource = ConfigResource(ConfigResourceType.TOPIC, settings.topic_prefix + topic, config)
    async with admin_of(settings) as admin:
        for response in await admin.alter_configs([resource]):
            assert all(code == 0 for code, *_ in response.resources), response


async def differences(settings: Settings) -> list[Difference]:
    """Check until something is found: a broker shows a change some milliseconds after its ack."""
    for _ in range(100):
        if found := await topic_admin.check(settings):
            return found
        await asyncio.sleep(0.05)
    raise AssertionError("no difference is found")


async def test_apply_creates_what_is_missing_and_nothing_twice(kafka_settings: Settings) -> None:
    """The second apply finds all done, and check agrees with what the first one made."""
    created = await topic_admin.apply(kafka_settings)
    assert created == list(load_topics().names(kafka_settings.topic_prefix))
    assert await topic_admin.apply(kafka_settings) == []
    assert await topic_admin.check(kafka_settings) == []


async def test_apply_at_once_from_many_machines(kafka_settings: Settings) -> None:
    """Racing applies all succeed, and each topic is created by exactly one of them."""
    lists = await asyncio.gather(*(topic_admin.apply(kafka_settings) for _ in range(3)))
    created = [name for one in lists for name in one]
    assert sorted(created) == sorted(load_topics().names(kafka_settings.topic_prefix))
    assert await topic_admin.check(kafka_settings) == []


async def test_apply_fills_a_gap_only(kafka_settings: Settings) -> None:
    """One deleted topic comes back, the others are left as they are."""
    await topic_admin.apply(kafka_settings)
    outcomes = kafka_settings.topic_prefix + topics.OUTCOMES
    async with admin_of(kafka_settings) as admin:
        await admin.delete_topics([outcomes])
    [missing] = await differences(kafka_settings)
    assert (missing.topic, missing.setting) == (outcomes, topic_admin.MISSING)
    assert missing.breaks_guarantee
    assert "topics apply" in missing.sentence
    assert await topic_admin.apply(kafka_settings) == [outcomes]


async def test_apply_says_what_kafka_refuses(kafka_settings: Settings) -> None:
    """More replicas than there are brokers is an error in Kafka's own words."""
    with pytest.raises(TerminalError, match=r"InvalidReplicationFactor.*session\.journal|replic"):
        await topic_admin.apply(kafka_settings.model_copy(update={"replication": 3}))


async def test_looking_never_creates_a_topic(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question for a missing topic would create it on a cluster with auto-creation: ask for all.

    The embedded broker has auto-creation off, so the request itself is looked at.
    """
    asked: list[object] = []
    ask = AIOKafkaAdminClient.describe_topics

    async def describe(self: AIOKafkaAdminClient, names: list[str] | None = None) -> list[object]:
        asked.append(names)
        return list(await ask(self, names))

    monkeypatch.setattr(AIOKafkaAdminClient, "describe_topics", describe)
    await topic_admin.check(kafka_settings)
    assert asked == [None]


@pytest.mark.parametrize(
    ("topic", "setting", "value", "breaks"),
    [
        (topics.JOURNAL, "message.timestamp.type", "CreateTime", True),
        (topics.JOURNAL, "cleanup.policy", "compact", True),
        (topics.JOURNAL, "cleanup.policy", "compact,delete", True),
        (topics.JOURNAL, "retention.ms", str(30 * DAY_MS), False),
        (topics.JOURNAL, "retention.ms", str(DAY_MS), True),
        (topics.JOURNAL, "retention.bytes", "1000000", True),
        (topics.JOURNAL, "max.message.bytes", "1000000", True),
        (topics.CUSTOMER_MESSAGE, "retention.ms", "-1", False),
        (topics.DEAD_LETTERS, "max.message.bytes", "8000000", False),
        (topics.SESSIONS_CHANGELOG, "message.timestamp.before.max.ms", "3600000", True),
        (topics.SESSIONS_CHANGELOG, "message.timestamp.type", "LogAppendTime", True),
        (topics.SESSIONS_CHANGELOG, "min.compaction.lag.ms", "0", True),
        (topics.SESSIONS_CHANGELOG, "segment.ms", "7200000", False),
        (topics.GATEWAY_MEMORY, "cleanup.policy", "delete", True),
    ],
)
async def test_check_finds_a_changed_setting(
    kafka_settings: Settings, topic: str, setting: str, value: str, *, breaks: bool
) -> None:
    """Each is named with what it should be, and known to break a guarantee or not."""
    kafka_settings = kafka_settings.model_copy(update={"partitions": 1})
    await topic_admin.apply(kafka_settings)
    await alter(kafka_settings, topic, **{setting.replace(".", "_"): value})
    full_name = kafka_settings.topic_prefix + topic
    expected = load_topics()[topic].config[setting]
    [found] = await differences(kafka_settings)
    assert found == Difference(full_name, setting, expected, value, breaks_guarantee=breaks)
    assert all(word in found.sentence for word in (full_name, setting, expected, value))


async def test_check_finds_a_wrong_partition_count(kafka_settings: Settings) -> None:
    """A session's events would be spread over partitions of different numbers (G5)."""
    name = kafka_settings.topic_prefix + topics.TOOL_RESULTS
    config = expected_config(load_topics()[topics.TOOL_RESULTS], kafka_settings)
    async with admin_of(kafka_settings) as admin:
        await admin.create_topics([NewTopic(name, 3, 1, topic_configs=config)])
    await topic_admin.apply(kafka_settings)
    [found] = await differences(kafka_settings)
    assert found == Difference(name, topic_admin.PARTITIONS, "4", "3", breaks_guarantee=True)


async def test_check_finds_too_few_replicas(kafka_settings: Settings) -> None:
    """One replica where three are asked for is a difference, though no worker stops for it."""
    await topic_admin.apply(kafka_settings)
    asked = kafka_settings.model_copy(update={"replication": 3})
    found = await topic_admin.check(asked)
    assert {one.setting for one in found} == {topic_admin.REPLICATION, "min.insync.replicas"}
    assert len(found) == 2 * len(load_topics().specs)
    assert not any(one.breaks_guarantee for one in found)


def test_what_breaks_a_guarantee_is_said_of_the_unknown_too() -> None:
    """A broker that does not know the fence cannot keep it (G9)."""
    unknown = "unknown to this broker"
    assert breaks_guarantee("message.timestamp.before.max.ms", "10000", unknown)
    assert breaks_guarantee("min.compaction.lag.ms", "600000", unknown)


@pytest.mark.parametrize("call", [topic_admin.apply, topic_admin.check])
async def test_without_a_broker_it_says_so(
    call: Callable[[Settings], Awaitable[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody there: BrokerUnreachable with the address, within the time allowed (G11)."""

    async def soon(settings: Settings) -> None:
        await connect(settings, timeout_s=0.5)

    connect = require_broker
    monkeypatch.setattr(topic_admin, "require_broker", soon)
    port = free_port()
    with pytest.raises(BrokerUnreachable, match=f"127.0.0.1:{port}"):
        await call(Settings(bootstrap_servers=f"127.0.0.1:{port}"))


@asynccontextmanager
async def producer_of(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """Give a producer like ours, stopped at the end."""
    producer = AIOKafkaProducer(**client_options(settings), acks="all", enable_idempotence=True)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def test_the_brokers_fence_refuses_a_worker_that_was_away(kafka_settings: Settings) -> None:
    """G9: on the changelog a record stamped before the fence is refused, a fresh one is taken."""
    await topic_admin.apply(kafka_settings)
    changelog = kafka_settings.topic_prefix + topics.SESSIONS_CHANGELOG
    now_ms = int(time.time() * 1000)
    async with producer_of(kafka_settings) as producer:
        taken = await producer.send_and_wait(changelog, b"v", key=b"k", timestamp_ms=now_ms)
        assert taken.timestamp == now_ms
        with pytest.raises(InvalidTimestampError):
            await producer.send_and_wait(changelog, b"v", key=b"k", timestamp_ms=now_ms - 11_000)


async def test_the_ack_tells_the_brokers_time(kafka_settings: Settings) -> None:
    """G4, G5: on a LogAppendTime topic the ack carries the broker's time, not the producer's."""
    await topic_admin.apply(kafka_settings)
    journal = kafka_settings.topic_prefix + topics.JOURNAL
    before_ms = int(time.time() * 1000)
    async with producer_of(kafka_settings) as producer:
        ack = await producer.send_and_wait(journal, b"v", key=b"k", timestamp_ms=5)
    assert ack.timestamp_type == 1
    assert before_ms <= ack.timestamp <= int(time.time() * 1000)


async def test_inputs_take_what_we_report_as_too_large(kafka_settings: Settings) -> None:
    """G1: a record far above 1 MiB gets in, so that it ends in the dead letters and is not lost."""
    await topic_admin.apply(kafka_settings)
    topic = kafka_settings.topic_prefix + topics.CUSTOMER_MESSAGE
    options = client_options(kafka_settings)
    producer = AIOKafkaProducer(**options, acks="all", max_request_size=24 * 1024 * 1024)
    await producer.start()
    try:
        assert await producer.send_and_wait(topic, bytes(20 * 1024 * 1024), key=b"k")
    finally:
        await producer.stop()
