"""Where partitions end, asked beside the consumer's connection (DESIGN §2)."""

import asyncio

from aiokafka import AIOKafkaProducer

from agents_stream.kafka import topic_admin
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.offsets import EndOffsets
from agents_stream.kafka.topics import JOURNAL, load_topics
from agents_stream.settings import Settings


async def test_an_open_transaction_is_not_waited_for(kafka_settings: Settings) -> None:
    """The answer is the last stable offset: what nobody may read yet belongs to no round."""
    await topic_admin.apply(kafka_settings)
    topic = load_topics().name(JOURNAL, kafka_settings.topic_prefix)
    ends = EndOffsets(kafka_settings)
    await ends.start()
    options = client_options(kafka_settings)
    try:
        async with AIOKafkaProducer(**options) as plain:
            await plain.send_and_wait(topic, b"1", partition=0)
        assert await ends.ask([(topic, 0), (topic, 1)]) == {(topic, 0): 1, (topic, 1): 0}
        async with AIOKafkaProducer(**options, transactional_id=f"tx-{topic}") as producer:
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"2", partition=0)
            assert await ends.ask([(topic, 0)]) == {(topic, 0): 1}
            await producer.commit_transaction()
            # The record and the marker of its commit, which the coordinator writes later.
            async with asyncio.timeout(10):
                while await ends.ask([(topic, 0)]) != {(topic, 0): 3}:  # noqa: ASYNC110 - Kafka rings no bell
                    await asyncio.sleep(0.05)
    finally:
        await ends.stop()
