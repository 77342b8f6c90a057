"""The floor: a bare chain of the same produces and fetches, with no JSON and no Faust.

An event goes through four topics before its command can be read: its own, the journal, the
actions and the tool's. Each hop is one produce whose ack is awaited and one fetch; a fifth produce
(the changelog) is awaited before the third hop.
"""

import asyncio
import time
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from agents_stream.kafka.connection import client_options
from agents_stream.settings import Settings

TOPICS = ("agent.proactive.send", "session.journal", "session.actions")
SIDE = "agents-stream-sessions-changelog"
LAST = "tool.whatsapp.message.send"


async def bare_chain(settings: Settings, count: int, rate: float) -> list[float]:
    """Milliseconds from the first ack to the last fetch, for `count` records at `rate` a second."""
    names = [settings.topic_prefix + name for name in (*TOPICS, LAST)]
    producer = AIOKafkaProducer(**client_options(settings), acks="all", enable_idempotence=True)
    await producer.start()
    consumers = [
        AIOKafkaConsumer(name, **client_options(settings), fetch_max_wait_ms=500) for name in names
    ]
    for consumer in consumers:
        await consumer.start()
        await consumer.seek_to_end()
        for tp in consumer.assignment():
            await consumer.position(tp)
    acked: dict[bytes, float] = {}
    took: list[float] = []
    hops = [
        asyncio.create_task(_hop(consumer, producer, following, settings))
        for consumer, following in zip(consumers, names[1:], strict=False)
    ]
    last = asyncio.create_task(_last(consumers[-1], acked, took, count))
    for number in range(count):
        key = str(number).encode()
        await producer.send_and_wait(names[0], b"x" * 300, key=key)
        acked[key] = time.perf_counter()
        await asyncio.sleep(1 / rate)
    await asyncio.wait_for(last, 30)
    for task in hops:
        task.cancel()
    await asyncio.gather(*hops, return_exceptions=True)
    for consumer in consumers:
        await consumer.stop()
    await producer.stop()
    return took


async def _hop(consumer: Any, producer: Any, following: str, settings: Settings) -> None:
    async for record in consumer:
        if following.endswith("session.actions"):
            stamp = record.timestamp
            side = settings.topic_prefix + SIDE
            await producer.send_and_wait(side, record.value, key=record.key, timestamp_ms=stamp)
        await producer.send_and_wait(following, record.value, key=record.key)


async def _last(consumer: Any, acked: dict[bytes, float], took: list[float], count: int) -> None:
    async for record in consumer:
        took.append((time.perf_counter() - acked[record.key]) * 1_000)
        if len(took) == count:
            return
