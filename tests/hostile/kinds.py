"""The kinds of hostile records, each with a name: a seed in, batches out.

A `Shot` is one batch for one partition of one topic. Legal events are among them: what grows a
session, what floods the table. Every record of a shot must end in the journal or in the dead
letters, exactly once.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from agents_stream.kafka.topics import load_topics
from tests.hostile.batches import CODECS, Raw, batch, bomb

MIB: Final = 1024 * 1024
INPUTS: Final = tuple(spec.name for spec in load_topics().inputs)
EVENTS: Final = {spec.name: spec.event for spec in load_topics().inputs if spec.event}
SESSIONS: Final = 400
"""Legal hostile events are about so many sessions, so that some of them grow."""

_BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class Shot:
    """A batch ready to be sent, and how many records it has."""

    topic: str
    payload: bytes
    count: int


def legal(rng: random.Random, name: str) -> dict[str, Any]:  # noqa: PLR0911 - one each
    """Data that SPEC §2 accepts for an event."""
    session = f"h-{rng.randrange(SESSIONS)}"
    ids = {"sessionId": session, "conversationId": "c", "workspaceId": "w"}
    match name:
        case "agent/session.started":
            return {**ids, "agentId": "a", "contactId": "k", "mode": "m"}
        case "agent/session.updated":
            return {**ids, "state": {f"k{rng.randrange(9_999)}": "x" * rng.randrange(900)}}
        case "agent/data.captured":
            return {**ids, "data": {f"d{rng.randrange(9_999)}": "y" * rng.randrange(900)}}
        case "agent/customer.message":
            return {**ids, "messageId": f"m{rng.random()}", "content": "z" * rng.randrange(50)}
        case "agent/promos.offered":
            return {**ids, "packOptions": ["1x"]}
        case "agent/proactive.send":
            return {**ids, "messageType": "reminder", "content": "p" * rng.randrange(900)}
        case "agent/session.close":
            return {**ids, "reason": "completed"}
        case "agent/operator.action":
            actions = ["cancel_timer", "fire_timer", "pause", "resume", "retry_command"]
            return {**ids, "action": rng.choice(actions), "by": "x", "name": "promos.reply"}
        case _:
            return ids


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value of any type."""
    leaves: list[Any] = [None, True, 0, -1, 1.5, "", "x", "\0", 2**64 - 1, -(2**63), [], {}]
    if depth > 2 or rng.random() < 0.7:
        return rng.choice(leaves)
    inner = [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    return inner if rng.random() < 0.5 else {f"k{n}": one for n, one in enumerate(inner)}


def _value(rng: random.Random, topic: str) -> dict[str, Any]:
    return legal(rng, EVENTS.get(topic, ""))


def _many(
    make: Callable[[random.Random, str], Raw], count: int = _BATCH, topics: tuple[str, ...] = INPUTS
) -> Callable[[random.Random], Shot]:
    """A kind of which a batch holds many."""

    def shoot(rng: random.Random) -> Shot:
        topic, codec = rng.choice(topics), rng.choice(sorted(CODECS))
        records = [make(rng, topic) for _ in range(count)]
        return Shot(topic, batch(records, codec), count)

    return shoot


def _keyed(value: bytes | None, rng: random.Random) -> Raw:
    return Raw(value, rng.choice([None, b"", b"h-1", b"\xff\0", b"h-%d" % rng.randrange(SESSIONS)]))


def _broken_utf_8(rng: random.Random, _topic: str) -> Raw:
    ends = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]
    return _keyed(b'{"sessionId": "h-1' + rng.choice(ends) + b'"}', rng)


def _deep(rng: random.Random, _topic: str) -> Raw:
    levels = rng.choice([33, 34, 100, 3_000])
    return _keyed(rng.choice([b"[", b'{"a":']) * levels + b"1" * rng.randrange(2), rng)


def _wrong_types(rng: random.Random, topic: str) -> Raw:
    data = _value(rng, topic)
    data[rng.choice(sorted(data))] = anything(rng)
    return _keyed(orjson.dumps(data), rng)


