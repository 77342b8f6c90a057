"""Latency and lateness at a low rate, and what an idle worker costs.

- event → command: from the ack of `agent/proactive.send` until its command can be read.
- due → command: from a promos deadline's due time (broker clock) until its order can be read. The
  broker runs on this machine, so the two clocks are one.
"""

import asyncio
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from agents_stream.kafka.connection import client_options
from agents_stream.settings import Settings


@dataclass
class Measured:
    """Milliseconds, one per session."""

    event_to_command: list[float] = field(default_factory=list)
    due_to_command: list[float] = field(default_factory=list)


async def measure(settings: Settings, sessions: int, rate: float) -> Measured:
    """Run `sessions` at `rate` a second through a worker that is already running."""
    prefix = settings.topic_prefix
    producer = AIOKafkaProducer(**client_options(settings), acks="all")
    consumer = AIOKafkaConsumer(
        prefix + "tool.whatsapp.message.send",
        prefix + "tool.crm.order.create",
        **client_options(settings),
        auto_offset_reset="latest",
    )
    await producer.start()
    await consumer.start()
    for tp in consumer.assignment():
        await consumer.position(tp)
    result, acked, due = Measured(), dict[str, float](), dict[str, float]()
    listening = asyncio.create_task(_listen(consumer, result, acked, due, sessions))
    for _ in range(sessions):
        await _one(producer, settings, acked, due)
        await asyncio.sleep(1 / rate)
    await asyncio.wait_for(listening, 60)
    await consumer.stop()
    await producer.stop()
    return result


async def _one(
    producer: Any, settings: Settings, acked: dict[str, float], due: dict[str, float]
) -> None:
    session = f"bench-{uuid.uuid4().hex[:12]}"
    ids = {"sessionId": session, "conversationId": "c", "workspaceId": "w"}

    async def send(topic: str, **data: Any) -> Any:
        value = orjson.dumps({**ids, **data})
        return await producer.send_and_wait(
            settings.topic_prefix + topic, value, key=session.encode()
        )

    await send("agent.session.started", agentId="a", contactId="k", mode="m")
    await asyncio.sleep(0.002)
    await send("agent.proactive.send", messageType="reminder")
    acked[session] = time.time() * 1_000
    await asyncio.sleep(0.002)
    offered = await send("agent.promos.offered", packOptions=["1x"])
    due[session] = offered.timestamp + settings.promos_reply_timeout


async def _listen(
    consumer: Any, result: Measured, acked: dict[str, float], due: dict[str, float], sessions: int
) -> None:
    async for record in consumer:
        now = time.time() * 1_000
        session = orjson.loads(record.value)["sessionId"]
        if record.topic.endswith("order.create"):
            result.due_to_command.append(now - due[session])
        else:
            result.event_to_command.append(now - acked[session])
        if len(result.due_to_command) == len(result.event_to_command) == sessions:
            return
