"""Asking brokers for end offsets, over a connection of its own.

On the consumer's connection the question would wait behind the long poll (8.5 ms at the median,
1.5 s at worst; alone 1.7 ms). Read committed: the answer is the last stable offset, so that what
an open transaction holds back is not waited for.
"""

from collections.abc import Iterable

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from agents_stream.kafka.connection import client_options
from agents_stream.settings import Settings


class EndOffsets:
    """A client that only asks where partitions end."""

    def __init__(self, settings: Settings) -> None:
        self._client = AIOKafkaConsumer(
            **client_options(settings), isolation_level="read_committed", metadata_max_age_ms=60_000
        )

    async def start(self, topics: Iterable[str] = ()) -> None:
        """Connect, and learn where these topics are.

        Otherwise the first question would learn it, one topic each tenth of a second.
        """
        await self._client.start()
        if names := list(topics):
            await self._client._client.set_topics(names)  # noqa: SLF001 - has no public way

    async def stop(self) -> None:
        """Disconnect."""
        await self._client.stop()

    async def ask(self, tps: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The last stable offset of each partition now, in one request per broker."""
        wanted = [TopicPartition(topic, partition) for topic, partition in tps]
        ends = await self._client.end_offsets(wanted)
        return {(tp.topic, tp.partition): offset for tp, offset in ends.items()}