def _numbers(rng: random.Random, topic: str) -> Raw:
    bad = [b"NaN", b"Infinity", b"-Infinity", b"%d" % 2**70, b"1e999", b"-1e999", b"0x1", b"01"]
    rest = orjson.dumps(_value(rng, topic))[1:]
    return _keyed(b'{"n": ' + rng.choice(bad) + b", " + rest, rng)


def _surrogates(rng: random.Random, topic: str) -> Raw:
    half = rng.choice([rb"\ud800", rb"\uDFFF", rb"\ud83d\u0041", rb"\udc00\ud800"])
    return _keyed(b'{"x": "' + half + b'", ' + orjson.dumps(_value(rng, topic))[1:], rng)


def _twice(rng: random.Random, topic: str) -> Raw:
    whole = orjson.dumps(_value(rng, topic))
    return _keyed(b'{"session\\u0049d": "h-2", ' + whole[1:], rng)


def _tombstone(rng: random.Random, _topic: str) -> Raw:
    return _keyed(rng.choice([None, b"", b" ", b"null", b"[]", b'""', b"\xef\xbb\xbf{}"]), rng)


def _headers(rng: random.Random, topic: str) -> Raw:
    headers = [(rng.randbytes(3), rng.choice([None, rng.randbytes(9)])) for _ in range(3)]
    return Raw(orjson.dumps(_value(rng, topic)), None, headers)


def _times(rng: random.Random, topic: str) -> Raw:
    stamp = rng.choice([1, -1, 2**62, 32_503_680_000_000, 946_684_800_000])
    return Raw(orjson.dumps(_value(rng, topic)), b"h-1", (), stamp)


def _envelopes(rng: random.Random, topic: str) -> Raw:
    name = rng.choice([*EVENTS.values(), "agent/unheard.of", "", "x" * 5_000, None, 7])
    data = legal(rng, name) if isinstance(name, str) else anything(rng)
    event_id = rng.choice(["", None, "i" * rng.randrange(1, 9_000), 7, f"e{rng.randrange(99)}"])
    line = {"name": name, "data": data, "id": event_id, "ts": anything(rng)}
    if rng.random() < 0.1:
        line["sessionId"] = "h-3"
    return _keyed(orjson.dumps(line), rng)


def _forged(rng: random.Random, topic: str) -> Raw:
    session = f"h-{rng.randrange(SESSIONS)}"
    if topic == "tool.results":
        tool = rng.choice(["crm.order.create", None])
        data = {"commandId": "0" * 32, "attempt": rng.choice([1, 0, 2**64 - 1]), "tool": tool}
        data |= {"status": rng.choice(["succeeded", "failed"]), "retryAfterMs": 1e300}
    else:
        data = {"name": rng.choice(["promos.reply", "retry:x"]), "generation": 0, "dueAt": -(2**63)}
    return Raw(orjson.dumps({"sessionId": session, **data}), session.encode())


def _flipped(rng: random.Random, topic: str) -> Raw:
    whole = bytearray(orjson.dumps(_value(rng, topic)))
    for _ in range(rng.randrange(1, 4)):
        whole[rng.randrange(len(whole))] = rng.randrange(256)
    return _keyed(bytes(whole), rng)


def _growing(rng: random.Random, topic: str) -> Raw:
    data = _value(rng, topic) | {"sessionId": f"h-{rng.randrange(8)}"}
    return Raw(orjson.dumps(data), data["sessionId"].encode())


def _owing(rng: random.Random, topic: str) -> Raw:
    """Events of a hundred bytes on sessions whose every outcome is large."""
    session = f"w-{rng.randrange(4)}"
    data: dict[str, Any] = {"sessionId": session, "expectedVersion": 10**9}
    if rng.random() < 0.05:
        whole = {"agentId": "a", "conversationId": "c", "contactId": "k", "mode": "m"}
        data |= {**whole, "workspaceId": "w" * 60_000}
        line = {"name": "agent/session.started", "data": data}
        return Raw(orjson.dumps(line), session.encode())
    line = {"name": "agent/session.updated", "data": data}
    return Raw(orjson.dumps(line), session.encode())


