"""The views of one worker: what its own table and journal partitions can tell."""

import asyncio
import heapq
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, Protocol

from agents_stream.core.session import Deadline, SessionRecord
from agents_stream.views.forms import Json, letter_json, session_json, summary_json, timer_json
from agents_stream.views.http import Rejection
from agents_stream.views.queries import (
    LetterQuery,
    SessionQuery,
    TimelineQuery,
    TimerPlace,
    TimerQuery,
    letters_cursor,
    sessions_cursor,
    timeline_cursor,
    timers_cursor,
)
from agents_stream.views.reads import Letter, Reads
from agents_stream.views.timeline import MAX_PAGE_BYTES, read_state, read_stretch

MAX_SCANNED: Final = 100_000
"""A page of sessions looks at so many records; what lies beyond is for its cursor."""

BREATH_EVERY: Final = 50
"""So many records are looked at in one go, about a millisecond's work."""

SORTED_AT_ONCE: Final = 4_000
COLLECTED_AT_ONCE: Final = 500
SCANS_AT_ONCE: Final = 2
LIMIT_S: Final = 8.0


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list; `next_cursor` asks for what follows, None when nothing does."""

    items: list[Json]
    next_cursor: str | None = None

    def to_json(self) -> Json:
        """The list of SPEC §8."""
        return {"items": self.items, "nextCursor": self.next_cursor}


class Views(Protocol):
    """What the API and the pages show. Every method raises `Rejection` when it cannot answer."""

    async def session(self, session_id: str) -> Json:
        """One session, as in SPEC §8."""

    async def timeline(self, session_id: str, query: TimelineQuery) -> Page:
        """What happened to a session."""

    async def sessions(self, query: SessionQuery) -> Page:
        """Sessions in the order of their ids."""

    async def timers(self, query: TimerQuery) -> Page:
        """Deadlines in the order of their due times."""

    async def dead_letters(self, query: LetterQuery) -> Page:
        """Dead letters, the newest first."""

    async def cluster(self) -> Json:
        """Workers, partitions and the sizes of their tables."""


class LocalViews:
    """The views of this worker alone: of its own partitions, or a refusal that says why not."""

    def __init__(self, reads: Reads, limit_s: float = LIMIT_S) -> None:
        self._reads = reads
        self._limit_s = limit_s
        self._scans = asyncio.Semaphore(SCANS_AT_ONCE)

    async def session(self, session_id: str) -> Json:
        """One session of this worker; the state of a closed one is told by its journal."""
        record = self._own(session_id)
        if record.state:
            return session_json(record)
        try:
            async with self._bounded("the journal of this session"):
                state = await read_state(self._reads.journal(session_id), record)
        except Rejection:
            state = None  # it lived long among many others: all else is told at once
        if state is None:
            return {**session_json(record), "stateUnknown": True}
        return session_json(replace(record, state=state))

    async def timeline(self, session_id: str, query: TimelineQuery) -> Page:
        """The timeline of a session of this worker."""
        self._own(session_id)
        async with self._bounded("the journal of this session"):
            items, more = await read_stretch(self._reads.journal(session_id), query)
        return Page(items, timeline_cursor(items[-1]["offset"]) if more else None)

    async def sessions(self, query: SessionQuery) -> Page:
        """The sessions of this worker; a page ends early when few of very many match."""
        self._require_ready()
        found: list[Json] = []
        last = query.after
        scanned = 0
        async with self._bounded("the sessions"), self._scans:
            async for record in self._ordered(query.after):
                if len(found) >= query.limit or scanned >= MAX_SCANNED:
                    return Page(found, sessions_cursor(last))
                scanned += 1
                last = record.session_id
                if query.matches(record):
                    found.append(summary_json(record))
        return Page(found)

    async def timers(self, query: TimerQuery) -> Page:
        """The deadlines of this worker's sessions."""
        self._require_ready()
        soonest: list[tuple[TimerPlace, int]] = []
        async with self._bounded("the timers"), self._scans:
            async for some in self._deadlines(query):
                # One more than asked for tells whether anything follows.
                soonest = heapq.nsmallest(query.limit + 1, [*soonest, *some])
        shown = soonest[: query.limit]
        items = [
            timer_json(session_id, name, Deadline(due_at_ms, generation))
            for (due_at_ms, session_id, name), generation in shown
        ]
        return Page(items, timers_cursor(shown[-1][0]) if len(soonest) > len(shown) else None)

    async def dead_letters(self, query: LetterQuery) -> Page:
        """Dead letters lie in one topic for all: every worker answers for the whole of it."""
        async with self._bounded("the dead letters"):
            reading = self._reads.dead_letters(query.limit + 1, query.before)
            shown, more = await _some_letters(reading, query.limit)
        cursor = letters_cursor(shown[-1].place) if more else None
        return Page([letter_json(letter) for letter in shown], cursor)

    async def cluster(self) -> Json:
        """What this worker has, and what it knows of the others."""
        ready, missing = self._reads.ready()
        return {
            "ready": ready,
            "missing": None if ready else missing,
            "partitionCount": self._reads.partition_count(),
            "members": [
                {"url": member.url, "self": member.is_self, "partitions": list(member.partitions)}
                for member in self._reads.members()
            ],
            "tables": [
                {"partition": partition, "sessions": sessions, "deadlines": deadlines}
                for partition, (sessions, deadlines) in sorted(self._reads.table_sizes().items())
            ],
        }

    def _own(self, session_id: str) -> SessionRecord:
        partition = self._reads.partition_of(session_id)
        if not any(m.is_self and partition in m.partitions for m in self._reads.members()):
            said = f"Partition {partition} is not (or no longer) at this worker: ask again"
            raise Rejection(503, "owner_unavailable", said)
        self._require_ready()
        record = self._reads.get(session_id)
        if record is None:
            raise Rejection(404, "not_found", "There is no session of this id")
        return record

    def _require_ready(self) -> None:
        ready, missing = self._reads.ready()
        if not ready:
            raise Rejection(503, "not_ready", missing or "This worker is not ready yet")

    async def _ordered(self, after: str) -> AsyncIterator[SessionRecord]:
        """The records with an id above `after`, in the order of their ids."""
        ids = (item for item in self._reads.session_ids() if item > after)
        runs: list[list[str]] = []
        while run := sorted(islice(ids, SORTED_AT_ONCE)):
            runs.append(run)
            await asyncio.sleep(0)
        async for record in self._records(heapq.merge(*runs)):
            yield record

    async def _records(self, ids: Iterable[str]) -> AsyncIterator[SessionRecord]:
        for count, session_id in enumerate(ids, start=1):
            record = self._reads.get(session_id)
            if record is not None:  # a rebalance may have taken it away meanwhile
                yield record
            if count % BREATH_EVERY == 0:
                await asyncio.sleep(0)

    async def _deadlines(self, query: TimerQuery) -> AsyncIterator[list[tuple[TimerPlace, int]]]:
        """The deadlines that are asked for with their generations, some at a time, unordered."""
        some: list[tuple[TimerPlace, int]] = []
        async for record in self._records(self._reads.session_ids()):
            for name, deadline in record.deadlines.items():
                place = (deadline.due_at_ms, record.session_id, name)
                early = query.before_ms is None or deadline.due_at_ms < query.before_ms
                if early and (query.after is None or place > query.after):
                    some.append((place, deadline.generation))
            if len(some) >= COLLECTED_AT_ONCE:
                yield some
                some = []
        yield some

    @asynccontextmanager
    async def _bounded(self, what: str) -> AsyncIterator[None]:
        """Read `what` within the time limit."""
        try:
            async with asyncio.timeout(self._limit_s):
                yield
        except TimeoutError as late:
            said = f"Reading {what} took longer than {self._limit_s:g} s"
            raise Rejection(503, "too_slow", said) from late


async def _some_letters(
    reading: AsyncGenerator[Letter, None], limit: int
) -> tuple[list[Letter], bool]:
    """As many letters as fit on a page, and whether there are more."""
    shown: list[Letter] = []
    size = 0
    async with aclosing(reading):
        async for letter in reading:
            size += len(letter.value or b"")
            if shown and (len(shown) >= limit or size > MAX_PAGE_BYTES):
                return shown, True
            shown.append(letter)
    return shown, False
