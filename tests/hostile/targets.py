"""What is fuzzed, each with its invariant. A target takes any bytes and raises where one breaks.

Nothing but `InvalidEvent` may come out of what reads records; nothing at all out of the reducer.
What is read is written and read again without a change. How long an input takes and how much it
allocates is watched by the fuzzer (`-timeout`, `-rss_limit_mb`).
"""

import random
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from agents_stream.core.decider import apply
from agents_stream.core.errors import InvalidEvent
from agents_stream.core.journal import Entry, Position, decode_entry, encode_entry
from agents_stream.core.json_list import MAX_ITEMS, is_list, split_list
from agents_stream.core.session import SessionRecord, decode_record, encode_record
from agents_stream.core.strict_json import dump, parse_object
from agents_stream.kafka.topics import load_topics
from agents_stream.kafka.unpacking import BoundedRecords
from agents_stream.settings import Settings
from agents_stream.stages.dead_letters import letter_key, letter_of
from agents_stream.stages.gateway.commands import read_command
from agents_stream.stages.ingress import Reader
from agents_stream.stages.tools.catalog import tools_of
from tests.hostile.batches import Raw, batch, sealed
from tests.hostile.kinds import EVENTS, INPUTS, anything, legal

EXAMPLES: Final = Path(__file__).parents[2] / "examples" / "conversations.jsonl"
MAX_ROW: Final = int(load_topics()["agents-stream-sessions-changelog"].config["max.message.bytes"])
MAX_STEPS: Final = 60
MAX_DETAIL: Final = 1_000
_NOT_OURS: Final = (ValueError, KeyError, TypeError, AttributeError, IndexError)
_SETTINGS: Final = Settings()
TOOLS: Final = tools_of(_SETTINGS)
_READER: Final = Reader(_SETTINGS)


@dataclass(frozen=True, slots=True)
class Found:
    """A record as aiokafka hands it on."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    timestamp_type: int = 1
    headers: tuple[tuple[str, bytes], ...] = ()


def strict_json(data: bytes) -> None:
    """What is accepted is an object that is written and read again as it was."""
    try:
        value = parse_object(data)
    except InvalidEvent as error:
        if len(error.detail) > MAX_DETAIL:
            raise AssertionError(error.detail) from error
        return
    assert parse_object(dump(value)) == value


def json_list(data: bytes) -> None:
    """Items are parts of the text, in their order, and a list of good ones is cut into them."""
    if not is_list(data):
        return
    try:
        items = split_list(data)
    except InvalidEvent:
        return
    assert len(items) <= MAX_ITEMS
    at = 0
    for item in items:
        at = data.index(item, at) + len(item)


def ingress(data: bytes) -> None:
    """A record of any input topic becomes an entry that is read as it was written, or a letter."""
    record = _record(data)
    try:
        entry = _READER(record)
    except InvalidEvent as error:
        letter = letter_of(record, error.reason, error.detail)
        assert orjson.loads(orjson.dumps(letter)) == letter
        assert letter_key(record.key) is None or len(letter_key(record.key) or b"") <= 4_096
        return
    raw = encode_entry(entry)
    assert decode_entry(raw) == entry
    _decided(None, entry, 1)


def reducer(data: bytes) -> None:
    """Any entries of a session, legal ones and strange ones, are decided on; no decision fails."""
    story = _Story(data)
    for number, entry in enumerate(story):
        story.record = _decided(story.record, entry, number)


def commands(data: bytes) -> None:
    """A record of a tool's topic is a command or the reason why it is none."""
    tool = TOOLS[data[0] % len(TOOLS)] if data else TOOLS[0]
    try:
        command = read_command(tool, data[1:])
    except InvalidEvent as error:
        known = error.reason in {"invalid_json", "invalid_schema"}
        if not known:
            raise AssertionError(error.reason) from error
        return
    assert isinstance(orjson.loads(command.body), dict)


def internal(data: bytes) -> None:
    """What stands on our own topics ends the worker if it is not ours, and in no other way."""
    for decode in (decode_record, decode_entry):
        try:
            decode(data)
        except _NOT_OURS:
            continue


