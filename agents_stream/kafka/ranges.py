"""Reading a stretch of the log once, from an offset to another: for views, audit and redrive."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord, TopicPartition

from agents_stream.core.errors import RetryableError
from agents_stream.kafka.connection import client_options
from agents_stream.settings import Settings

POLL_MS: Final = 200

Place = tuple[str, int]


@asynccontextmanager
async def reader(settings: Settings, isolation: str = "read_committed") -> AsyncIterator[Any]:
    """A consumer without a group, connected.

    Raises:
        RetryableError: Kafka cannot be read just now.

    """
    client = AIOKafkaConsumer(
        **client_options(settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level=isolation,
        fetch_max_wait_ms=POLL_MS,
    )
    try:
        await client.start()
        # Let aiokafka's own task begin: cancelled before that, it would cancel whoever stops it.
        await asyncio.sleep(0)
        yield client
    except KafkaError as error:
        raise RetryableError(f"Kafka cannot be read just now: {error}") from error
    finally:
        await client.stop()


async def bounds(client: Any, places: Iterable[Place]) -> dict[Place, tuple[int, int]]:
    """The first offset and the end of each partition."""
    tps = [TopicPartition(*place) for place in places]
    begins = await client.beginning_offsets(tps)
    ends = await client.end_offsets(tps)
    return {(tp.topic, tp.partition): (begins[tp], ends[tp]) for tp in tps}


async def read(
    client: Any, stretches: Mapping[Place, tuple[int, int]]
) -> AsyncGenerator[ConsumerRecord, None]:
    """Every record of the stretches `[start, end)`; each partition in its order."""
    left = {TopicPartition(*place): end for place, (start, end) in stretches.items() if start < end}
    if not left:
        return
    client.assign(list(left))
    for tp in left:
        client.seek(tp, stretches[tp.topic, tp.partition][0])
    while left:
        fetched = await client.getmany(timeout_ms=POLL_MS)
        for tp, records in fetched.items():
            for record in records:
                if tp in left and record.offset < left[tp]:
                    yield record
        left = {tp: end for tp, end in left.items() if await client.position(tp) < end}
        client.pause(*(tp for tp in client.assignment() if tp not in left))
