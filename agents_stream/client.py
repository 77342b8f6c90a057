"""What producers import: `async with AgentsStream(...) as stream: await stream.send(...)`.

The client judges an event as the worker will, before anything is sent; keys it with its
session's id, so that it lies where Java's default partitioner would put it; and returns once
Kafka has acknowledged it. `agents_stream.client_sync` is the same without asyncio.

Order: events of one session are applied in the order of their record timestamps, across topics.
What one client is given for a session, one await after the other or in one `send_many`, keeps
its order: where the topic changes, the next event starts a millisecond after the last one was
acknowledged, so that their timestamps differ. Two clients must do that between themselves.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from types import TracebackType
from typing import Any, Final, Self

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    UnknownTopicOrPartitionError,
)

from agents_stream.client_turns import Turns
from agents_stream.core.envelope import SealedEvent, read_result, seal
from agents_stream.core.errors import (
    AgentsStreamError,
    BrokerUnreachable,
    InvalidEvent,
    TerminalError,
)
from agents_stream.core.events import (
    CollectingDataStarted,
    CustomerMessage,
    DataCaptured,
    Event,
    OperatorAction,
    ProactiveSend,
    PromosOffered,
    SessionClose,
    SessionStarted,
    SessionUpdated,
    ToolError,
    ToolResult,
)
from agents_stream.core.strict_json import parse_object
from agents_stream.kafka.connection import client_options, require_broker
from agents_stream.kafka.topics import TOOL_RESULTS, load_topics
from agents_stream.settings import Settings

__all__ = [
    "AgentsStream",
    "AgentsStreamError",
    "BrokerUnreachable",
    "CollectingDataStarted",
    "CustomerMessage",
    "DataCaptured",
    "Event",
    "InvalidEvent",
    "OperatorAction",
    "ProactiveSend",
    "PromosOffered",
    "Sent",
    "SessionClose",
    "SessionStarted",
    "SessionUpdated",
    "TerminalError",
    "ToolError",
    "ToolResult",
]

log = structlog.get_logger()

TIMEOUT_S: Final = 20.0
MAX_IN_FLIGHT: Final = 1_000
MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
"""A record of 1 MiB and its frame must fit; the topics take more."""
CLOSE_S: Final = 5.0
ASK_AGAIN_S: Final = 2.0


_UNHARMED: Final = (UnknownTopicOrPartitionError, KafkaTimeoutError)
"""Failures before a record got its number: the producer's sequence has no gap after them."""


