"""What Kafka says of the workers' group to who is not in it: how far it has come, how many it is.

A coordinator that is still loading the group, or that is none any more, answers with an error for
the whole of it; aiokafka's admin client takes such an answer for "no offsets" and "no members". So
the group's own error is looked at first, and the question asked again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code

from agents_stream.core.errors import RetryableError
from agents_stream.kafka.connection import client_options
from agents_stream.settings import Settings

ATTEMPTS: Final = 40
PAUSE_S: Final = 0.25

Committed = dict[tuple[str, int], int]
_Answer = TypeVar("_Answer")


async def committed_offsets(settings: Settings) -> Committed:
    """How far the workers' group has come, by partition of each topic.

    Raises:
        RetryableError: Kafka cannot tell just now.

    """

    async def ask(admin: Any) -> Committed:
        await _describe(admin, settings.group_id)
        found = await admin.list_consumer_group_offsets(settings.group_id)
        return {(tp.topic, tp.partition): one.offset for tp, one in found.items()}

    known = await _ask(settings, ask)
    return {place: offset for place, offset in known.items() if offset >= 0}


async def member_count(settings: Settings) -> int:
    """How many workers are in the group; one that was killed counts for the session timeout.

    Raises:
        RetryableError: Kafka cannot tell just now.

    """

    async def ask(admin: Any) -> int:
        return len((await _describe(admin, settings.group_id))[5])

    return await _ask(settings, ask)


async def _describe(admin: Any, group: str) -> Any:
    """The group as its coordinator describes it: (error code, name, state, ..., members, ...)."""
    [answer] = await admin.describe_consumer_groups([group])
    [described] = answer.groups
    if described[0]:
        raise for_code(described[0])(f"the coordinator of {group}")
    return described


async def _ask(settings: Settings, ask: Callable[[Any], Awaitable[_Answer]]) -> _Answer:
    """Ask until the coordinator knows: a new cluster, or one just started, needs seconds."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    last: KafkaError | None = None
    try:
        await admin.start()
        for _ in range(ATTEMPTS):
            try:
                return await ask(admin)
            except KafkaError as error:
                if not error.retriable:
                    raise
                last = error
                await asyncio.sleep(PAUSE_S)
    except KafkaError as error:
        last = error
    finally:
        await admin.close()
    raise RetryableError(f"Kafka cannot tell of the workers' group just now: {last!r}") from last
