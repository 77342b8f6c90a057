"""What the views may ask of a worker. They show durable state only, and change nothing.

Everything here answers from memory or disk at once, except the two that read Kafka. Views take
breath between records (other work of the worker runs meanwhile), so an iterator given out must
bear a table that changes under it.
"""

from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Protocol

from agents_stream.core.journal import Entry, Position
from agents_stream.core.session import SessionRecord


@dataclass(frozen=True, slots=True)
class Member:
    """A worker of the cluster: where it answers and which partitions it owns."""

    url: str
    partitions: tuple[int, ...]
    is_self: bool


@dataclass(frozen=True, slots=True)
class Letter:
    """A record of `agent.dead_letters`, as it lies there."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None

    @property
    def place(self) -> "LetterPlace":
        """Where it stands among all letters."""
        return (self.timestamp, self.partition, self.offset)


LetterPlace = tuple[int, int, int]
"""(timestamp in ms, partition, offset): the order of the dead letters."""


class Reads(Protocol):
    """A worker as its views see it."""

    def ready(self) -> tuple[bool, str]:
        """Whether the worker owns its partitions and has recovered; else what is missing."""

    def members(self) -> list[Member]:
        """Every worker of the cluster, as of the last rebalance."""

    def partition_count(self) -> int:
        """How many partitions the journal has."""

    def partition_of(self, session_id: str) -> int:
        """The partition of the journal and the table that a session lives in."""

    def get(self, session_id: str) -> SessionRecord | None:
        """The record of a session of this worker; None for others too."""

    def session_ids(self) -> Iterator[str]:
        """The ids of every session of the partitions that this worker owns, in any order."""

    def journal(self, session_id: str) -> AsyncGenerator[tuple[Entry, Position], None]:
        """The journal entries of one session of this worker, oldest first, up to now.

        Raises:
            RetryableError: Kafka cannot be read just now.

        """

    def dead_letters(self, limit: int, before: LetterPlace | None) -> AsyncGenerator[Letter, None]:
        """At most `limit` dead letters whose place is below `before`, the highest place first.

        Raises:
            RetryableError: Kafka cannot be read just now.

        """

    def table_sizes(self) -> dict[int, tuple[int, int]]:
        """Per owned partition: how many records, how many deadlines in the wheel."""
