"""`audit`: green on what the workers write, red on what they cannot have written (G3, G7, G8)."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.structs import TopicPartition

from agents_stream import replay as replaying
from agents_stream.core.actions import IssueCommand
from agents_stream.core.decider import Decision, apply
from agents_stream.core.flows.promos import CREATED_TEXT
from agents_stream.core.fold import EndedDeadline
from agents_stream.core.session import Deadline, SessionRecord, decode_record, encode_record
from agents_stream.kafka import ranges, topic_admin
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import partition_for
from agents_stream.replay import Replay, Report
from agents_stream.settings import Settings
from tests.http.shown_worker import Log
from tests.kafka.cluster import Cluster, cluster
from tests.kafka.command_line import Answer, cli


async def audit(settings: Settings) -> Answer:
    """`audit --json`."""
    return await cli(settings, "audit", "--json")


async def live(seen: Cluster, session: str) -> SessionRecord:
    """The last record of a session in the changelog."""
    topic = seen.topic("agents-stream-sessions-changelog")
    place = (topic, partition_for(session.encode(), seen.settings.partitions))
    async with ranges.reader(seen.settings) as client:
        spans = await ranges.bounds(client, [place])
        rows = [line async for line in ranges.read(client, spans) if line.key == session.encode()]
    return decode_record(rows[-1].value)


async def forge(seen: Cluster, record: SessionRecord) -> None:
    """Append a record to the changelog, as no worker would."""
    await seen.producer.send_and_wait(
        seen.topic("agents-stream-sessions-changelog"),
        encode_record(record),
        key=record.session_id.encode(),
        timestamp_ms=time.time_ns() // 1_000_000,
    )


async def run_some(seen: Cluster) -> tuple[str, str, str]:
    """Sessions that are silent, answer, and close."""
    silent, answering, closed = [await seen.open() for _ in range(3)]
    for session in (silent, answering, closed):
        await seen.collect(session)
    await seen.message(answering)
    await seen.send("agent/session.close", closed, reason="completed")
    await seen.offer(silent)
    await seen.collect(answering)
    await seen.until(lambda: ("promos", "timeout", "auto_created_order") in seen.outcomes(silent))
    await seen.until(lambda: len(seen.outcomes(answering)) >= 2)
    return silent, answering, closed


async def test_green_and_red(kafka_settings: Settings) -> None:
    """What workers wrote is proved, also while one runs; a forged record is found (G3, G7, G8)."""
    async with cluster(kafka_settings) as seen:
        empty = await audit(kafka_settings)
        assert empty.code == 0, empty
        assert (empty.code, empty.json["ok"], empty.json["sessions"]) == (0, True, 0)
        worker = await seen.worker().ready()
        silent, answering, closed = await run_some(seen)
        green = await audit(kafka_settings)
        assert green.code == 0, green
        told = green.json
        assert (told["sessions"], told["orderMessages"], told["notProvable"]) == (3, 1, 0)
        counts = told["deadlines"]
        ended = counts["fired"] + counts["cancelled"] + counts["replaced"]
        assert counts["armed"] == ended + counts["standing"] == 5
        assert worker.end() == 0
        assert (await audit(kafka_settings)).json["ok"]
        await _forge_all(seen, silent, answering, closed)


async def _forge_all(seen: Cluster, silent: str, answering: str, closed: str) -> None:
    """One forgery after the other; each adds what it breaks."""
    settings = seen.settings
    record = await live(seen, answering)
    await forge(seen, replace(record, journal_offset=record.journal_offset - 1, mode="late"))
    assert (await audit(settings)).json["ok"], "a paused worker's late write is no violation (G9)"
    higher = record.journal_offset + 1_000
    await forge(seen, replace(record, journal_offset=higher, mode="forged"))
    red = await audit(settings)
    assert (red.code, red.json["violationCount"]) == (1, 1), red
    [violation] = red.json["violations"]
    assert (violation["sessionId"], violation["guarantee"]) == (answering, "G8")
    fields = {item["field"] for item in violation["differences"]}
    assert {"mode", "journal_offset"} <= fields
    people = await cli(settings, "audit")
    assert people.code == 1
    assert "forged" in people.out
    assert answering in people.out
    await forge(seen, SessionRecord("nobody", journal_offset=5, journal_timestamp=5))
    assert {item["sessionId"] for item in (await audit(settings)).json["violations"]} == {
        answering,
        "nobody",
    }
    command = {
        "id": "invented",
        "sessionId": closed,
        "inputs": {"contactId": "c", "message": CREATED_TEXT},
    }
    await seen.producer.send_and_wait(
        seen.topic("tool.whatsapp.message.send"), orjson.dumps(command), key=closed.encode()
    )
    found = [(i["sessionId"], i["guarantee"]) for i in (await audit(settings)).json["violations"]]
    assert (closed, "G7") in found
    await _cut_journal(seen, silent)
    told = (await audit(settings)).json
    assert told["notProvable"] >= 1
    assert silent not in {item["sessionId"] for item in told["violations"]}


async def _cut_journal(seen: Cluster, session: str) -> None:
    """Delete the head of a session's journal, as retention does."""
    topic = seen.topic("session.journal")
    place = TopicPartition(topic, partition_for(session.encode(), seen.settings.partitions))
    record = await live(seen, session)
    admin = AIOKafkaAdminClient(**client_options(seen.settings))
    await admin.start()
    try:
        before = RecordsToDelete(before_offset=record.opened_offset + 1)
        await admin.delete_records({place: before})
    finally:
        await admin.close()