def _flood(rng: random.Random, topic: str) -> Raw:
    session = f"f-{rng.getrandbits(64):x}"
    return Raw(orjson.dumps({**_value(rng, topic), "sessionId": session}), session.encode())


def _huge(rng: random.Random) -> Shot:
    topic = rng.choice(INPUTS)
    filling = rng.choice([b"x", b"[", b'"', b"\\u0000", b"1e15,", "ñ".encode()])
    value = b'{"sessionId": "h-1", "x": "' + filling * (rng.choice([1, 2, 9]) * MIB // len(filling))
    return Shot(topic, batch([Raw(value, b"h-1")]), 1)


def _large_and_legal(rng: random.Random) -> Shot:
    """Accepted, and as large as an event may be: its session's record may not become so."""
    topic = rng.choice(["agent.session.updated", "agent.data.captured"])
    data = legal(rng, EVENTS[topic])
    field = "state" if topic == "agent.session.updated" else "data"
    data[field] = {f"x{rng.random()}": "v" * rng.randrange(100_000, 1_040_000)}
    return Shot(topic, batch([Raw(orjson.dumps(data), data["sessionId"].encode())]), 1)


def _giant_key(rng: random.Random) -> Shot:
    topic = rng.choice(INPUTS)
    value = rng.choice([b"no json", orjson.dumps(_value(rng, topic)), None])
    return Shot(topic, batch([Raw(value, b"k" * rng.randrange(8 * MIB))]), 1)


def _hidden(rng: random.Random) -> Shot:
    """20 MiB in a batch of less than one, as one record or as twenty."""
    each, count = rng.choice([(20 * MIB, 1), (MIB, 20), (4 * MIB, 5)])
    codec = rng.choice(["gzip", "snappy", "lz4", "zstd"])
    return Shot(rng.choice(INPUTS), *bomb(codec, each, count))


def _bombs(rng: random.Random) -> Shot:
    """A gigabyte in a few kilobytes."""
    each, count = rng.choice([(1024 * MIB, 1), (16 * MIB, 64)])
    return Shot(rng.choice(INPUTS), *bomb(rng.choice(["gzip", "zstd"]), each, count))


def _many_headers(rng: random.Random) -> Shot:
    topic = rng.choice(INPUTS)
    record = Raw(orjson.dumps(_value(rng, topic)), None, [(b"", b"")] * 200_000)
    return Shot(topic, batch([record], rng.choice(["none", "zstd"])), 1)


def _nothings(rng: random.Random) -> Shot:
    count = 5_000
    return Shot(rng.choice(INPUTS), batch([Raw(None)] * count, rng.choice(["none", "zstd"])), count)


MANY: Final[Mapping[str, Callable[[random.Random], Shot]]] = {
    "broken UTF-8": _many(_broken_utf_8),
    "deep JSON": _many(_deep, 20),
    "wrong types": _many(_wrong_types),
    "NaN, 2^70, 1e999": _many(_numbers),
    "lone surrogates": _many(_surrogates),
    "duplicate keys": _many(_twice),
    "tombstones and empty values": _many(_tombstone),
    "headers that are no UTF-8": _many(_headers),
    "future and past timestamps": _many(_times),
    "strange envelopes": _many(_envelopes),
    "forged results and deadlines": _many(_forged, topics=("tool.results", "session.deadlines")),
    "flipped bytes": _many(_flipped),
    "state that grows": _many(_growing, topics=tuple(EVENTS)),
    "small events that owe much": _many(_owing, 50, topics=("agent.session.updated",)),
    "a session per event": _many(_flood, topics=tuple(EVENTS)),
    "records of nothing": _nothings,
}
"""Kinds of which there are many: they make up the number of records asked for."""

HEAVY: Final[Mapping[str, Callable[[random.Random], Shot]]] = {
    "huge values": _huge,
    "events of 1 MiB": _large_and_legal,
    "giant keys": _giant_key,
    "20 MiB in a compressed batch": _hidden,
    "1 GiB in a compressed batch": _bombs,
    "200,000 headers": _many_headers,
}
"""Kinds of which a few do what they can."""