@dataclass(frozen=True, slots=True)
class Sent:
    """Where Kafka put an event. `timestamp` is the broker's, in milliseconds; `id` the event's."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    id: str


class AgentsStream:
    """A producer of events: idempotent, all replicas acknowledge, one await per event.

    Args:
        bootstrap_servers: where Kafka is, as `host:port,host:port`.
        topic_prefix: what goes before every topic's name.
        timeout_s: the longest time that connecting may take, and that sending may take (with
            `send_many`: each thousand events).
        settings: all of the above and security, for those who have them.

    What is left out comes from `AGENTS_STREAM_*` variables, then `.env`, then the defaults;
    so do encryption and credentials.

    """

    def __init__(
        self,
        bootstrap_servers: str | None = None,
        topic_prefix: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        settings: Settings | None = None,
    ) -> None:
        given: dict[str, Any] = {}
        if bootstrap_servers is not None:
            given["bootstrap_servers"] = bootstrap_servers
        if topic_prefix is not None:
            given["topic_prefix"] = topic_prefix
        self._settings = settings if settings is not None else Settings(**given)
        self._timeout_s = timeout_s
        self._producer: AIOKafkaProducer | None = None
        self._connecting: asyncio.Task[AIOKafkaProducer] | None = None
        self._closed = False
        self._turns = Turns()
        self._topics = _topics_by_name(self._settings.topic_prefix)

    @classmethod
    def from_settings(cls, settings: Settings, timeout_s: float = TIMEOUT_S) -> Self:
        """Return a client for the Kafka of `settings`."""
        return cls(timeout_s=timeout_s, settings=settings)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect.

        Raises:
            BrokerUnreachable: no Kafka answered within the time allowed.

        """
        await self._connected()

    async def close(self) -> None:
        """Disconnect. What was not acknowledged by now was never reported as sent."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer)

    # `id` is the word that producers know from the envelope.
    async def send(self, event: Event, *, id: str | None = None) -> Sent:  # noqa: A002
        """Send one event and wait until Kafka has it.

        `id` is what repetitions are recognised by: give one that your retries repeat. Without it
        a fresh one is made, except for a `CustomerMessage`, which its `message_id` identifies.

        Raises:
            InvalidEvent: the event would not be accepted; nothing was sent.
            BrokerUnreachable: Kafka did not acknowledge in time. It may have the event: send it
                again with the same id.
            TerminalError: the topic does not exist.

        """
        envelope = _enveloped(event)
        if id is not None:
            envelope["id"] = id
        return await self.send_envelope(envelope)

    async def send_envelope(self, envelope: Mapping[str, Any]) -> Sent:
        """Send one event in its envelope, `{"name", "data", "id"?, "ts"?}`; as `send` does."""
        return (await self.publish([_sealed(envelope)]))[0]

    async def send_many(self, events: Iterable[Event | Mapping[str, Any]]) -> list[Sent]:
        """Send events and envelopes; all are judged before the first one is sent.

        Events of one session keep their order; sessions go beside each other.

        Raises:
            InvalidEvent: one would not be accepted, the detail says which; nothing was sent.
            BrokerUnreachable: Kafka did not acknowledge all in time; it may have some.
            TerminalError: a topic does not exist.

        """
        sealed = []
        for index, event in enumerate(events):
            try:
                sealed.append(_sealed(_enveloped(event) if isinstance(event, Event) else event))
            except InvalidEvent as error:
                raise InvalidEvent(error.reason, f"event {index}: {error.detail}") from error
        return await self.publish(sealed)

    async def send_result(self, result: ToolResult) -> Sent:
        """Report how an attempt of a command ended, where a team performs commands itself.

        Raises:
            InvalidEvent, BrokerUnreachable, TerminalError: as `send` does.

        """
        raw = _encoded(result.to_data())
        session_id = read_result(raw).session_id
        sealed = SealedEvent(ToolResult.NAME, session_id, result.command_id, raw)
        return (await self.publish([sealed]))[0]

    async def publish(self, events: Sequence[SealedEvent]) -> list[Sent]:
        """Publish events that were judged before, in their order per session.

        Raises:
            BrokerUnreachable: Kafka did not acknowledge all in time; it may have some.
            TerminalError: a topic does not exist.

        """
        sent: list[Sent] = []
        for start in range(0, len(events), MAX_IN_FLIGHT):
            sent += await self._publish_some(events[start : start + MAX_IN_FLIGHT])
        return sent

    async def _publish_some(self, events: Sequence[SealedEvent]) -> list[Sent]:
        """Publish up to `MAX_IN_FLIGHT` events; sessions beside each other."""
        producer = await self._connected()
        places: dict[str, list[int]] = {}
        for index, event in enumerate(events):
            places.setdefault(event.session_id, []).append(index)
        tasks = [
            asyncio.create_task(self._publish_session(producer, [events[i] for i in indices]))
            for indices in places.values()
        ]
        try:
            async with asyncio.timeout(self._timeout_s):
                per_session = await asyncio.gather(*tasks)
        except TimeoutError:
            raise self._unreachable(f"within {self._timeout_s:g} s") from None
        except KafkaError as error:
            if not isinstance(error, _UNHARMED):
                await self._discard(producer)
            raise await self._translated(error) from error
        finally:
            for task in tasks:
                task.cancel()
        order = chain.from_iterable(places.values())
        by_place = dict(zip(order, chain.from_iterable(per_session), strict=True))
        return [by_place[index] for index in range(len(events))]

    async def _publish_session(
        self, producer: AIOKafkaProducer, events: Sequence[SealedEvent]
    ) -> list[Sent]:
        """Publish events of one session; what follows on the same topic needs no waiting."""
        sent: list[Sent] = []
        async with self._turns.of(events[0].session_id) as turn:
            for topic, run in groupby(events, key=lambda event: self._topics[event.name]):
                await turn.wait_for(topic)
                sent += await _publish_run(producer, topic, list(run))
                turn.acknowledged(topic)
        return sent

    async def _connected(self) -> AIOKafkaProducer:
        """Return the producer; all who wait for a connection share one attempt at it."""
        if self._closed:
            raise TerminalError("this client is closed: make a new one")
        if self._producer is not None:
            return self._producer
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> AIOKafkaProducer:
        await require_broker(self._settings, self._timeout_s)
        producer = AIOKafkaProducer(
            **client_options(self._settings),
            acks="all",
            enable_idempotence=True,
            max_request_size=MAX_REQUEST_BYTES,
            # Half: where one attempt hangs, there is time for another.
            request_timeout_ms=max(1_000, int(self._timeout_s * 500)),
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                await producer.start()
        except (KafkaError, TimeoutError) as error:
            raise self._unreachable(f"({error!r})") from error
        else:
            self._producer = producer
            return producer
        finally:
            if self._producer is not producer:
                await _stop(producer)

    async def _discard(self, producer: AIOKafkaProducer) -> None:
        """Give up a producer after a failed delivery: its sequence of numbers has a gap."""
        if self._producer is producer:
            self._producer = None
            await _stop(producer)

    def _unreachable(self, detail: str) -> BrokerUnreachable:
        servers = self._settings.bootstrap_servers
        return BrokerUnreachable(f"Kafka at {servers} did not acknowledge {detail}")

    async def _translated(self, error: KafkaError) -> TerminalError:
        if isinstance(error, UnknownTopicOrPartitionError):
            try:  # aiokafka says so as well when nobody answered its question
                await require_broker(self._settings, ASK_AGAIN_S)
            except BrokerUnreachable as unreachable:
                return unreachable
            return TerminalError(
                f"Kafka at {self._settings.bootstrap_servers} does not have the event's topic:"
                " create the topics with `agents-stream topics apply`"
            )
        return self._unreachable(f"({error!r})")


def _topics_by_name(prefix: str) -> dict[str, str]:
    """Map what can be published to its topic's full name."""
    topics = load_topics()
    by_name = {name: topics.name(spec.name, prefix) for name, spec in topics.events.items()}
    by_name[ToolResult.NAME] = topics.name(TOOL_RESULTS, prefix)
    return by_name


