"""Every kind of fault, planted in a log that workers wrote: `audit` finds it, and says where."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from agents_stream.core.decider import apply
from agents_stream.core.journal import Position
from agents_stream.kafka.connection import client_options
from agents_stream.replay import Replay, Report
from agents_stream.settings import Settings
from tests.http.shown_worker import Log
from tests.kafka.cluster import Cluster, cluster
from tests.kafka.command_line import cli
from tests.kafka.test_audit import audit, forge, live, made_anew

ASKED = ("data_collection", "timeout", "sent_pending_message")

Plant = Callable[[Cluster, str], Awaitable[None]]


async def a_deadline_is_gone(seen: Cluster, session: str) -> None:
    """The record has lost its deadline."""
    record = await live(seen, session)
    assert record.deadlines
    beyond = record.journal_timestamp + 1
    await forge(seen, replace(record, deadlines={}, journal_timestamp=beyond))


async def a_command_is_gone(seen: Cluster, session: str) -> None:
    """The record does not know of its command."""
    record = await live(seen, session)
    assert record.pending
    await forge(seen, replace(record, pending={}, journal_timestamp=record.journal_timestamp + 1))


async def a_row_is_garbage(seen: Cluster, session: str) -> None:
    """The changelog holds bytes that no worker wrote."""
    await send(seen, "agents-stream-sessions-changelog", session, b"\x00garbage")


async def an_entry_is_garbage(seen: Cluster, session: str) -> None:
    """The journal does."""
    await send(seen, "session.journal", session, b"\x00garbage")


async def an_invented_outcome(seen: Cluster, session: str) -> None:
    """An outcome that no decision gave."""
    outcome = {"id": "x", "sessionId": session, "flow": "promos", "status": "timeout"}
    await send(seen, "agent.outcomes", session, orjson.dumps(outcome))


async def an_invented_order(seen: Cluster, session: str) -> None:
    """A command that no decision gave."""
    command = {"id": "y", "sessionId": session, "attempt": 1, "inputs": {}}
    await send(seen, "tool.crm.order.create", session, orjson.dumps(command))


async def a_second_attempt(seen: Cluster, session: str) -> None:
    """An attempt that no decision asked for, of a command that one did."""
    command = seen.values("tool.whatsapp.message.send", session)[0]
    raw = orjson.dumps({**command, "attempt": 2})
    await send(seen, "tool.whatsapp.message.send", session, raw)


PLANTS: dict[Plant, set[str]] = {
    a_deadline_is_gone: {"G3", "G8"},
    a_command_is_gone: {"G8"},
    a_row_is_garbage: {"G8"},
    an_entry_is_garbage: {"G8"},
    an_invented_outcome: {"G6"},
    an_invented_order: {"G6"},
    a_second_attempt: {"G6"},
}


async def send(seen: Cluster, topic: str, session: str, value: bytes) -> None:
    """Write what nobody should."""
    key = session.encode()
    await seen.producer.send_and_wait(seen.topic(topic), value, key=key)


async def test_every_planted_fault_is_found(kafka_settings: Settings) -> None:
    """One fault in each session: each is found, and nothing else (G1, G3, G6, G8)."""
    settings = kafka_settings.model_copy(update={"promos_reply_timeout": 3_600_000})
    silent = {"is": False}

    def reply(command: dict[str, Any]) -> dict[str, Any] | None:
        del command
        return None if silent["is"] else {"status": "succeeded", "outputs": {"id": "o-1"}}

    async with cluster(settings, reply) as seen:
        worker = await seen.worker().ready()
        sessions = {plant: await seen.open(plant.__name__) for plant in PLANTS}
        good = await seen.open("good")
        for session in (*sessions.values(), good):
            await seen.collect(session)
            await seen.until_outcomes(session, ASKED)
        silent["is"] = True
        for session in sessions.values():
            await seen.offer(session)  # a deadline stands
            name = {"conversationId": "c", "workspaceId": "w", "messageType": "reminder"}
            await seen.send("agent/proactive.send", session, **name)  # a command is pending
        for session in sessions.values():
            await seen.until(partial(_has_two_messages, seen, session))
        assert worker.end() == 0
        green = await audit(settings)
        assert green.code == 0, green
        told = green.json
        assert told["commands"] == {"issued": 15, "ended": 8, "pending": 7}
        assert told["published"] == 8 + 15
        for plant, session in sessions.items():
            await plant(seen, session)
        red = await audit(settings)
        assert red.code == 1
        found: dict[str, set[str]] = {}
        for item in red.json["violations"]:
            found.setdefault(item["sessionId"], set()).add(item["guarantee"])
        assert found == {plant.__name__: kinds for plant, kinds in PLANTS.items()}, red
        people = await cli(settings, "audit")
        assert all(session in people.out for session in sessions.values())
        assert good not in people.out
        await _lose_outcomes(seen)
        items = (await audit(settings)).json["violations"]
        lost = {item["sessionId"] for item in items if item["guarantee"] == "G1"}
        assert lost == {*sessions.values(), good}


def _has_two_messages(seen: Cluster, session: str) -> bool:
    return len(seen.messages(session)) == 2


async def test_beside_working_workers(kafka_settings: Settings) -> None:
    """While events come in, deadlines fire and commands go out, every look finds all in order."""
    async with cluster(kafka_settings) as seen:
        for _ in range(2):
            await seen.worker().ready()
        busy = asyncio.create_task(_keep_busy(seen))
        looks = [(await audit(kafka_settings)).json for _ in range(5)]
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)
    for look in looks:
        assert look["violations"] == []
    assert looks[0]["entries"] < looks[-1]["entries"]
    assert looks[-1]["published"] > 0


async def _keep_busy(seen: Cluster) -> None:
    """Sessions that are asked for data, answer or do not, and are closed."""
    while True:
        session = await seen.open()
        await seen.collect(session)
        await seen.offer(session)
        if int(session[-1], 16) % 2:
            await seen.message(session)
        if int(session[-1], 16) % 3 == 0:
            await seen.send("agent/session.close", session, reason="completed")


async def _lose_outcomes(seen: Cluster) -> None:
    """The outcomes' topic is made anew: what was published there is lost."""
    admin = AIOKafkaAdminClient(**client_options(seen.settings))
    await admin.start()
    try:
        await admin.delete_topics([seen.topic("agent.outcomes")])
    finally:
        await admin.close()
    await made_anew(seen.settings)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda _, after: replace(after, pending={}), "vanished without a result"),
        (lambda before, after: replace(after, pending=before), "stands again after its end"),
    ],
)
def test_commands_that_do_not_end_once(
    change: Callable[[Any, Any], Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that vanishes without its result, or comes back after its end, breaks G6."""
    log = Log()
    log.start("s-1")
    log.offer("s-1")
    log.fall_due("s-1", "promos.reply")
    pending = log.record("s-1").pending
    if "again" in words:
        log.result("s-1", "succeeded", outputs={"id": "order-1"})
    log.event("s-1", "agent/data.captured", data={"nombre": "Ana"})
    lines = log.lines("s-1")

    def wrong(record: Any, entry: Any, at: Position) -> Any:
        decision = apply(record, entry, at)
        if entry is not lines[-1][0]:
            return decision
        return replace(decision, record=change(pending, decision.record))

    monkeypatch.setattr("agents_stream.replay.apply", wrong)
    report = Report()
    one = Replay("s-1", 0, report, set())
    for entry, at in lines:
        one.follow(entry, at)
    found = [item for item in report.violations if words in item.detail]
    assert [item.guarantee for item in found] == ["G6"]


def test_a_command_that_ends_without_its_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that ends a command and tells no outcome, or two, breaks G6."""
    log = Log()
    log.start("s-1")
    log.ask_for_data("s-1")
    log.fall_due("s-1", "data_collection.reply")
    log.result("s-1", "succeeded")
    for count in (0, 1, 2):

        def told(record: Any, entry: Any, at: Position, count: int = count) -> Any:
            decision = apply(record, entry, at)
            if entry.kind != "result":
                return decision
            return replace(decision, actions=decision.actions * count)

        report = Report()
        with monkeypatch.context() as patch:
            patch.setattr("agents_stream.replay.apply", told)
            one = Replay("s-1", 0, report, set())
            for entry, at in log.lines("s-1"):
                one.follow(entry, at)
        words = [item.detail for item in report.violations]
        assert len(words) == (count != 1), words
        assert all(f"ended with {count} outcomes" in item for item in words)
