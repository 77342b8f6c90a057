"""`timers rebuild`: rows that are damaged come back from the journal, and everything ends right."""

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agents_stream.core.actions import encode_action
from agents_stream.core.decider import apply
from agents_stream.core.errors import TerminalError
from agents_stream.core.journal import Position, decode_entry
from agents_stream.core.session import SessionRecord, decode_record, encode_record
from agents_stream.kafka import ranges
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.row_fold import RowFold
from agents_stream.kafka.topics import partition_for
from agents_stream.rebuilding import (
    AHEAD,
    BAD_ENTRY,
    BEHIND,
    CUT,
    DIFFERENT,
    INVENTED,
    MISSING,
    UNREADABLE,
    PartitionRebuild,
    Repair,
    Untouched,
)
from agents_stream.settings import Settings
from tests.kafka.cluster import Cluster, WorkerProcess, cluster
from tests.kafka.command_line import Answer, assert_told, cli
from tests.kafka.fakes import Read
from tests.kafka.test_audit import audit, forge, live, made_anew
from tests.stages.sessions_world import PLAN, told

CHANGELOG = "agents-stream-sessions-changelog"
ASKED = ("data_collection", "timeout", "sent_pending_message")
SENT = ("proactive", "sent", "reminder")


async def rebuild(settings: Settings, *arguments: str) -> Answer:
    """`timers rebuild --json`."""
    return await cli(settings, "timers", "rebuild", *arguments, "--json")


async def write(seen: Cluster, session: str, value: bytes | None) -> None:
    """Put something into the changelog, as no worker would."""
    key = session.encode()
    await seen.producer.send_and_wait(seen.topic(CHANGELOG), value, key=key)


def higher(record: SessionRecord, **changes: Any) -> SessionRecord:
    """A record that beats another at a recovery."""
    return replace(record, journal_timestamp=record.journal_timestamp + 1, **changes)


