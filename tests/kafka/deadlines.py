"""Deadlines that fall due all the time, and how late each of them ended."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from agents_stream.kafka.connection import client_options
from agents_stream.settings import Settings

EVERY_S: Final = 0.03
COMMANDS: Final = "tool.whatsapp.message.send"


@dataclass
class Deadlines:
    """Arms a deadline every few milliseconds, each of a session of its own, and sees them end."""

    settings: Settings
    due: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    _count: int = 0

    async def arm_for_ever(self) -> None:
        """Begin to collect the data of one customer after the other, at an even pace."""
        topic = self.settings.topic_prefix + "agent.collecting_data.started"
        producer = AIOKafkaProducer(**client_options(self.settings), acks="all")
        await producer.start()
        try:
            while True:
                session = f"failover-{self._count}"
                self._count += 1
                data = {"sessionId": session, "conversationId": "c", "workspaceId": "w"}
                acked = await producer.send_and_wait(topic, orjson.dumps(data), session.encode())
                self.due[session] = acked.timestamp + self.settings.data_reply_timeout
                await asyncio.sleep(EVERY_S)
        finally:
            await producer.stop()

    async def watch_for_ever(self) -> None:
        """Note the broker's stamp of every command."""
        consumer: Any = AIOKafkaConsumer(
            self.settings.topic_prefix + COMMANDS,
            **client_options(self.settings),
            auto_offset_reset="earliest",
        )
        await consumer.start()
        try:
            async for record in consumer:
                self.ended.setdefault(record.key.decode(), record.timestamp)
        finally:
            await consumer.stop()

    def lateness(self, start_ms: float, end_ms: float) -> list[float]:
        """Of every deadline due in a stretch of time, in ms; infinite if it never ended."""
        return [
            self.ended.get(session, float("inf")) - due
            for session, due in self.due.items()
            if start_ms <= due < end_ms
        ]

    async def all_ended(self, before_ms: float, limit_s: float = 30.0) -> None:
        """Wait until every deadline that was due before has ended."""
        waited_until = time.monotonic() + limit_s
        while any(due < before_ms and one not in self.ended for one, due in self.due.items()):
            if time.monotonic() > waited_until:
                return  # the figures will show it
            await asyncio.sleep(0.2)

    @classmethod
    @asynccontextmanager
    async def running(cls, settings: Settings) -> AsyncIterator[Self]:
        """Arm and watch for as long as the context lasts."""
        one = cls(settings)
        parts = (one.arm_for_ever(), one.watch_for_ever())
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            yield one
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def now_ms() -> float:
    """The time of this machine's clock, which is the broker's as well."""
    return time.time() * 1_000
