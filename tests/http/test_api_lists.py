"""The lists of the read API: filters, order, pages."""

from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_stream.views import local, remote
from agents_stream.views.local import LocalViews, Page
from agents_stream.views.queries import (
    SessionQuery,
    TimerQuery,
    sessions_cursor,
    sessions_query,
    timers_query,
)
from tests.http.asking import all_pages, get, ids, many, ok
from tests.http.shown_worker import Log, ShownWorker, run_cluster


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"status": "open"},
        {"status": "closed"},
        {"mode": "collecting_data"},
        {"workspace": "w1"},
        {"q": "S00"},
        {"q": "+57 1"},
        {"q": "c-s03"},
        {"status": "open", "mode": "ofrecer_promos", "workspace": "w0", "q": "5"},
        {"q": "nobody"},
        {"status": "", "mode": "", "q": ""},
    ],
)
async def test_filters_choose_the_sessions_of_all_workers(words: dict[str, str]) -> None:
    """A list has the sessions of every worker that pass all filters, in the order of their ids."""
    log = many(40)

    def passes(session_id: str) -> bool:
        record = log.record(session_id)
        told = f"{record.session_id}\n{record.conversation_id}\n{record.contact_id}".lower()
        return (
            words.get("status") in ("", None, record.status)
            and words.get("mode") in ("", None, record.mode)
            and words.get("workspace") in (None, record.workspace_id)
            and words.get("q", "").lower() in told
        )

    expected = sorted(filter(passes, log.rows))
    async with run_cluster(log, count=3) as cluster:
        for url in cluster.urls:
            assert ids((await ok(f"{url}/api/sessions", **words))["items"]) == expected


@pytest.mark.parametrize("limit", [1, 2, 7, 39, 40, 41])
async def test_pages_of_sessions_hold_each_exactly_once(limit: int) -> None:
    """The cursor of one worker is good at every other; nothing is missing, nothing comes twice."""
    log = many(40)
    async with run_cluster(log, count=3) as cluster:
        items = await all_pages(cluster.urls, "/api/sessions", limit=limit)
    assert ids(items) == sorted(log.rows)


async def test_the_limit_is_50_and_at_most_500() -> None:
    """Without a limit a page has 50 sessions; more than 500 are never given at once."""
    log = Log()
    for number in range(520):
        log.start(f"s{number}")
    async with run_cluster(log, count=2) as cluster:
        url = f"{cluster.urls[0]}/api/sessions"
        assert len((await ok(url))["items"]) == 50
        assert len((await ok(url, limit=100_000))["items"]) == 500


