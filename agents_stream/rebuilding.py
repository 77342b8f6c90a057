"""Which rows of a table are not what their journal gives, and what to put there: the pure half.

Workers read the journal on from the offset that their group has committed. What lies below it has
been decided, and its actions have been published (docs/guarantees.md, steps 9 and 10). So a row is
made anew by replaying up to that offset and no further, and it owes nothing: everything from there
on the workers decide again, with the same ids. A row beyond that offset, with what it owes in its
outbox, is left alone as long as it is what the journal gives.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import orjson

from agents_stream.core.decider import apply
from agents_stream.core.errors import TerminalError
from agents_stream.core.journal import (
    RULES_VERSION,
    SCHEMA_VERSION,
    Entry,
    Position,
    decode_entry,
)
from agents_stream.core.session import RECORD_SCHEMA, SessionRecord, decode_record, encode_record
from agents_stream.kafka.row_fold import RowFold
from agents_stream.replay import is_same

MISSING = "it has no record"
UNREADABLE = "a record of it cannot be read"
DIFFERENT = "its record is not what its journal gives"
BEHIND = "its record is behind what was acknowledged"
INVENTED = "it has a record and no journal"

CUT = "the beginning of its journal may be gone: it cannot be replayed"
BAD_ENTRY = "an entry of its journal cannot be read"
AHEAD = (
    "its record is ahead of the journal, which may have lost its end: with --session it is set"
    " back to what the journal gives"
)


@dataclass(frozen=True, slots=True)
class Repair:
    """A row to be written anew; `row` is None where the session has no record."""

    key: bytes
    partition: int
    why: str
    row: bytes | None
    journal_offset: int | None

    @property
    def session_id(self) -> str:
        """The session, for people."""
        return self.key.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Untouched:
    """A session whose row is wrong and is not touched."""

    session_id: str
    partition: int
    why: str


@dataclass(slots=True)
class _Life:
    """One session: its row, and its replay so far."""

    row: SessionRecord | None = None
    unreadable: bool = False
    record: SessionRecord | None = None
    acknowledged: SessionRecord | None = None
    is_compared: bool = False
    is_right: bool = False
    bad_entry: bool = False

    def compare(self) -> None:
        """The replay has come to the place of the row."""
        if self.row is not None and not self.is_compared:
            self.is_right = self.record is not None and is_same(self.row, self.record)
        self.is_compared = True


@dataclass(slots=True)
class PartitionRebuild:
    """One partition: its changelog first, then its journal, then the verdicts.

    `begin` and `end` are those of the journal, `committed` is where the workers read on.
    `named` are sessions that a person has named: those may be set back.
    """

    partition: int
    begin: int
    end: int
    committed: int
    named: frozenset[str] = frozenset()
    lives: dict[bytes, _Life] = field(default_factory=dict)
    _rows: dict[bytes, bytes | None] = field(default_factory=dict)
    _fold: RowFold = field(init=False)

    def __post_init__(self) -> None:
        self._fold = RowFold(self._rows.get)

    def take_row(self, key: bytes, value: bytes | None) -> None:
        """A record of the changelog."""
        self._fold.take(key, value)
        self._rows.update(self._fold.drain())

    def end_rows(self) -> None:
        """The changelog is read: the journal follows.

        Raises:
            TerminalError: a row was written by a newer version.

        """
        for key, raw in self._rows.items():
            if raw is None:
                continue
            life = self.lives[key] = _Life()
            try:
                life.row = decode_record(raw)
            except (ValueError, KeyError, TypeError) as error:
                _refuse_newer(raw, "v", RECORD_SCHEMA, error)
                life.unreadable = True
        for key in self._fold.unreadable:
            self.lives.setdefault(key, _Life()).unreadable = True

    def take_entry(self, key: bytes, value: bytes | None, at: Position) -> None:
        """An entry of the journal.

        Raises:
            TerminalError: it was written by a newer version.

        """
        life = self.lives.setdefault(key, _Life())
        if life.row is None:
            life.is_compared = True
        elif at.offset > life.row.journal_offset:
            life.compare()
        if life.bad_entry or (life.is_compared and at.offset >= self.committed):
            return
        entry = _read_entry(value)
        if entry is None:
            life.bad_entry = True
            return
        record = apply(life.record, entry, at).record
        life.record = None if record is None else replace(record, outbox={})
        if at.offset < self.committed:
            life.acknowledged = life.record

    def verdicts(self) -> Iterator[Repair | Untouched]:
        """What is wrong, session by session."""
        for key, life in self.lives.items():
            life.compare()
            session_id = key.decode(errors="replace")
            why = self._fault(life)
            if why is None:
                continue
            hindered = self._hindrance(session_id, life)
            if hindered is not None:
                yield Untouched(session_id, self.partition, hindered)
                continue
            good = life.acknowledged
            row = None if good is None else encode_record(good)
            place = None if good is None else good.journal_offset
            yield Repair(key, self.partition, why, row, place)

    def not_provable(self) -> int:
        """How many sessions cannot be replayed, since their first entries are gone."""
        rows = (life.row for life in self.lives.values())
        return sum(1 for row in rows if row is not None and row.opened_offset < self.begin)

    def _fault(self, life: _Life) -> str | None:
        """What is wrong with a session's row, if anything is."""
        good = life.acknowledged
        if life.unreadable:
            return UNREADABLE
        if life.row is None:
            return MISSING if good is not None else None
        if life.row.opened_offset < self.begin:
            return None  # nobody can tell: not provable
        if not life.is_right:
            return INVENTED if life.record is None else DIFFERENT
        is_behind = good is not None and good.journal_offset > life.row.journal_offset
        return BEHIND if is_behind else None

    def _hindrance(self, session_id: str, life: _Life) -> str | None:
        """Why a row that is wrong is not repaired."""
        if life.bad_entry:
            return BAD_ENTRY
        if self.begin > 0 and not _begins_as_told(life):
            return CUT
        is_ahead = life.row is not None and life.row.journal_offset >= self.end
        if is_ahead and session_id not in self.named:
            return AHEAD
        return None


def _begins_as_told(life: _Life) -> bool:
    """Whether the replay begins where the row says that the session does."""
    if life.row is None or life.record is None:
        return False
    return life.row.opened_offset == life.record.opened_offset


def _read_entry(value: bytes | None) -> Entry | None:
    try:
        return decode_entry(value or b"")
    except (ValueError, KeyError, TypeError) as error:
        _refuse_newer(value or b"", "v", SCHEMA_VERSION, error)
        _refuse_newer(value or b"", "rules", RULES_VERSION, error)
        return None


def _refuse_newer(raw: bytes, name: str, known: int, error: Exception) -> None:
    try:
        version = orjson.loads(raw)[name]
    except (ValueError, KeyError, TypeError):
        return
    if isinstance(version, int) and version > known:
        raise TerminalError(f"{error}; nothing was repaired") from None