async def rewind(seen: Cluster, session: str, name: str) -> None:
    """Commit of the journal is as far as the first entry called so, as a crash leaves it."""
    topic = seen.topic("session.journal")
    place = topic, partition_for(session.encode(), seen.settings.partitions)
    async with ranges.reader(seen.settings) as client:
        spans = await ranges.bounds(client, [place])
        lines = [line async for line in ranges.read(client, spans)]
    [offset] = [
        line.offset
        for line in lines
        if line.key == session.encode() and orjson.loads(line.value)["name"] == name
    ]
    tp = TopicPartition(*place)
    consumer = AIOKafkaConsumer(
        **client_options(seen.settings),
        group_id=seen.settings.group_id,
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        consumer.assign([tp])
        await consumer.commit({tp: offset})
    finally:
        await consumer.stop()


async def until_alone(settings: Settings) -> None:
    """Wait until the group has missed a worker that was killed."""
    for _ in range(60):
        answer = await rebuild(settings, "--session", "nobody-at-all")
        if "neither the journal nor the table" in answer.err:
            return
        assert_told(answer, 1, "are running")
        await asyncio.sleep(0.3)
    raise AssertionError("the group has not missed its worker")


async def ended(worker: WorkerProcess) -> int:
    """Wait for the end that a worker makes itself."""
    assert worker.process is not None
    return await asyncio.to_thread(worker.process.wait, 60)


async def test_what_is_damaged_comes_back(kafka_settings: Settings) -> None:
    """G3, G8: killed, damaged in four ways, rebuilt, started: every deadline ends, once."""
    settings = kafka_settings.model_copy(update={"data_reply_timeout": 25_000})
    names = ("missing", "garbage", "untimed", "forged", "right")
    async with cluster(settings) as seen:
        worker = await seen.worker().ready()
        for name in names:
            await seen.open(name)
            await seen.collect(name)
            reminder = {"conversationId": "c", "workspaceId": "w", "messageType": "reminder"}
            await seen.send("agent/proactive.send", name, **reminder)
        for name in names:
            await seen.until_outcomes(name, SENT)
        assert_told(await rebuild(settings, "--yes"), 1, "are running", "Nothing was written")
        assert (await rebuild(settings, "--dry-run")).json["repairs"] == []
        worker.end(signal.SIGKILL)
        await until_alone(settings)
        await rewind(seen, "missing", "agent/proactive.send")
        untimed, forged = await live(seen, "untimed"), await live(seen, "forged")
        await write(seen, "missing", None)
        await write(seen, "garbage", b"\x00garbage")
        await forge(seen, higher(untimed, deadlines={}))
        await forge(seen, higher(forged, mode="forged"))
        await forge(seen, SessionRecord("nobody", journal_offset=1, journal_timestamp=5))
        assert await ended(worker.start()) == 1
        assert "agents-stream timers rebuild" in worker.tail()
        await until_alone(settings)

        expected = {
            "missing": MISSING,
            "garbage": UNREADABLE,
            "untimed": DIFFERENT,
            "forged": DIFFERENT,
            "nobody": INVENTED,
        }
        for arguments, code, written in (
            (("--dry-run",), 0, False),
            ((), 1, False),
            (("--yes",), 0, True),
        ):
            answer = await rebuild(settings, *arguments)
            assert (answer.code, answer.json["written"]) == (code, written), answer
            found = {item["sessionId"]: item["why"] for item in answer.json["repairs"]}
            assert found == expected
        unknown = await rebuild(settings, "--yes", "--session", "nosuch")
        assert_told(unknown, 1, "nosuch", "Nothing was written")
        again = await rebuild(settings, "--yes")
        assert (again.code, again.json["repairs"], again.json["written"]) == (0, [], False)
        green = await audit(settings)
        assert green.code == 0, green
        await worker.start().ready()
        for name in names:
            await seen.until_outcomes(name, SENT, ASKED, seconds=40)
            assert len(seen.messages(name)) == 2
        assert worker.end() == 0
        final = (await audit(settings)).json
        assert (final["ok"], final["sessions"]) == (True, len(names))
        assert final["deadlines"]["fired"] == final["deadlines"]["armed"] == len(names)


async def test_what_cannot_be_replayed_is_not_touched(kafka_settings: Settings) -> None:
    """Where the journal's beginning is gone nothing is made up: it is said, and exit code 1."""
    async with cluster(kafka_settings) as seen:
        worker = await seen.worker().ready()
        session = await seen.open()
        await seen.collect(session)
        await seen.until_outcomes(session, ASKED)
        assert worker.end() == 0
        record = await live(seen, session)
        topic = seen.topic("session.journal")
        tp = TopicPartition(topic, partition_for(session.encode(), seen.settings.partitions))
        admin = AIOKafkaAdminClient(**client_options(kafka_settings))
        await admin.start()
        try:
            before = RecordsToDelete(before_offset=record.opened_offset + 1)
            await admin.delete_records({tp: before})
        finally:
            await admin.close()
        whole = await rebuild(kafka_settings, "--yes")
        assert (whole.code, whole.json["notProvable"]) == (0, 1)
        await write(seen, session, None)
        answer = await rebuild(kafka_settings, "--yes")
        assert (answer.code, answer.json["written"]) == (1, False)
        assert [item["why"] for item in answer.json["untouched"]] == [CUT]
        people = await cli(kafka_settings, "timers", "rebuild", "--dry-run")
        assert_told(people, 1, session, "beginning")


async def test_a_table_made_again(kafka_settings: Settings) -> None:
    """G3, G8: the whole changelog is lost; it comes back, and its deadlines fire, once."""
    settings = kafka_settings.model_copy(update={"data_reply_timeout": 15_000})
    async with cluster(settings) as seen:
        worker = await seen.worker().ready()
        waiting, closed = await seen.open(), await seen.open()
        for session in (waiting, closed):
            await seen.collect(session)
        await seen.send("agent/session.close", closed, reason="handoff")
        await seen.until(lambda: seen.outcomes(closed)[-1:] == [("session", "closed", "handoff")])
        assert worker.end() == 0
        admin = AIOKafkaAdminClient(**client_options(settings))
        await admin.start()
        try:
            await admin.delete_topics([seen.topic(CHANGELOG)])
        finally:
            await admin.close()
        await made_anew(settings)
        answer = await rebuild(settings, "--yes")
        assert answer.code == 0, answer
        found = {item["sessionId"]: item["why"] for item in answer.json["repairs"]}
        assert found == {waiting: MISSING, closed: MISSING}
        worker.settings = settings.model_copy(update={"start_from": "latest"})
        await worker.start().ready()
        await seen.until_outcomes(waiting, ASKED, seconds=30)
        assert worker.end() == 0
        told = (await audit(settings)).json
        assert (told["ok"], told["sessions"]) == (True, 2), told
        assert len(seen.outcomes(closed)) == 2


@dataclass
class Table:
    """One session: what its journal leads to, and where a worker crashed."""

    journal: list[Read]
    committed: int
    end: int

    def __init__(self, words: Sequence[str], cut: int) -> None:
        self.journal = told([("s", word) for word in words]).journal
        self.end = self.journal[-1].offset + 1 if self.journal else 0
        places = [*(line.offset for line in self.journal), self.end]
        self.committed = places[cut % len(places)]

    def upto(self, count: int, record: SessionRecord | None = None) -> SessionRecord | None:
        """The record after so many entries; it owes what came since the commit."""
        for line in self.journal[:count]:
            record = apply(record, decode_entry(line.value or b""), place(line)).record
        if record is None:
            return None
        owed = {at: items for at, items in record.outbox.items() if at >= self.committed}
        return replace(record, outbox=owed)

    def rebuilt(self, *rows: bytes | None) -> tuple[bytes | None, list[Repair | Untouched]]:
        """The row that a recovery finds after a rebuild, and what the rebuild said."""
        part = PartitionRebuild(1, 0, self.end, self.committed)
        known: dict[bytes, bytes | None] = {}
        fold = RowFold(known.get)
        for row in rows:
            part.take_row(b"s", row)
            fold.take(b"s", row)
        part.end_rows()
        for line in self.journal:
            part.take_entry(line.key or b"", line.value, place(line))
        verdicts = list(part.verdicts())
        for verdict in verdicts:
            if isinstance(verdict, Repair):
                fold.take(b"s", None)
                if verdict.row is not None:
                    fold.take(b"s", verdict.row)
        assert not fold.unreadable or any(isinstance(item, Untouched) for item in verdicts)
        return fold.drain().get(b"s"), verdicts

    def worked_on(self, row: bytes | None) -> tuple[SessionRecord | None, set[str]]:
        """What a worker that reads on makes of it: the record, and the actions it publishes."""
        record = None if row is None else decode_record(row)
        published: set[str] = set()
        for line in self.journal:
            if line.offset < self.committed:
                continue
            decision = apply(record, decode_entry(line.value or b""), place(line))
            owed: Sequence[Any] = [encode_action(action) for action in decision.actions]
            if decision.repeated:
                assert record is not None
                owed = record.outbox.get(line.offset, ())
            published |= {told_action(item) for item in owed}
            record = decision.record
        return record, published


def place(line: Read) -> Position:
    """The place of a journal entry."""
    return Position(line.topic, line.partition, line.offset, line.timestamp)


def told_action(action: Any) -> str:
    """An action as text, whose id is the same whenever it is decided."""
    return orjson.dumps(action, option=orjson.OPT_SORT_KEYS).decode()


def bare(record: SessionRecord | None) -> SessionRecord | None:
    """A record without what it owes, as it is read back."""
    if record is None:
        return None
    return replace(decode_record(encode_record(record)), outbox={})


DAMAGES = ("none", "missing", "garbage", "garbage below", "forged", "timeless", "old")


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(PLAN), max_size=12),
    st.integers(0, 20),
    st.integers(0, 20),
    st.sampled_from(DAMAGES),
)
def test_nothing_owed_is_lost_by_a_rebuild(
    words: list[str], cut: int, ahead: int, damage: str
) -> None:
    """G1, G6, G8: wherever a worker crashed and whatever the damage, what follows is as it was.

    The group had committed up to some entry, the row was there or beyond. After the rebuild a
    worker that reads on comes to the same record, and publishes all that was decided since, with
    its ids.
    """
    table = Table(["start", *words], cut)
    done = sum(1 for line in table.journal if line.offset < table.committed)
    row = table.upto(min(len(table.journal), done + ahead))
    raw = None if row is None else encode_record(row)
    truth, published = table.worked_on(raw)
    rows: list[bytes | None] = [] if raw is None else [raw]
    if damage == "missing":
        rows.append(None)
    elif damage == "garbage":
        rows.append(b"\x00")
    elif damage == "garbage below":
        rows.insert(0, b"[]")
    elif row is not None and damage in {"forged", "timeless"}:
        change: dict[str, Any] = {"mode": "forged"} if damage == "forged" else {"deadlines": {}}
        stamp = row.journal_timestamp + (damage == "forged")
        rows.append(encode_record(replace(row, journal_timestamp=stamp, **change)))
    elif damage == "old" and (older := table.upto(done // 2)) is not None:
        rows = [encode_record(older)]
    repaired, verdicts = table.rebuilt(*rows)
    for verdict in verdicts:
        assert isinstance(verdict, Repair)
        assert verdict.row is None or decode_record(verdict.row).outbox == {}
    if damage == "none":
        assert verdicts == []
    found, again = table.worked_on(repaired)
    assert bare(found) == bare(truth)
    assert again >= published
    assert table.rebuilt(repaired)[1] == [], "a rebuild leaves nothing to rebuild"


def test_a_row_behind_what_was_acknowledged() -> None:
    """G8: a record that has lost its end is made anew."""
    table = Table(["start", "collect", "message"], 3)
    older = table.upto(1)
    assert older is not None
    assert [item.why for item in table.rebuilt(encode_record(older))[1]] == [BEHIND]


def test_what_is_not_judged() -> None:
    """A row ahead of the journal, a journal that cannot be read, a newer version: not touched."""
    table = Table(["start", "collect"], 2)
    row = table.upto(2)
    assert row is not None
    ahead = encode_record(replace(row, journal_offset=table.end + 5))
    [verdict] = table.rebuilt(ahead)[1]
    assert verdict == Untouched("s", 1, AHEAD)
    part = PartitionRebuild(1, 0, table.end, table.committed, frozenset({"s"}))
    part.take_row(b"s", ahead)
    part.end_rows()
    for line in table.journal:
        part.take_entry(line.key or b"", line.value, place(line))
    assert [item.why for item in part.verdicts()] == [DIFFERENT], "a person named it"

    table.journal[0] = replace(table.journal[0], value=b"{")
    assert table.rebuilt(None)[1] == []
    table.journal[1] = replace(table.journal[1], value=b"{")
    assert [item.why for item in table.rebuilt(b"\x00")[1]] == [BAD_ENTRY]
    newer = orjson.dumps({**orjson.loads(encode_record(row)), "v": 99})
    with pytest.raises(TerminalError, match="upgrade"):
        table.rebuilt(newer)