def unpacking(data: bytes) -> None:
    """Every batch gives records whose offsets rise, whatever stands behind its header."""
    if not data:
        return
    codec = ("none", "gzip", "snappy", "lz4", "zstd")[data[0] % 5]
    records = BoundedRecords(sealed(data[1:], 1 + data[0] // 5, codec))
    offsets = [record.offset for record in records.next_batch()]
    assert offsets


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    one.__name__: one
    for one in (strict_json, json_list, ingress, reducer, commands, internal, unpacking)
}


def seeds(name: str) -> list[bytes]:  # noqa: PLR0911 - one each
    """A corpus to begin with: the examples, and a legal event of each kind."""
    rng = random.Random(0)
    lines = EXAMPLES.read_bytes().splitlines()[:40]
    events = [orjson.dumps(legal(rng, event)) for event in EVENTS.values()]
    match name:
        case "ingress":
            return [bytes([number]) + line for number, line in enumerate([*events, *lines])]
        case "reducer":
            return [rng.randbytes(90) for _ in range(10)]
        case "commands":
            return [b"\0" + line for line in _commands()]
        case "internal":
            return [*_entries(), encode_record(SessionRecord("s1"))]
        case "unpacking":
            made = batch([Raw(b"{}", b"k", [(b"h", b"v")])] * 3)
            return [b"\x0a" + made[61:], b"\x0b", b"\x0c"]
        case "json_list":
            return [b"[" + b",".join(events) + b"]"]
        case _:
            return [*events, *lines]


def _record(data: bytes) -> Found:
    topic = INPUTS[data[0] % len(INPUTS)] if data else INPUTS[0]
    value = data[1:]
    return Found(topic, 0, 1, 1_700_000_000_000, value[:8] if len(value) % 2 else None, value)


def _commands() -> list[bytes]:
    inputs = {"contactId": "c", "message": "hola"}
    one = {"id": "a1", "tool": TOOLS[0].name, "sessionId": "s", "attempt": 1, "inputs": inputs}
    levels = b"[" * 300 + b"]" * 300
    deep = orjson.dumps({**one, "inputs": {"x": 0}}).replace(b":0}", b":%b}" % levels)
    return [orjson.dumps(one), orjson.dumps({**one, "attempt": 0}), deep]


def _entries() -> list[bytes]:
    rng = random.Random(1)
    found = [
        Found(topic, 0, 1, 1_700_000_000_000, b"h-1", orjson.dumps(legal(rng, event)))
        for topic, event in EVENTS.items()
    ]
    return [encode_entry(_READER(one)) for one in found]


class _Story:
    """Four bytes a step: what happens, a seed for its details, and how much later."""

    def __init__(self, data: bytes) -> None:
        self.steps = list(struct.iter_unpack(">BBH", data[: len(data) & ~3]))[:MAX_STEPS]
        self.record: SessionRecord | None = None

    def __iter__(self) -> Iterator[Entry]:
        at_ms = 1_700_000_000_000
        for number, (what, seed, wait) in enumerate(self.steps):
            at_ms += wait * 20
            step = _step(what, random.Random(seed), self.record)
            if step is None:
                continue
            topic, body = step
            value = orjson.dumps({**body, "sessionId": "s1"})
            try:
                yield _READER(Found(topic, 0, number, at_ms, b"s1", value))
            except InvalidEvent:
                continue


def _step(
    what: int, rng: random.Random, record: SessionRecord | None
) -> tuple[str, dict[str, Any]] | None:
    kind = what % 14
    names = sorted(EVENTS)
    if kind < len(names):
        body = legal(rng, EVENTS[names[kind]])
        if what >= 128:
            body[rng.choice(sorted(body))] = anything(rng)
        return names[kind], body
    if record is None:
        return None
    if kind < 11 and record.deadlines:
        name, deadline = rng.choice(sorted(record.deadlines.items()))
        told = {"name": name, "generation": deadline.generation, "dueAt": deadline.due_at_ms}
        return "session.deadlines", told
    if record.pending:
        command = record.pending[rng.choice(sorted(record.pending))]
        status = rng.choice(["succeeded", "failed", "unknown"])
        told = {"commandId": command.id, "attempt": rng.choice([command.attempt, 1, 2**64 - 1])}
        told |= {"status": status, "retryable": rng.random() < 0.7, "tool": command.tool}
        told |= {"outputs": anything(rng) if what >= 128 else {"id": "o1"}}
        return "tool.results", {key: one for key, one in told.items() if one is not None}
    return None


def _decided(record: SessionRecord | None, entry: Entry, number: int) -> SessionRecord | None:
    """One decision with all that must hold of any."""
    at = Position("session.journal", 0, number, entry.source.timestamp + 1)
    before = None if record is None else encode_record(record)
    decision = apply(record, entry, at)
    assert decision == apply(record, entry, at), "the same input, another decision"
    if decision.crash is not None:
        raise AssertionError("the decision failed") from decision.crash
    if record is not None:
        assert encode_record(record) == before, "a decision leaves its record alone"
    if decision.record is None:
        return None
    row = encode_record(decision.record)
    assert len(row) < MAX_ROW
    assert encode_record(decode_record(row)) == row
    return decode_record(row)
