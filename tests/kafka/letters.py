"""Dead letters for tests: written as workers write them, and what the commands say of them."""

import uuid
from typing import Any

import orjson

from agents_stream.kafka import ranges
from agents_stream.kafka.topics import partition_for
from tests.kafka.cluster import Cluster
from tests.kafka.command_line import Answer, cli

WRITTEN_MS = 1_700_000_000_000


async def redrive(seen: Cluster, *arguments: str) -> Answer:
    """`dead-letters redrive`, as JSON."""
    return await cli(seen.settings, "dead-letters", "redrive", *arguments, "--json")


async def bury(
    seen: Cluster,
    content: object,
    *,
    topic: str = "agent.customer.message",
    session: str = "s-1",
    reason: str = "unknown_event",
    **more: Any,
) -> str:
    """Write a dead letter as a worker before an upgrade did; its place in `redrive`'s words.

    Its source is a record that is not there any more: a redrive needs the letter only.
    """
    full = seen.topic(topic)
    partition = partition_for(session.encode(), seen.settings.partitions)
    offset = more.pop("offset", uuid.uuid4().int % 1_000_000)
    source = {"topic": full, "partition": partition, "offset": offset, "timestamp": WRITTEN_MS}
    source["timestamp"] = more.pop("timestamp", WRITTEN_MS)
    raw = content if isinstance(content, bytes) else orjson.dumps(content)
    letter = {
        "id": f"dl:{full}/{partition}/{offset}",
        "reason": reason,
        "detail": "of a test",
        "source": source,
        "key": session,
        "value": raw.decode(),
        "encoding": "utf-8",
        **more,
    }
    await seen.producer.send_and_wait(
        seen.topic("agent.dead_letters"), orjson.dumps(letter), key=session.encode()
    )
    return f"{full}/{partition}/{offset}"


def message(session: str, text: str = "hola") -> dict[str, str]:
    """The data of a customer's message."""
    told = {"sessionId": session, "conversationId": "c", "content": text}
    return {**told, "messageId": uuid.uuid4().hex}


async def listed(seen: Cluster, *arguments: str) -> Any:
    """`dead-letters list`, as JSON."""
    answer = await cli(seen.settings, "dead-letters", "list", *arguments, "--json")
    assert answer.code == 0, answer
    return answer.json


async def records(seen: Cluster, topic: str) -> list[Any]:
    """What is on a topic now, in the order of time."""
    name, count = seen.topic(topic), seen.settings.partitions
    async with ranges.reader(seen.settings) as client:
        spans = await ranges.bounds(client, [(name, number) for number in range(count)])
        found = [line async for line in ranges.read(client, spans)]
    return sorted(found, key=lambda line: (line.timestamp, line.offset))