async def made_anew(settings: Settings) -> None:
    """Wait until a topic that is being deleted exists again."""
    for _ in range(100):
        if await topic_admin.apply(settings):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the topic was not made anew")


async def test_a_lost_record(kafka_settings: Settings) -> None:
    """What the workers' group acknowledged and no record holds is found (G8)."""
    async with cluster(kafka_settings) as seen:
        worker = await seen.worker().ready()
        session = await seen.open()
        await seen.collect(session)
        await seen.until_outcomes(session, ("data_collection", "timeout", "sent_pending_message"))
        assert worker.end() == 0
        admin = AIOKafkaAdminClient(**client_options(kafka_settings))
        await admin.start()
        try:
            await admin.delete_topics([seen.topic("agents-stream-sessions-changelog")])
        finally:
            await admin.close()
        await made_anew(kafka_settings)
        red = await audit(kafka_settings)
        assert red.code == 1, red
        [violation] = red.json["violations"]
        assert (violation["sessionId"], violation["guarantee"]) == (session, "G8")
        assert "no record" in violation["detail"]


Change = Callable[[Decision], Decision]


def replayed(log: Log, session: str, change: Change, at_entry: int, monkeypatch: Any) -> Report:
    """Replay a session with a decider that is wrong about one entry."""
    report = Report()
    one = Replay(session, 0, report, set())
    for number, (entry, at) in enumerate(log.lines(session)):
        with monkeypatch.context() as patch:
            if number == at_entry:
                patch.setattr(replaying, "apply", lambda *told: change(apply(*told)))
            one.follow(entry, at)
    one.compare(log.record(session))
    return report


def _with(decision: Decision, **changes: Any) -> Decision:
    assert decision.record is not None
    return replace(decision, record=replace(decision.record, **changes))


def _forget_deadlines(decision: Decision) -> Decision:
    return _with(decision, deadlines={})


def _end_twice(decision: Decision) -> Decision:
    return replace(decision, ended=decision.ended * 2)


def _revive(decision: Decision) -> Decision:
    return _with(decision, deadlines={"promos.reply": Deadline(5, 1)})


def _end_what_never_was(decision: Decision) -> Decision:
    return replace(decision, ended=(EndedDeadline("promos.reply", 2, 5, "fired"),))


