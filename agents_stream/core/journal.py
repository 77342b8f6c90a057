"""The journal's entries: every accepted event, deadline and tool result, in their one order.

An entry carries all that its decision depends on, besides the session itself: the data, where it
came from, the durations in force and the version of the rules. Replaying it needs nothing else
(G8). Pure: bytes in, values out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

SCHEMA_VERSION = 1
RULES_VERSION = 2

OPENS_NOTHING_SINCE = 2
"""Rules: before, a session whose first event was rejected stood there open and empty."""

EntryKind = Literal["event", "deadline", "result"]


@dataclass(frozen=True, slots=True)
class Durations:
    """The settings that decisions depend on, in milliseconds."""

    data_reply_ms: int = 360_000
    promos_delay_ms: int = 120_000
    promos_reply_ms: int = 600_000
    retry_backoff_ms: int = 1_000


@dataclass(frozen=True, slots=True)
class Source:
    """The Kafka record that an entry came from. `keyed`: its key was the session's id."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    keyed: bool

    @property
    def place(self) -> str:
        """The partition, as the records' `seen` maps name it."""
        return f"{self.topic}/{self.partition}"


@dataclass(frozen=True, slots=True)
class Position:
    """The place of an entry in the journal; `timestamp` is the brokers' (LogAppendTime)."""

    topic: str
    partition: int
    offset: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal. `event_id` is the producer's id, for deduplication."""

    kind: EntryKind
    name: str
    session_id: str
    data: Mapping[str, Any]
    source: Source
    durations: Durations
    event_id: str | None = None
    sent_at: Any = None
    rules: int = RULES_VERSION


def encode_entry(entry: Entry) -> bytes:
    """The entry as it stands on `session.journal` (its session id is the record's key too)."""
    source, durations = entry.source, entry.durations
    return orjson.dumps(
        {
            "v": SCHEMA_VERSION,
            "rules": entry.rules,
            "kind": entry.kind,
            "name": entry.name,
            "sessionId": entry.session_id,
            "data": entry.data,
            "id": entry.event_id,
            "ts": entry.sent_at,
            "source": {
                "topic": source.topic,
                "partition": source.partition,
                "offset": source.offset,
                "timestamp": source.timestamp,
                "keyed": source.keyed,
            },
            "durations": [
                durations.data_reply_ms,
                durations.promos_delay_ms,
                durations.promos_reply_ms,
                durations.retry_backoff_ms,
            ],
        }
    )


def decode_entry(raw: bytes) -> Entry:
    """Read a journal record.

    Raises:
        ValueError: the entry was written by a newer version; upgrade this worker.

    """
    line = orjson.loads(raw)
    if line["v"] > SCHEMA_VERSION or line["rules"] > RULES_VERSION:
        raise ValueError(
            f"journal entry of schema {line['v']}, rules {line['rules']}: this version knows "
            f"schema {SCHEMA_VERSION}, rules {RULES_VERSION}; upgrade this worker"
        )
    source = line["source"]
    return Entry(
        kind=line["kind"],
        name=line["name"],
        session_id=line["sessionId"],
        data=line["data"],
        source=Source(**source),
        durations=Durations(*line["durations"]),
        event_id=line["id"],
        sent_at=line["ts"],
        rules=line["rules"],
    )
