"""What the brokers say about the ground we stand on: whose cluster, which topics, which leaders.

aiokafka asks for metadata in a version that knows no topic ids (KIP-516), and not at all for the
ends of leader epochs (KIP-320). Both are needed to tell a topic from one of the same name that was
made later, and a log from one that lost its tail: names and offsets look the same.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final
from uuid import UUID

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError, KafkaError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)

from agents_stream.kafka.connection import client_options
from agents_stream.settings import Settings

ASK_LIMIT_S: Final = 20.0
_AGAIN_S: Final = 0.2
_UNKNOWN_TOPIC: Final = 3
_NO_ID: Final = bytes(16)
NO_EPOCH: Final = -1

Place = tuple[str, int]
"""A topic's full name and a partition number."""


class _Id:
    """A topic's id on the wire."""

    @staticmethod
    def encode(value: bytes) -> bytes:
        return value

    @staticmethod
    def decode(data: BytesIO) -> bytes:
        return data.read(16)


class _MetadataResponse(Response):  # type: ignore[misc]  # untyped in aiokafka
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Id),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MetadataRequestStruct(RequestStruct):  # type: ignore[misc]  # as above
    API_KEY = 3
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic_id", _Id),
                ("name", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataRequestStruct]):  # type: ignore[misc]  # as above
    API_KEY = 3

    def __init__(self, topics: Iterable[str]) -> None:
        self._topics: list[Any] = [(_NO_ID, topic, {}) for topic in topics]

    def build(self, request_struct_class: type[_MetadataRequestStruct]) -> _MetadataRequestStruct:
        return request_struct_class(self._topics, False, False, {})  # noqa: FBT003 - the wire's


class _EpochEndResponse(Response):  # type: ignore[misc]  # as above
    API_KEY = 23
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader_epoch", Int32),
                        ("end_offset", Int64),
                    ),
                ),
            ),
        ),
    )


class _EpochEndRequestStruct(RequestStruct):  # type: ignore[misc]  # as above
    API_KEY = 23
    API_VERSION = 3
    RESPONSE_TYPE = _EpochEndResponse
    SCHEMA = Schema(
        ("replica_id", Int32),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(
                        ("partition", Int32),
                        ("current_leader_epoch", Int32),
                        ("leader_epoch", Int32),
                    ),
                ),
            ),
        ),
    )


class _EpochEndRequest(Request[_EpochEndRequestStruct]):  # type: ignore[misc]  # as above
    API_KEY = 23

    def __init__(self, epochs: Mapping[Place, int]) -> None:
        topics: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for (topic, partition), epoch in epochs.items():
            topics[topic].append((partition, NO_EPOCH, epoch))
        self._topics: list[tuple[str, list[tuple[int, int, int]]]] = list(topics.items())

    def build(self, request_struct_class: type[_EpochEndRequestStruct]) -> _EpochEndRequestStruct:
        return request_struct_class(-1, self._topics)


@dataclass(frozen=True, slots=True)
class TopicSeen:
    """One topic: the id that only this making of it has, and each partition's leader epoch."""

    topic_id: str
    epochs: Mapping[int, int]
    leaders: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Survey:
    """One answer of the cluster. A topic that does not exist is not in `topics`."""

    cluster_id: str
    topics: Mapping[str, TopicSeen] = field(default_factory=dict)

    def topic_id(self, topic: str) -> str | None:
        """The id of a topic, None if there is none of that name."""
        seen = self.topics.get(topic)
        return None if seen is None else seen.topic_id

    def epoch(self, place: Place) -> int:
        """The leader epoch of a partition; NO_EPOCH where it is not known."""
        seen = self.topics.get(place[0])
        return NO_EPOCH if seen is None else seen.epochs.get(place[1], NO_EPOCH)


class Surveyor:
    """A client that asks only these two questions, on connections of its own."""

    def __init__(self, settings: Settings) -> None:
        self._client = AIOKafkaClient(**client_options(settings), metadata_max_age_ms=60_000)

    async def start(self) -> None:
        """Connect."""
        await self._client.bootstrap()

    async def stop(self) -> None:
        """Disconnect."""
        await self._client.close()

    async def look(self, topics: Iterable[str]) -> Survey:
        """Ask about topics by their full names.

        Raises:
            KafkaError: no broker answered within ASK_LIMIT_S.

        """
        request = _MetadataRequest(topics)
        async with _limited():
            while True:
                node = self._client.get_random_node()
                answer = None if node is None else await self._send(node, request)
                if answer is not None and all(
                    code in {0, _UNKNOWN_TOPIC} for code, *_ in answer.topics
                ):
                    return _survey(answer)
                await asyncio.sleep(_AGAIN_S)
                await self._client.force_metadata_update()

    async def epoch_ends(self, epochs: Mapping[Place, int]) -> dict[Place, int]:
        """Say where the given leader epoch of each partition ended.

        The answer is the first offset that a later leader wrote, or the end of the log. A
        partition whose leader knows nothing of that epoch is not in it.

        Raises:
            KafkaError: not all leaders answered within ASK_LIMIT_S.

        """
        ends: dict[Place, int] = {}
        async with _limited():
            while left := {place: epoch for place, epoch in epochs.items() if place not in ends}:
                seen = await self.look({topic for topic, _ in left})
                by_leader: dict[int, dict[Place, int]] = defaultdict(dict)
                for (topic, partition), epoch in left.items():
                    if topic in seen.topics:
                        leader = seen.topics[topic].leaders.get(partition, -1)
                        by_leader[leader][topic, partition] = epoch
                for leader, asked in by_leader.items():
                    answer = await self._send(leader, _EpochEndRequest(asked))
                    ends |= {} if answer is None else _ends(answer)
                if len(ends) < len(epochs):
                    await asyncio.sleep(_AGAIN_S)
                    await self._client.force_metadata_update()
        return {place: end for place, end in ends.items() if end >= 0}

    async def _send(self, node: int, request: Any) -> Any:
        try:
            return await self._client.send(node, request)
        except KafkaError as error:
            if not error.retriable:
                raise
            return None


class _limited:  # noqa: N801 - used like asyncio.timeout
    """Bounds a question: brokers that are away are an error like any other."""

    def __init__(self) -> None:
        self._timeout = asyncio.timeout(ASK_LIMIT_S)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *how: object) -> None:
        try:
            await self._timeout.__aexit__(*how)  # type: ignore[arg-type]
        except TimeoutError as error:
            raise KafkaConnectionError(f"no broker answered within {ASK_LIMIT_S:g} s") from error


def _survey(answer: Any) -> Survey:
    topics = {}
    for code, name, topic_id, _internal, partitions, *_ in answer.topics:
        if code == 0:
            leaders = {one[1]: one[2] for one in partitions}
            epochs = {one[1]: one[3] for one in partitions}
            topics[name] = TopicSeen(UUID(bytes=topic_id).hex, epochs, leaders)
    return Survey(answer.cluster_id or "", topics)


def _ends(answer: Any) -> dict[Place, int]:
    ends = {}
    for topic, partitions in answer.topics:
        for code, partition, _epoch, end in partitions:
            error = for_code(code)
            if code == 0:
                ends[topic, partition] = end
            elif not error.retriable:
                raise error(f"{topic}/{partition}")
    return ends
