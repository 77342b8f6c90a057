"""What was decided against what was published: the half of `audit` that looks at outward topics.

    G1  what was decided and acknowledged is on its topic: command, outcome, dead letter, own event
    G6  what is on the topics of commands and outcomes was decided, under this id and attempt
    G7  likewise, where it is a message about an order

One partition at a time: a session's outward records have the partition number of its journal, but
for own events, which go where the session's events arrive.
"""

import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from aiokafka.structs import ConsumerRecord

from agents_stream.core.actions import (
    OWN_EVENT_PREFIX,
    Action,
    BuryDeadLetter,
    IssueCommand,
    PublishEvent,
    PublishOutcome,
)
from agents_stream.core.flows.promos import CREATED_TEXT
from agents_stream.core.journal import Position
from agents_stream.kafka.topics import (
    CRM_ORDER_CREATE,
    DEAD_LETTERS,
    OUTCOMES,
    PROMOS_OFFERED,
    WHATSAPP_MESSAGE_SEND,
    load_topics,
)
from agents_stream.replay import Report, Violation

OUTWARD: Final = (WHATSAPP_MESSAGE_SEND, CRM_ORDER_CREATE, OUTCOMES, DEAD_LETTERS)
"""What one partition's decisions lead to, in the same partition of these."""

MARGIN_MS: Final = 60_000
"""How far the clocks of brokers may disagree where retention cuts a topic's beginning."""

_ANNOUNCED: Final = CREATED_TEXT.encode()

Key = tuple[str, str, int]
"""(topic without prefix, id, attempt): what whoever deduplicates goes by."""


@dataclass(frozen=True, slots=True)
class _Decided:
    """An action that the replay gave: of which session, by which journal entry."""

    session_id: str
    offset: int
    timestamp: int


@dataclass(slots=True)
class OwnEvents:
    """The events of our own that have been published, and since when the topic holds them all."""

    ids: set[str] = field(default_factory=set)
    complete_since_ms: float = 0.0

    def take(self, line: ConsumerRecord, begins: Mapping[tuple[str, int], tuple[int, int]]) -> None:
        """A record of `agent.promos.offered`; the first of each partition comes first."""
        begin = begins[line.topic, line.partition][0]
        if begin > 0 and line.offset <= begin:
            self.complete_since_ms = max(self.complete_since_ms, line.timestamp + MARGIN_MS)
        for name, value in line.headers:
            if name == "id" and value.startswith(OWN_EVENT_PREFIX.encode()):
                self.ids.add(value.decode())


@dataclass(slots=True)
class Published:
    """One partition: what its decisions owe, ticked off as it is seen.

    `acknowledged`: below it the workers' group has done every journal entry. `waiting`: journal
    offsets whose actions the group has not yet published.
    """

    partition: int
    report: Report
    own: OwnEvents
    acknowledged: int
    waiting: Container[int]
    decided: dict[Key, _Decided] = field(default_factory=dict)
    seen: set[Key] = field(default_factory=set)
    complete_since_ms: dict[str, float] = field(default_factory=dict)

    def decide(self, session_id: str, actions: Iterable[Action], at: Position) -> None:
        """Note what an entry led to."""
        for action in actions:
            self.decided[_key_of(action)] = _Decided(session_id, at.offset, at.timestamp)

    def take(
        self, line: ConsumerRecord, topic: str, begin: int, provable_since: Callable[[str], float]
    ) -> None:
        """A record of an outward topic. `provable_since`: when a session's replay begins."""
        if begin > 0:
            self.complete_since_ms.setdefault(topic, line.timestamp + MARGIN_MS)
        if topic == DEAD_LETTERS:
            self.seen.update(
                (topic, value.decode(), 0) for name, value in line.headers if name == "id"
            )
            return
        told = _read(line)
        if told is None:
            return  # no record of ours: no tool performs it
        key = (topic, told[0], told[2])
        self.seen.add(key)
        if key not in self.decided and line.timestamp >= provable_since(told[1]):
            self._undecided(line, key, told[1])

    def finish(self, empty: Container[str], unproved: Container[str]) -> None:
        """Whatever was acknowledged has been published. `empty`: topics that hold nothing more."""
        for key, one in self.decided.items():
            topic, own_id, attempt = key
            if one.offset >= self.acknowledged or one.offset in self.waiting:
                continue
            if topic == PROMOS_OFFERED:
                there, since = own_id in self.own.ids, self.own.complete_since_ms
            else:
                since = self.complete_since_ms.get(topic, math.inf if topic in empty else 0.0)
                there = key in self.seen
            if there or one.timestamp < since or one.session_id in unproved:
                continue
            which = f"{own_id} (attempt {attempt})" if attempt else own_id
            detail = f"{which} was decided and acknowledged, and is not on {topic}"
            self.report.add(Violation(one.session_id, "G1", detail, self.partition, one.offset))
        self.report.published += len(self.seen)

    def _undecided(self, line: ConsumerRecord, key: Key, session_id: str) -> None:
        guarantee, words = "G6", f"{line.topic} holds {key[1]}, which no decision gave"
        if key[0] == WHATSAPP_MESSAGE_SEND and _ANNOUNCED in (line.value or b""):
            guarantee, words = "G7", f"{line.topic} tells of an order, and no decision did"
        self.report.add(Violation(session_id, guarantee, words, self.partition, line.offset))


def _key_of(action: Action) -> Key:
    match action:
        case IssueCommand(command):
            return f"tool.{command['tool']}", command["id"], command["attempt"]
        case PublishOutcome(outcome):
            return OUTCOMES, outcome["id"], 0
        case BuryDeadLetter(letter):
            return DEAD_LETTERS, letter["id"], 0
        case PublishEvent(envelope):
            return load_topics().events[envelope["name"]].name, envelope["id"], 0


def _read(line: ConsumerRecord) -> tuple[str, str, int] | None:
    """The id, session and attempt of a command or outcome; None if it is neither."""
    try:
        told: dict[str, Any] = orjson.loads(line.value or b"")
        return str(told["id"]), str(told["sessionId"]), int(told.get("attempt") or 0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
