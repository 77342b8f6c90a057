"""Committed offsets: a coordinator that cannot tell has not said "none"."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import GroupAuthorizationFailedError
from aiokafka.protocol.commit import OffsetFetchRequest, OffsetFetchResponse_v3
from aiokafka.structs import TopicPartition

from agents_stream.kafka import topic_admin
from agents_stream.kafka.committed import heed_coordinator
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import JOURNAL, load_topics
from agents_stream.settings import Settings

LOADING, NOT_AVAILABLE, MOVED, FORBIDDEN = 14, 15, 16, 30


@pytest.fixture
async def consumer(kafka_settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    """Give a member of a group that has committed an offset, and that heeds its coordinator."""
    await topic_admin.apply(kafka_settings)
    options = client_options(kafka_settings)
    group = f"{kafka_settings.topic_prefix}group"
    one = AIOKafkaConsumer(**options, group_id=group, enable_auto_commit=False)
    await one.start()
    heed_coordinator(one)
    try:
        one.assign([_place(kafka_settings)])
        await one.commit({_place(kafka_settings): 7})
        yield one
    finally:
        await one.stop()


def _place(settings: Settings) -> TopicPartition:
    return TopicPartition(load_topics().name(JOURNAL, settings.topic_prefix), 0)


def answer_first(consumer: AIOKafkaConsumer, *codes: int) -> list[int]:
    """Let the broker's next answers be these errors of the whole request; what is left of them."""
    client, left = consumer._client, list(codes)
    original = client.send

    async def send(node: Any, request: Any, **more: Any) -> Any:
        if isinstance(request, OffsetFetchRequest) and left:
            return OffsetFetchResponse_v3(0, [], left.pop(0))
        return await original(node, request, **more)

    client.send = send
    return left


@pytest.mark.parametrize("code", [LOADING, NOT_AVAILABLE, MOVED])
async def test_a_coordinator_that_cannot_tell_is_asked_again(
    consumer: AIOKafkaConsumer, kafka_settings: Settings, code: int
) -> None:
    """G1, G11: after a broker's restart a group that has offsets is not taken for one without.

    Seen in chaos: a gateway refused to start ("has lost its offsets") because the broker was still
    loading the group; at an assignment the same answer would have begun at the first record.
    """
    left = answer_first(consumer, code, code)
    assert await consumer.committed(_place(kafka_settings)) == 7
    assert left == []


async def test_what_does_not_pass_is_an_error(
    consumer: AIOKafkaConsumer, kafka_settings: Settings
) -> None:
    """A refusal for good is told, and is no "none" either."""
    answer_first(consumer, FORBIDDEN)
    with pytest.raises(GroupAuthorizationFailedError):
        await consumer.committed(_place(kafka_settings))


async def test_none_is_none(consumer: AIOKafkaConsumer, kafka_settings: Settings) -> None:
    """Where nothing was committed, that is the answer."""
    other = TopicPartition(_place(kafka_settings).topic, 1)
    assert await consumer.committed(other) is None
