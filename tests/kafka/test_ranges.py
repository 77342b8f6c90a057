"""A stretch of the log, read once."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer

from agents_stream.core.errors import RetryableError
from agents_stream.kafka import ranges, topic_admin
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import JOURNAL, load_topics
from agents_stream.settings import Settings
from tests.conftest import free_port


async def test_a_stretch_has_its_records_and_no_others(kafka_settings: Settings) -> None:
    """From the offset up to the other one, over several partitions, past transaction markers."""
    await topic_admin.apply(kafka_settings)
    topic = load_topics().name(JOURNAL, kafka_settings.topic_prefix)
    options = client_options(kafka_settings)
    async with AIOKafkaProducer(**options, transactional_id=f"tx-{topic}") as producer:
        for partition in (0, 1):
            await producer.begin_transaction()
            for number in range(5):
                await producer.send_and_wait(topic, b"%d" % number, partition=partition)
            await producer.commit_transaction()
    async with ranges.reader(kafka_settings) as client:
        places = [(topic, 0), (topic, 1), (topic, 2)]
        spans = {(topic, 0): (0, 6), (topic, 1): (0, 6), (topic, 2): (0, 0)}
        async with asyncio.timeout(10):  # the coordinator writes the markers later
            while await ranges.bounds(client, places) != spans:  # noqa: ASYNC110 - Kafka rings no bell
                await asyncio.sleep(0.05)
        stretches = {(topic, 0): (1, 3), (topic, 1): (3, 6), (topic, 2): (0, 0)}
        found = [(line.partition, line.offset) async for line in ranges.read(client, stretches)]
    assert sorted(found) == [(0, 1), (0, 2), (1, 3), (1, 4)]


async def test_a_broker_that_is_away_is_said_so() -> None:
    """G11: the views answer 503 and do not hang."""
    nowhere = Settings(bootstrap_servers=f"127.0.0.1:{free_port()}")
    with pytest.raises(RetryableError, match="cannot be read just now"):
        async with ranges.reader(nowhere):
            pass
