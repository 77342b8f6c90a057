"""A session's timeline: its journal, folded again by the decider that the reducer uses.

Nothing on a timeline is stored. Since a record is a pure function of its journal (G8), folding
the entries once more gives what each of them led to, and why.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

import orjson

from agents_stream.core.actions import encode_action
from agents_stream.core.decider import Decision, apply
from agents_stream.core.journal import Entry, Position
from agents_stream.core.session import SessionRecord, iso
from agents_stream.views.forms import deadline_json
from agents_stream.views.queries import TimelineQuery

BREATH_EVERY: Final = 32
"""So many entries are folded in one go; other work of the worker runs in between."""

MAX_PAGE_BYTES: Final = 8 * 1024 * 1024
"""A page ends before it grows beyond this, however many items it may have; one always fits."""

Journal = AsyncGenerator[tuple[Entry, Position], None]
Items = AsyncGenerator[dict[str, Any], None]


async def read_stretch(journal: Journal, query: TimelineQuery) -> tuple[list[dict[str, Any]], bool]:
    """Fold a journal; return the items asked for and whether there are more beyond them."""
    async with aclosing(journal), aclosing(_fold(journal, query)) as items:
        return await (_oldest(items, query) if query.order == "asc" else _newest(items, query))


async def read_state(journal: Journal, closed: SessionRecord) -> Mapping[str, Any] | None:
    """The state that a session had when it was closed; None where its journal does not tell.

    The record of a closed session keeps no state (`core/stub.py`).
    """
    record: SessionRecord | None = None
    state: Mapping[str, Any] | None = None
    async with aclosing(journal):
        async for entry, at in journal:
            if record is None and at.offset > closed.opened_offset:
                return None  # its first entries are gone
            record = apply(record, entry, at).record
            if record is None:
                continue
            record = replace(record, outbox={})
            if record.status == "open":
                state = record.state
            if at.offset >= closed.journal_offset:
                break
    return state


async def _oldest(items: Items, query: TimelineQuery) -> tuple[list[dict[str, Any]], bool]:
    kept: list[dict[str, Any]] = []
    size = 0
    async for item in items:
        if query.edge is not None and item["offset"] <= query.edge:
            continue
        size += _size(item)
        if kept and (len(kept) >= query.limit or size > MAX_PAGE_BYTES):
            return kept, True
        kept.append(item)
    return kept, False


async def _newest(items: Items, query: TimelineQuery) -> tuple[list[dict[str, Any]], bool]:
    kept: deque[tuple[int, dict[str, Any]]] = deque()
    size = 0
    more = False
    async for item in items:
        if query.edge is not None and item["offset"] >= query.edge:
            break
        kept.append((_size(item), item))
        size += kept[-1][0]
        while len(kept) > 1 and (len(kept) > query.limit or size > MAX_PAGE_BYTES):
            size -= kept.popleft()[0]
            more = True
    return [item for _, item in reversed(kept)], more


async def _fold(journal: Journal, query: TimelineQuery) -> Items:
    """Apply entry after entry, as the reducer did, and describe each."""
    record: SessionRecord | None = None
    count = 0
    async for entry, at in journal:
        decision = apply(record, entry, at)
        item = _describe(record, entry, at, decision)
        yield {**item, "changes": _changes(record, decision)} if query.changes else item
        # The outbox is the reducer's bookkeeping; nothing here would ever empty it.
        record = replace(decision.record, outbox={}) if decision.record else None
        count += 1
        if count % BREATH_EVERY == 0:
            await asyncio.sleep(0)


def _describe(
    before: SessionRecord | None, entry: Entry, at: Position, decision: Decision
) -> dict[str, Any]:
    """One item of SPEC §8. `at` is the time that was "now" for the decision (SPEC §4)."""
    now_ms = at.timestamp if entry.kind == "deadline" else entry.source.timestamp
    return {
        "offset": at.offset,
        "at": iso(now_ms),
        "kind": entry.kind,
        "name": _name(before, entry),
        "data": entry.data,
        "actions": [encode_action(action) for action in decision.actions],
        "reasons": [reason.value for reason in decision.reasons],
        "version": decision.record.version if decision.record else None,
    }


def _changes(before: SessionRecord | None, decision: Decision) -> dict[str, Any]:
    """What an entry did to the timers, and to the mode (None: nothing)."""
    after = decision.record
    known = before.deadlines if before else {}
    armed = [] if after is None else [x for x in after.deadlines.items() if known.get(x[0]) != x[1]]
    mode_before = before.mode if before else None
    return {
        "armed": [deadline_json(name, deadline) for name, deadline in armed],
        "ended": [
            {"name": item.name, "generation": item.generation, "end": item.end}
            for item in decision.ended
        ],
        "mode": after.mode if after and after.mode != mode_before else None,
    }


def _name(before: SessionRecord | None, entry: Entry) -> str:
    """The event's name, the deadline's, or the tool's whose result it is."""
    if entry.kind == "deadline":
        return str(entry.data.get("name", entry.name))
    if entry.kind == "result":
        command = before.pending.get(entry.data.get("commandId", "")) if before else None
        return str(entry.data.get("tool") or (command.tool if command else entry.name))
    return entry.name


def _size(item: dict[str, Any]) -> int:
    return len(orjson.dumps(item))