@pytest.fixture
def log() -> Log:
    """A session that was asked for data, answered, was silent at the offer, and got its order."""
    log = Log()
    log.start("s-1")
    log.ask_for_data("s-1")
    log.message("s-1", "hola")
    log.offer("s-1")
    log.fall_due("s-1", "promos.reply")
    log.result("s-1", "succeeded", outputs={"id": "order-1"})
    log.result("s-1", "succeeded")
    return log


def test_a_true_journal_breaks_nothing(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replay of a journal by the decider that wrote the record breaks no guarantee."""
    report = replayed(log, "s-1", lambda decision: decision, 0, monkeypatch)
    assert report.violations == []
    assert (report.armed, report.cancelled, report.fired) == (2, 1, 1)
    assert report.order_messages == 1


@pytest.mark.parametrize(
    "change, at_entry, words",
    [
        (_forget_deadlines, 1, "vanished"),
        (_forget_deadlines, 3, "vanished"),
        (_end_twice, 2, "twice"),
        (_revive, 5, "stands again"),
        (_end_what_never_was, 0, "never armed"),
    ],
)
def test_deadlines_that_do_not_end_once(
    log: Log, monkeypatch: pytest.MonkeyPatch, change: Change, at_entry: int, words: str
) -> None:
    """A deadline that vanishes, ends twice, stands again or was never armed breaks G3."""
    if change is _forget_deadlines:
        # Armed by one entry and gone with the next: the next entry is the one that is wrong.
        log.start("s-2")
        log.ask_for_data("s-2")
        log.event("s-2", "agent/data.captured", data={"nombre": "Ana"})
        report = replayed(log, "s-2", change, 2, monkeypatch)
    else:
        report = replayed(log, "s-1", change, at_entry, monkeypatch)
    assert any(item.guarantee == "G3" and words in item.detail for item in report.violations)


def test_a_deadline_that_does_not_stand(log: Log) -> None:
    """A deadline that neither ended nor stands in the record breaks G3 beside G8."""
    log.start("s-2")
    log.ask_for_data("s-2")
    report = Report()
    one = Replay("s-2", 0, report, set())
    for entry, at in log.lines("s-2"):
        one.follow(entry, at)
    one.compare(replace(log.record("s-2"), deadlines={}))
    assert sorted(item.guarantee for item in report.violations) == ["G3", "G8"]


def test_an_order_that_nothing_proves(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message about an order without that order's success before it breaks G7."""
    success = log.lines("s-1")[5][0]

    def too_early(*told: Any) -> Decision:
        entry = told[1]
        if entry.kind != "deadline":
            return apply(*told)
        decision = apply(*told)
        ahead = apply(decision.record, replace(success, data=_answer(decision)), _next(told[2]))
        return replace(ahead, ended=decision.ended)

    monkeypatch.setattr(replaying, "apply", too_early)
    report = Report()
    one = Replay("s-1", 0, report, set())
    for entry, at in log.lines("s-1")[:5]:
        one.follow(entry, at)
    assert [item.guarantee for item in report.violations] == ["G7"]


def _answer(decision: Decision) -> dict[str, Any]:
    [command] = [item.command for item in decision.actions if isinstance(item, IssueCommand)]
    told = {"commandId": command["id"], "attempt": 1, "status": "succeeded"}
    return {**told, "sessionId": command["sessionId"], "outputs": {"id": "order-9"}}


def _next(at: Any) -> Any:
    return replace(at, offset=at.offset + 1, timestamp=at.timestamp + 1)


def test_violations_are_bounded() -> None:
    """A report keeps the first violations and counts them all."""
    report = Report()
    one = Replay("s", 0, report, set())
    for number in range(replaying.MAX_VIOLATIONS + 5):
        one.violated("G8", "x", number)
    assert report.violation_count == replaying.MAX_VIOLATIONS + 5
    assert len(report.to_json()["violations"]) == replaying.MAX_VIOLATIONS
