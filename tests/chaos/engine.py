"""The agent engine and the customers' side of a run: a producer that keeps its own books.

It sends straight to Kafka and notes for each try whether Kafka acknowledged it, and where. What
was not acknowledged it sends again, with the same id, for as long as the broker is away: so some
events stand in their topic twice, and must count once (G2).
"""

import asyncio
import time
import uuid
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tests.chaos.history import Sent, Try

REQUEST_TIMEOUT_MS: Final = 4_000
PAUSE_S: Final = 0.3
NEXT_MS_S: Final = 0.002
BARE_EVERY: Final = 3


def now_ms() -> int:
    """The machine's time; the broker runs on the same clock."""
    return time.time_ns() // 1_000_000


class Engine:
    """Sends events and remembers each of them."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap,
            acks="all",
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            retry_backoff_ms=100,
            max_request_size=8 * 1024 * 1024,
        )
        self.sent: list[Sent] = []

    async def start(self) -> None:
        """Connect."""
        await self._producer.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._producer.stop()

    async def send(self, name: str, session: str, **data: Any) -> int:
        """Publish an event of a session; when Kafka stamped it, once it has acknowledged it.

        A customer's message goes as bare data with its own id, most else as an envelope with an id,
        and some as bare data without any: sent again, that is another event.
        """
        topic = "agent.operator" if name == "operator.action" else f"agent.{name}"
        whole = {"sessionId": session, **data}
        identity = uuid.uuid4().hex
        if name == "customer.message":
            whole["messageId"] = identity
            value = orjson.dumps(whole)
        elif len(self.sent) % BARE_EVERY == 0:
            identity, value = "", orjson.dumps(whole)
        else:
            value = orjson.dumps({"name": f"agent/{name}", "data": whole, "id": identity})
        return await self.publish(Sent(session, topic, f"agent/{name}", identity), value)

    async def publish(self, sent: Sent, value: bytes) -> int:
        """Send a value until Kafka has it; the broker's time of the first acknowledged try."""
        self.sent.append(sent)
        while True:
            tried = Try(now_ms())
            sent.tries.append(tried)
            try:
                metadata = await self._producer.send_and_wait(
                    sent.topic, value, key=sent.session_id.encode()
                )
            except KafkaError as error:
                tried.ended_at_ms, tried.error = now_ms(), type(error).__name__
                await asyncio.sleep(PAUSE_S)
                continue
            tried.ended_at_ms = now_ms()
            tried.partition, tried.offset = metadata.partition, metadata.offset
            tried.timestamp = metadata.timestamp
            await asyncio.sleep(NEXT_MS_S)
            return int(metadata.timestamp)
