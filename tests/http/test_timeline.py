"""The timeline: the journal folded again."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.core.journal import Entry, Position
from agents_stream.views import timeline
from agents_stream.views.queries import TimelineQuery
from agents_stream.views.timeline import read_stretch
from tests.http.shown_worker import Log, ShownWorker

FIELDS = {"offset", "at", "kind", "name", "data", "actions", "reasons", "version"}


async def read(log: Log, query: TimelineQuery) -> tuple[list[dict[str, Any]], bool]:
    """Read a part of the timeline of s1."""
    return await read_stretch(ShownWorker(log, range(log.partitions)).journal("s1"), query)


async def items_of(log: Log, **query: Any) -> list[dict[str, Any]]:
    """The whole timeline of s1."""
    items, more = await read(log, TimelineQuery(**query))
    assert not more
    return items


def promos_with_retry() -> Log:
    """A session on which everything that a timeline shows has happened once."""
    log = Log()
    log.start("s1")
    log.offer("s1")
    log.fall_due("s1", "promos.reply")
    log.result("s1", "failed", retryable=True, error={"code": "http_503", "message": "down"})
    retry = next(iter(log.record("s1").deadlines))
    log.fall_due("s1", retry)
    log.result("s1", "succeeded", outputs={"id": "order-1"}, tool="crm.order.create")
    log.result("s1", "succeeded", outputs={})
    log.start("s1")
    log.start("s2")
    return log


async def test_an_item_has_the_fields_of_the_contract_and_no_others() -> None:
    """SPEC §8: every item has the eight fields that programs read."""
    items = await items_of(promos_with_retry())
    assert [set(item) for item in items] == [FIELDS] * 8


async def test_the_whole_way_of_an_order_can_be_read() -> None:
    """Kinds, names (of the event, the deadline, the tool), actions and reasons, oldest first."""
    log = promos_with_retry()
    items = await items_of(log)
    retry = items[4]["name"]
    assert retry.startswith("retry:")
    story = [(i["kind"], i["name"], [a["type"] for a in i["actions"]]) for i in items]
    assert story == [
        ("event", "agent/session.started", []),
        ("event", "agent/promos.offered", []),
        ("deadline", "promos.reply", ["command"]),
        ("result", "crm.order.create", []),
        ("deadline", retry, ["command"]),
        ("result", "crm.order.create", ["command"]),
        ("result", "whatsapp.message.send", ["outcome"]),
        ("event", "agent/session.started", []),
    ]
    assert items[4]["actions"][0]["body"]["attempt"] == 2
    assert items[6]["actions"][0]["body"]["orderId"] == "order-1"
    assert items[7]["reasons"] == ["already_started"]
    assert items[-1]["version"] == log.record("s1").version


async def test_the_time_of_an_item_is_what_was_now_for_its_decision() -> None:
    """An event counts by its own record's time, a deadline by its journal record's (SPEC §4)."""
    log = promos_with_retry()
    lines = log.lines("s1")
    items = await items_of(log)
    event, at = lines[1]
    assert items[1]["at"] == "2026-01-31T12:00:00.002Z"
    assert at.timestamp == event.source.timestamp + 2
    due, at = lines[2]
    assert items[2]["at"] == "2026-01-31T12:10:00.005Z"
    assert at.timestamp == due.source.timestamp + 2


async def test_the_fold_ends_at_the_record_of_the_table() -> None:
    """G8: what the timeline says of the last entry is what the worker's record says."""
    log = promos_with_retry()
    last = (await items_of(log, changes=True))[-1]
    assert last["offset"] == log.record("s1").journal_offset
    assert last["version"] == log.record("s1").version


async def test_changes_tell_what_became_of_timers_and_mode() -> None:
    """With `changes`, an item also names the deadlines armed and ended, and a new mode."""
    items = await items_of(promos_with_retry(), changes=True)
    told = [item["changes"] for item in items]
    assert told[1]["mode"] == "ofrecer_promos"
    assert [item["name"] for item in told[1]["armed"]] == ["promos.reply"]
    assert told[1]["armed"][0]["dueAt"] == "2026-01-31T12:10:00.002Z"
    generation = items[1]["offset"]
    assert told[2]["ended"] == [{"name": "promos.reply", "generation": generation, "end": "fired"}]
    assert told[6]["mode"] == "compra_confirmada"
    assert told[7] == {"armed": [], "ended": [], "mode": None}


async def test_a_result_for_a_session_that_does_not_exist_has_no_version() -> None:
    """An entry that opens no session is shown with its reason."""
    log = Log()
    log.start("s1")
    entry, at = log.lines("s1")[0]

    async def journal() -> AsyncGenerator[tuple[Entry, Position], None]:
        data = {"sessionId": "s1", "commandId": "x", "attempt": 1, "status": "succeeded"}
        yield replace(entry, kind="result", name="tool/result", data=data), at

    items, _ = await read_stretch(journal(), TimelineQuery())
    assert [(i["name"], i["reasons"], i["version"]) for i in items] == [
        ("tool/result", ["unknown_session"], None)
    ]


@given(count=st.integers(0, 40), limit=st.integers(1, 15), order=st.sampled_from(["asc", "desc"]))
async def test_pages_give_every_item_exactly_once(count: int, limit: int, order: Any) -> None:
    """Following the cursor from page to page gives the whole timeline in its order."""
    log = Log()
    log.start("s1")
    for number in range(count):
        log.message("s1", f"message {number}")
    seen: list[int] = []
    edge, more = None, True
    while more:
        items, more = await read(log, TimelineQuery(limit, edge, order))
        assert 0 < len(items) <= limit
        assert items[0]["offset"] not in seen
        seen += [item["offset"] for item in items]
        edge = seen[-1]
    offsets = [at.offset for _, at in log.lines("s1")]
    assert seen == (offsets if order == "asc" else offsets[::-1])


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_page_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch, order: Any) -> None:
    """However many items are asked for, a page stays below its size; one item always fits."""
    monkeypatch.setattr(timeline, "MAX_PAGE_BYTES", 5_000)
    log = Log()
    log.start("s1")
    for size in (1_000, 1_000, 2_000, 20_000, 1_000):
        log.message("s1", "x" * size)
    pages = []
    edge, more = None, True
    while more:
        items, more = await read(log, TimelineQuery(500, edge, order))
        assert items not in pages
        pages.append(items)
        edge = items[-1]["offset"]
    assert all(len(page) == 1 or len(orjson.dumps(page)) < 5_200 for page in pages)
    offsets = [item["offset"] for page in pages for item in page]
    assert sorted(offsets) == [at.offset for _, at in log.lines("s1")]
    assert all((a < b) == (order == "asc") for a, b in pairwise(offsets))


async def test_a_page_that_is_full_closes_the_journal() -> None:
    """A reader of Kafka is not left open because the page was full early."""
    log = promos_with_retry()
    worker = ShownWorker(log, range(log.partitions))
    items, more = await read_stretch(worker.journal("s1"), TimelineQuery(limit=2))
    assert (len(items), more) == (2, True)
    assert worker.open_reads == 0