async def test_a_list_stays_whole_when_a_page_looks_at_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rare match in a large table: pages may be short or empty, the cursor leads to all."""
    monkeypatch.setattr(local, "MAX_SCANNED", 3)
    log = many(40)
    async with run_cluster(log, count=2) as cluster:
        first = await ok(f"{cluster.urls[0]}/api/sessions", q="s039")
        assert first["items"] == []
        assert first["nextCursor"] is not None
        assert ids(await all_pages(cluster.urls, "/api/sessions", q="s039")) == ["s039"]
        assert ids(await all_pages(cluster.urls, "/api/sessions")) == sorted(log.rows)


async def test_timers_are_sorted_by_due_time_across_workers() -> None:
    """`/api/timers` has every armed deadline, the next one first, as SPEC §8 writes them."""
    log = many(40)
    expected = sorted(
        (deadline.due_at_ms, session_id, name)
        for session_id in log.rows
        for name, deadline in log.record(session_id).deadlines.items()
    )
    async with run_cluster(log, count=3) as cluster:
        items = (await ok(f"{cluster.urls[1]}/api/timers"))["items"]
        assert all(set(item) == {"sessionId", "name", "dueAt", "generation"} for item in items)
        assert [(item["sessionId"], item["name"]) for item in items] == [x[1:] for x in expected]
        paged = await all_pages(cluster.urls, "/api/timers", limit=3)
        assert paged == items
        edge = items[5]["dueAt"]
        moment = datetime.fromisoformat(edge)
        local_time = moment.astimezone(UTC).isoformat(timespec="milliseconds")
        for before in (edge, str(round(moment.timestamp() * 1000)), local_time):
            some = (await ok(f"{cluster.urls[0]}/api/timers", before=before))["items"]
            assert some == items[:5]


@given(
    dues=st.lists(st.integers(0, 5), max_size=30),
    limit=st.integers(1, 10),
    before=st.none() | st.integers(0, 6),
)
@settings(max_examples=60, deadline=None)
async def test_pages_of_timers_hold_each_exactly_once(
    dues: list[int], limit: int, before: int | None
) -> None:
    """Also where many are due in the same millisecond."""
    log = Log()
    for number, due in enumerate(dues):
        log.now_ms = due  # equal numbers give equal due times
        log.ask_for_data(f"s{number}")
    first = min((min(_dues(log, item)) for item in log.rows), default=0)
    before_ms = None if before is None else first + before
    views = LocalViews(ShownWorker(log, range(log.partitions)))
    query: TimerQuery | None = TimerQuery(before_ms, limit)
    seen: list[tuple[str, str]] = []
    while query is not None:
        page = await views.timers(query)
        assert len(page.items) <= limit
        seen += [(item["dueAt"], item["sessionId"]) for item in page.items]
        after = timers_query({"cursor": page.next_cursor}).after if page.next_cursor else None
        query = TimerQuery(before_ms, limit, after) if after else None
    wanted = [s for s in log.rows if before_ms is None or min(_dues(log, s)) < before_ms]
    assert seen == sorted(seen)
    assert sorted(session_id for _, session_id in seen) == sorted(wanted)


def _dues(log: Log, session_id: str) -> list[int]:
    return [deadline.due_at_ms for deadline in log.record(session_id).deadlines.values()]


@given(
    session_ids=st.sets(st.text(min_size=1, max_size=4), max_size=25),
    workers=st.integers(1, 3),
    limit=st.integers(1, 9),
    scanned=st.integers(1, 30),
)
@settings(max_examples=60, deadline=None)
async def test_merged_pages_are_one_sorted_list(
    session_ids: set[str], workers: int, limit: int, scanned: int
) -> None:
    """However pages of several workers end, together they give each session once, in order."""
    log = Log()
    for session_id in session_ids:
        log.start(session_id)
    shares = [
        LocalViews(ShownWorker(log, range(n, log.partitions, workers))) for n in range(workers)
    ]
    seen: list[str] = []
    after, more = "", True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "MAX_SCANNED", scanned)
        patch.setattr(local, "SORTED_AT_ONCE", 3)
        while more:
            query = SessionQuery(limit=limit, after=after)
            pages = [await share.sessions(query) for share in shares]
            assert all(len(page.items) <= limit for page in pages)
            page = _merged(pages, limit)
            seen += ids(page.items)
            more = page.next_cursor is not None
            after = sessions_query({"cursor": page.next_cursor or ""}).after
    assert seen == sorted(session_ids)


def _merged(pages: list[Page], limit: int) -> Page:
    edges = [sessions_query({"cursor": p.next_cursor}).after for p in pages if p.next_cursor]
    found = {item["sessionId"]: item for page in pages for item in page.items}
    items, edge = remote.merge(found, edges, limit)
    return Page(items, None if edge is None else sessions_cursor(edge))


async def test_dead_letters_come_newest_first() -> None:
    """Each with its own fields and its place; pages hold each exactly once."""
    log = Log()
    for number in range(13):
        letter = {"id": str(number), "reason": "invalid_json", "detail": "d", "value": "{"}
        log.bury(number % 4, orjson.dumps(letter))
    async with run_cluster(log, count=2) as cluster:
        items = await all_pages(cluster.urls, "/api/dead-letters", limit=5)
    assert [item["id"] for item in items] == [str(number) for number in reversed(range(13))]
    newest = {"partition": 0, "offset": 3, "at": "2026-01-31T12:00:00.013Z"}
    assert items[0] == {**items[0], **newest, "reason": "invalid_json"}


async def test_a_page_of_dead_letters_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Letters may be large: a page ends early, and none is lost; one always fits."""
    monkeypatch.setattr(local, "MAX_PAGE_BYTES", 2_500)
    log = Log()
    for number, size in enumerate((100, 1_000, 1_000, 1_000, 9_000, 10)):
        log.bury(0, orjson.dumps({"reason": "x", "id": str(number), "value": "v" * size}))
    async with run_cluster(log) as cluster:
        first = await ok(f"{cluster.urls[0]}/api/dead-letters")
        assert [item["id"] for item in first["items"]] == ["5"]
        items = await all_pages(cluster.urls, "/api/dead-letters")
    assert [item["id"] for item in items] == ["5", "4", "3", "2", "1", "0"]


@pytest.mark.parametrize("value", [b"no json", b"[1]", b'{"a": 1}', b"", b"\xff\x00"])
async def test_a_dead_letter_of_somebody_else_is_shown_all_the_same(value: bytes) -> None:
    """A record that is no dead letter of ours neither breaks the list nor goes unseen."""
    log = Log()
    log.bury(0, value, key=None)
    async with run_cluster(log) as cluster:
        (item,) = (await ok(f"{cluster.urls[0]}/api/dead-letters"))["items"]
        assert (await get(f"{cluster.urls[0]}/dead-letters")).status_code == 200
    assert (item["reason"], item["encoding"]) == ("unreadable", "base64")