def _enveloped(event: Event) -> dict[str, Any]:
    return {"name": event.NAME, "data": event.to_data(), "ts": time.time_ns() // 1_000_000}


def _sealed(envelope: Mapping[str, Any]) -> SealedEvent:
    return seal(parse_object(_encoded(envelope)), uuid.uuid4().hex)


def _encoded(value: Mapping[str, Any]) -> bytes:
    """Write a value as JSON; what is none (NaN, a date, a lone surrogate) is an `InvalidEvent`."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent("invalid_json", f"this is no JSON ({type(error).__name__})") from error


async def _publish_run(
    producer: AIOKafkaProducer, topic: str, events: Sequence[SealedEvent]
) -> list[Sent]:
    """Publish events of one session to one topic: one partition, so in their order."""
    futures = [
        await producer.send(topic, event.value, key=event.session_id.encode()) for event in events
    ]
    acks = await asyncio.gather(*futures)
    return [
        Sent(topic, ack.partition, ack.offset, ack.timestamp, event.event_id)
        for event, ack in zip(events, acks, strict=True)
    ]


async def _stop(producer: AIOKafkaProducer) -> None:
    """Stop a producer in bounded time, also while no broker answers."""
    # An idempotent producer retries for ever, and its stop() waits for that. Here nobody waits any
    # more: what is still under way was reported as failed, or is about to be by its own limit.
    # For "stop now" there is no public call.
    try:
        async with asyncio.timeout(CLOSE_S):
            await producer._sender.close()  # noqa: SLF001
    except TimeoutError:
        log.warning("producer_stopped_hard", after_s=CLOSE_S)
    producer._closed = True  # noqa: SLF001
    await producer.client.close()
