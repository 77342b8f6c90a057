"""Dead letters, read from their topic: the commands that show them and send them in again."""

import base64
import binascii
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiokafka.structs import ConsumerRecord, TopicPartition

from agents_stream.core.envelope import is_envelope
from agents_stream.core.errors import TerminalError
from agents_stream.kafka import ranges
from agents_stream.kafka.topics import DEAD_LETTERS, load_topics
from agents_stream.settings import Settings

MAX_LETTERS: Final = 100_000
MAX_HELD_BYTES: Final = 256 * 1024 * 1024

Place = tuple[str, int, int]
"""(topic, partition, offset) of a record."""


@dataclass(frozen=True, slots=True)
class Buried:
    """A dead letter: what was buried and why, where it came from, when it was written."""

    reason: str
    detail: str
    source: Place
    source_timestamp: int
    key: bytes | None
    value: bytes | None
    is_cut: bool
    written_at: int

    @property
    def id(self) -> str:
        """By which a redrive of this letter is recognised."""
        return "dl:{}/{}/{}".format(*self.source)


def read_letter(line: ConsumerRecord) -> Buried | None:
    """A record of `agent.dead_letters`, or None if it is no letter of ours."""
    try:
        letter = orjson.loads(line.value or b"")
        source = letter["source"]
        place = (source["topic"], source["partition"], source["offset"])
        value = _bytes(letter["value"], letter.get("encoding"))
        key = _bytes(letter.get("key"), letter.get("keyEncoding"))
        cut = bool(letter.get("truncated"))
        known = [type(item) for item in (*place, source["timestamp"], letter["reason"])]
        if known != [str, int, int, int, str]:
            return None
        detail = str(letter.get("detail"))
        when = source["timestamp"]
        return Buried(letter["reason"], detail, place, when, key, value, cut, line.timestamp)
    except (ValueError, KeyError, TypeError, binascii.Error):
        return None


def _bytes(text: str | None, encoding: str | None) -> bytes | None:
    if text is None:
        return None
    return base64.b64decode(text, validate=True) if encoding == "base64" else text.encode()


def session_of(letter: Buried) -> str | None:
    """The session that a letter is about, as far as it can be told."""
    value = object_of(letter.value)
    data = value["data"] if is_envelope(value) else value
    told = data.get("sessionId")
    if isinstance(told, str):
        return told
    return None if letter.key is None else letter.key.decode(errors="replace")


def object_of(raw: bytes | None) -> dict[str, Any]:
    """A value as a JSON object; an empty one if it is none."""
    try:
        value = orjson.loads(raw or b"")
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


async def letter_lines(
    settings: Settings, since_ms: int | None = None
) -> AsyncGenerator[ConsumerRecord, None]:
    """Every record of the dead letters from a time on, up to now.

    Raises:
        RetryableError: Kafka cannot be read just now.

    """
    topic = load_topics().name(DEAD_LETTERS, settings.topic_prefix)
    places = [(topic, number) for number in range(settings.partitions)]
    async with ranges.reader(settings) as client:
        stretches = await stretches_since(client, dict.fromkeys(places, since_ms or 0))
        async with aclosing(ranges.read(client, stretches)) as lines:
            async for line in lines:
                if line.timestamp >= (since_ms or 0):
                    yield line


async def stretches_since(
    client: Any, times: Mapping[tuple[str, int], int]
) -> dict[tuple[str, int], tuple[int, int]]:
    """The stretches of partitions from a time each to their present ends."""
    spans = await ranges.bounds(client, times)
    asked = {TopicPartition(*place): when for place, when in times.items() if when > 0}
    found = await client.offsets_for_times(asked) if asked else {}
    for tp in asked:
        begin, end = spans[tp.topic, tp.partition]
        first = end if found.get(tp) is None else found[tp].offset
        spans[tp.topic, tp.partition] = (max(begin, first), end)
    return spans


async def find_letters(
    settings: Settings, is_wanted: Callable[[Buried], bool], since_ms: int | None
) -> list[Buried]:
    """The letters that are wanted, each source once, in the order of the sources' times.

    Raises:
        RetryableError: Kafka cannot be read just now.
        TerminalError: they are too many for one go.

    """
    found: dict[Place, Buried] = {}
    held = 0
    async with aclosing(letter_lines(settings, since_ms)) as lines:
        async for line in lines:
            letter = read_letter(line)
            if letter is None or letter.source in found or not is_wanted(letter):
                continue
            found[letter.source] = letter
            held += len(letter.value or b"")
            if len(found) > MAX_LETTERS or held > MAX_HELD_BYTES:
                raise TerminalError(
                    f"these are more than {MAX_LETTERS} letters or {MAX_HELD_BYTES >> 20} MiB:"
                    " choose fewer with --since, --until, --session or --reason"
                )
    return sorted(found.values(), key=lambda letter: (letter.source_timestamp, letter.source))
