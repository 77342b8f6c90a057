"""What a world leaves behind, put in order for the checkers: logs, and the journal replayed."""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson

from agents_stream.core.actions import encode_action
from agents_stream.core.decider import Decision, apply
from agents_stream.core.journal import Entry, Position, decode_entry
from agents_stream.core.session import SessionRecord, decode_record, encode_record
from agents_stream.kafka.topics import JOURNAL, SESSIONS_CHANGELOG, load_topics
from tests.simulation.brokers import Stored

if TYPE_CHECKING:
    from tests.simulation.world import World

Place = tuple[str, int, int]
"""(topic, partition, offset)"""


@dataclass(slots=True)
class Applied:
    """One entry of the journal, and what it led to in the replay."""

    entry: Entry
    offset: int
    source: Stored
    before: SessionRecord | None
    decision: Decision
    again: bool

    @property
    def first(self) -> bool:
        """Whether the entry counted, that is: is none that came before."""
        return not {"duplicate", "stale_event"} & set(self.decision.reasons)

    @property
    def counts(self) -> bool:
        """Whether its place in the order matters: the first of its copies, and no duplicate.

        A copy of what left no record behind is not known as one; it changes nothing again.
        """
        return self.first and not self.again

    @property
    def actions(self) -> list[dict[str, Any]]:
        """What was decided, as it stands on `session.actions`."""
        return [encode_action(action) for action in self.decision.actions]


@dataclass(slots=True)
class History:
    """Everything that the checkers look at."""

    world: "World"
    inputs: dict[Place, Stored] = field(default_factory=dict)
    applied: dict[str, list[Applied]] = field(default_factory=lambda: defaultdict(list))
    rows: dict[str, list[tuple[Stored, SessionRecord]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    final: dict[str, SessionRecord] = field(default_factory=dict)
    differing: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, world: "World") -> "History":
        """Read all logs and replay the journal."""
        history = cls(world)
        for spec in load_topics().inputs:
            for record in world.cluster.records(spec.name):
                history.inputs[spec.name, record.partition, record.offset] = record
        history._read_rows()
        history._replay()
        return history

    @property
    def tolerance_ms(self) -> float:
        """By how much times may disagree: the brokers' clocks, and a millisecond's rounding."""
        return 2 * self.world.plan.shape.spread_ms + 1

    def values(self, topic: str) -> list[Any]:
        """The values of a topic's records as JSON; what is none was meant to be none."""
        found = []
        for record in self.world.cluster.records(topic):
            try:
                value = orjson.loads(record.value or b"")
            except orjson.JSONDecodeError:
                continue
            if isinstance(value, dict):
                found.append(value)
        return found

    def _read_rows(self) -> None:
        for log in self.world.cluster.topic(SESSIONS_CHANGELOG):
            for stored in log.ever:
                record = decode_record(stored.value or b"")
                self.rows[record.session_id].append((stored, record))
        for log in self.world.cluster.topic(SESSIONS_CHANGELOG):
            for stored in log.records:
                record = decode_record(stored.value or b"")
                known = self.final.get(record.session_id)
                if known is None or _position(record) > _position(known):
                    self.final[record.session_id] = record

    def _replay(self) -> None:
        written = {
            (session, record.journal_offset, encode_record(replace(record, outbox={})))
            for session, rows in self.rows.items()
            for _, record in rows
        }
        offsets = defaultdict(set)
        for session, offset, _ in written:
            offsets[session].add(offset)
        records: dict[str, SessionRecord | None] = {}
        known: set[Place] = set()
        for stored in self.world.cluster.records(JOURNAL):
            entry = decode_entry(stored.value or b"")
            session, before = entry.session_id, records.get(entry.session_id)
            at = Position(stored.topic, stored.partition, stored.offset, stored.timestamp)
            decision = apply(before, entry, at)
            place = (entry.source.topic, entry.source.partition, entry.source.offset)
            self.applied[session].append(
                Applied(entry, at.offset, self.inputs[place], before, decision, place in known)
            )
            known.add(place)
            after = decision.record
            records[session] = None if after is None else replace(after, outbox={})
            if after is not None and at.offset in offsets[session]:
                written.discard((session, at.offset, encode_record(replace(after, outbox={}))))
        self.differing = [f"{session} at {offset}" for session, offset, _ in sorted(written)]


def _position(record: SessionRecord) -> tuple[int, int]:
    return record.journal_timestamp, record.journal_offset
