"""Who is in the group already: a worker of another version must not join and tear at it.

Members that ask for other topics are given other partitions, so whoever owns not all topics of a
partition would have to end itself, after the whole group has stopped for it; started again by its
supervisor it would do so for ever. So a worker looks before it joins.
"""

from collections.abc import Iterable
from io import BytesIO
from typing import Any, Final

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from aiokafka.errors import KafkaError

from agents_stream.core.errors import TerminalError
from agents_stream.kafka.connection import client_options
from agents_stream.settings import Settings

log = structlog.get_logger()

_REQUEST_LIMIT_MS: Final = 10_000
_NAMED: Final = 6


async def refuse_other_members(settings: Settings, topics: Iterable[str]) -> None:
    """Refuse to join a group whose members consume another list of topics.

    Raises:
        TerminalError: there is one; the message says what to do.

    """
    mine = set(topics)
    for theirs in await _subscriptions(settings):
        if theirs and theirs != mine:
            raise TerminalError(
                f"a worker of another version is in the group {settings.group_id}: "
                f"{_differences(mine, theirs)}. The two cannot share the partitions. Stop all "
                "workers of the old version, run `agents-stream topics apply`, then start the new "
                "ones; nothing is lost meanwhile, and answers go before the deadlines that fell due"
            )


def _differences(mine: set[str], theirs: set[str]) -> str:
    parts = []
    for what, topics in (("it does not consume", mine - theirs), ("it consumes", theirs - mine)):
        if topics:
            some = sorted(topics)[:_NAMED]
            parts.append(f"{what} {', '.join(some)}{' ...' if len(topics) > _NAMED else ''}")
    return "; ".join(parts)


async def _subscriptions(settings: Settings) -> list[set[str]]:
    """What each member of the group consumes. Nobody's, where Kafka does not tell."""
    admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=_REQUEST_LIMIT_MS)
    try:
        await admin.start()
        answers = await admin.describe_consumer_groups([settings.group_id])
    except KafkaError as error:
        # Recovery looks at what it was given, so this is a courtesy that may fail.
        log.info("the group's members could not be looked at", error=repr(error))
        return []
    finally:
        await admin.close()
    return [
        subscription
        for answer in answers
        for group in answer.groups
        for subscription in map(_subscription, _members(group))
        if subscription is not None
    ]


def _members(group: Any) -> list[Any]:
    members: list[Any] = list(group[5])
    return members


def _subscription(member: Any) -> set[str] | None:
    metadata: bytes = member[-2]
    if not metadata:
        return None  # it is joining at this moment
    try:
        decoded = ConsumerProtocolMemberMetadata.decode(BytesIO(metadata))
    except ValueError:
        return None
    return set(decoded.subscription)
