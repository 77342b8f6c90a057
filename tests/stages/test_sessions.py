"""The reducer's protocol: changelog, ack, table, actions, ack, done, and a crash in between."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_stream.core.journal import encode_entry
from agents_stream.core.session import decode_record
from agents_stream.kafka.consumer import Batch
from agents_stream.kafka.topics import ACTIONS, JOURNAL, SESSIONS_CHANGELOG, load_topics
from agents_stream.stages import sessions as sessions_module
from tests.kafka.fakes import Crash, Ended, FakeStream, Read, World
from tests.stages.sessions_world import PLAN, T0, Story, batches_of, begun, entry, substance, told

plans = st.lists(st.tuples(st.sampled_from(["s1", "s2"]), st.sampled_from(PLAN)), max_size=20)
crashes = st.lists(st.tuples(st.integers(1, 8), st.booleans(), st.floats(0, 1)), max_size=4)


@settings(deadline=None, max_examples=150)
@given(plans, crashes, st.lists(st.integers(1, 5), min_size=1), st.integers(1, 3))
async def test_whatever_crashes_every_action_is_published_and_every_record_is_right(
    plan: list[tuple[str, str]],
    accidents: list[tuple[int, bool, float]],
    sizes: list[int],
    entries_a_pass: int,
) -> None:
    """G1, G2, G6: a crash before or after any append, and any offset committed up to what is done.

    What comes out is what an undisturbed worker puts out, with the same ids, no less and no more.
    """
    story = told(plan)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sessions_module, "MAX_ENTRIES", entries_a_pass)
        world = World.made(monkeypatch)
        committed = 0
        for crash_at, late, share in [*accidents, (0, False, 1.0)]:
            running = begun(world)
            world.kafka.crash_at, world.kafka.crash_late = crash_at, late
            world.consumer.done_offsets.clear()
            unread = [record for record in story.journal if record.offset >= committed]
            cut = batches_of(unread, iter(sizes * (len(unread) + 1)))
            try:
                for batch in cut:
                    await running.stage.work([batch])
            except Crash:
                pass
            done = world.consumer.done_offsets.get((JOURNAL, 1), committed)
            _nothing_is_done_too_early(world, story, done)
            committed += int((done - committed) * share)
        published = [orjson.loads(line.value or b"") for line in world.kafka.lines(ACTIONS)]
    actions = [line["action"] for line in published]
    assert {orjson.dumps(action) for action in actions} == {
        orjson.dumps(action) for action in story.actions
    }
    final = {key: decode_record(row) for key, row in running.table.store.items()}
    assert {key: substance(record) for key, record in final.items()} == {
        key: substance(record) for key, record in story.records.items()
    }


def _nothing_is_done_too_early(world: World, story: Story, done: int) -> None:
    """G1: what an offset that may be committed has passed is in the changelog and published."""
    published = {line.value for line in world.kafka.lines(ACTIONS)}
    offsets = {orjson.loads(value or b"")["offset"] for value in published}
    owed = {offset for record in story.records.values() for offset in record.outbox}
    assert {offset for offset in owed if offset < done} <= offsets


async def test_the_steps_come_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN §3, step 4: changelog, table, wheel, actions, done; each ack awaited."""
    world = World.made(monkeypatch)
    running = begun(world)
    story = told([("s1", "start"), ("s1", "send")])
    await running.stage.work(list(batches_of(story.journal, iter([9]))))
    assert world.kafka.steps == [
        f"append {SESSIONS_CHANGELOG}",
        "install",
        "follow",
        f"append {ACTIONS}",
        f"done {JOURNAL}",
    ]
    assert world.consumer.done_offsets == {(JOURNAL, 1): story.journal[-1].offset + 1}


@pytest.mark.parametrize(
    ("crash_at", "late", "left"),
    [
        (1, False, []),
        (1, True, [SESSIONS_CHANGELOG]),
        (2, False, [SESSIONS_CHANGELOG]),
        (2, True, [SESSIONS_CHANGELOG, ACTIONS]),
    ],
    ids=["before the changelog", "before its ack", "before the actions", "before their ack"],
)
async def test_a_crash_leaves_what_the_table_of_the_module_says(
    monkeypatch: pytest.MonkeyPatch, crash_at: int, *, late: bool, left: list[str]
) -> None:
    """G1, G6: and the same batch again publishes the same ids, once more or for the first time."""
    world = World.made(monkeypatch)
    story = told([("s1", "start"), ("s1", "send"), ("s1", "close")])
    world.kafka.crash_at, world.kafka.crash_late = crash_at, late
    running = begun(world)
    batch = list(batches_of(story.journal, iter([9])))
    with pytest.raises(Crash):
        await running.stage.work(batch)
    assert [topic for topic in (SESSIONS_CHANGELOG, ACTIONS) if world.kafka.lines(topic)] == left
    assert not world.consumer.done_offsets
    assert (running.wheel.followed != []) == (crash_at == 2)
    world.kafka.crash_at = 0
    again = begun(world)
    await again.stage.work(batch)
    ids = [orjson.loads(line.value or b"")["action"] for line in world.kafka.lines(ACTIONS)]
    times = 2 if ACTIONS in left else 1
    assert ids == story.actions * times
    assert len(world.kafka.lines(SESSIONS_CHANGELOG)) == 1


async def test_a_later_write_keeps_what_the_crash_left_unpublished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN §3, step 5: the redelivered batch rewrites the record and still owes the actions."""
    world = World.made(monkeypatch)
    story = told([("s1", "start"), ("s1", "send"), ("s1", "message"), ("s1", "close")])
    first, second = story.journal[:2], story.journal[2:]
    world.kafka.crash_at = 2
    with pytest.raises(Crash):
        await begun(world).stage.work(list(batches_of(first, iter([9]))))
    world.kafka.crash_at = 2  # again after the changelog, before the actions
    with pytest.raises(Crash):
        await begun(world).stage.work(list(batches_of(first + second, iter([9]))))
    world.kafka.crash_at = 0
    await begun(world).stage.work(list(batches_of(first + second, iter([9]))))
    published = [orjson.loads(line.value or b"")["action"] for line in world.kafka.lines(ACTIONS)]
    assert published == story.actions


async def test_what_is_owed_is_published_where_the_journal_lost_its_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G1: nobody will bring the entries again whose actions a crash left unpublished."""
    world = World.made(monkeypatch)
    story = told([("s1", "start"), ("s1", "send"), ("s1", "close")])
    world.kafka.crash_at = 2  # after the changelog, before the actions
    with pytest.raises(Crash):
        await begun(world).stage.work(list(batches_of(story.journal, iter([9]))))
    world.kafka.crash_at = 0
    again = begun(world).stage
    await again.publish_owed(1)
    await again.publish_owed(2)  # another's by now
    published = [orjson.loads(line.value or b"")["action"] for line in world.kafka.lines(ACTIONS)]
    assert published == story.actions


async def test_what_was_acknowledged_leaves_the_outbox_with_the_next_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The record does not grow with what it has done."""
    world = World.made(monkeypatch)
    running = begun(world)
    story = told([("s1", "start")] + [("s1", "send"), ("s1", "message")] * 10)
    for batch in batches_of(story.journal, iter([1] * 30)):
        await running.stage.work([batch])
    record = decode_record(running.table.store.get(b"s1") or b"")
    assert len(record.outbox) <= 1


async def test_a_pass_is_bounded_in_bytes_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """G10: what one pass owes for a session must fit the changelog, however bad the input.

    Here a tool says twenty times that an order succeeded, at length, and never which order.
    """
    world = World.made(monkeypatch)
    running = begun(world)
    story = told([("s1", "start"), ("s1", "offer"), ("s1", "deadline")])
    [command] = story.records[b"s1"].pending.values()
    data: dict[str, Any] = {"commandId": command.id, "attempt": 1, "status": "succeeded"}
    data["outputs"] = {"note": '"' * 400_000}
    journal = [*story.journal]
    for number in range(100, 120):
        one = entry("result", "tool/result", "s1", data, number, T0 + 10_000)
        offset = journal[-1].offset + 1
        journal.append(Read(JOURNAL, 1, offset, T0 + 10_000, b"s1", encode_entry(one)))
    await running.stage.work(list(batches_of(journal, iter([100]))))
    limit = int(load_topics()[SESSIONS_CHANGELOG].config["max.message.bytes"])
    sizes = [len(line.value or b"") for line in world.kafka.lines(SESSIONS_CHANGELOG)]
    assert max(sizes) < limit - 10_000
    assert str(world.kafka.lines(ACTIONS)).count("outputs.id is required") == 20
    assert world.consumer.done_offsets == {(JOURNAL, 1): offset + 1}


async def test_a_write_without_a_proven_membership_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G9: there is no stamp to give."""
    world = World.made(monkeypatch)
    running = begun(world)
    world.engine.membership.forget()
    story = told([("s1", "start")])
    with pytest.raises(Ended, match="proven membership"):
        await running.stage.work(list(batches_of(story.journal, iter([1]))))
    assert not world.kafka.steps


async def test_records_carry_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """G9: the stamp is the brokers' time of the last good heartbeat, not now."""
    world = World.made(monkeypatch)
    running = begun(world)
    world.engine.membership.proven_stamp_ms = 1_000_000 - 1_234
    story = told([("s1", "start")])
    await running.stage.work(list(batches_of(story.journal, iter([1]))))
    [line] = world.kafka.lines(SESSIONS_CHANGELOG)
    assert line.timestamp_ms == 1_000_000 - 1_234


async def test_an_early_deadline_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """G3, G4: a wheel whose clock was ahead is told by how much."""
    world = World.made(monkeypatch)
    running = begun(world)
    story = told([("s1", "start"), ("s1", "collect"), ("s1", "early")])
    await running.stage.work(list(batches_of(story.journal, iter([9]))))
    assert running.wheel.early == [(1, "s1", "data_collection.reply", 7)]
    assert "data_collection.reply" in running.wheel.followed[-1].deadlines


async def test_a_decision_that_raises_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """G10: the event is in the dead letters, the error in the log, the next event is applied."""
    world = World.made(monkeypatch)
    running = begun(world)
    story = told([("s1", "start"), ("s1", "message"), ("s1", "send")])

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("agents_stream.core.decider.data_collection.on_message", broken)
    monkeypatch.setattr(
        "agents_stream.core.decider.RULES",
        {**sessions_rules(), "agent/customer.message": (broken,)},
    )
    await running.stage.work(list(batches_of(story.journal, iter([9]))))
    published = [orjson.loads(line.value or b"")["action"] for line in world.kafka.lines(ACTIONS)]
    assert "reducer_error" in str(published[0])
    assert len(published) == 2
    assert "ZeroDivisionError" in capsys.readouterr().out


def sessions_rules() -> dict[str, Any]:
    """The rules as they are."""
    from agents_stream.core.decider import RULES  # noqa: PLC0415 - read before it is replaced

    return dict(RULES)


async def test_an_entry_of_a_newer_version_ends_the_process_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An old worker in a rolling upgrade must not skip what it does not understand."""
    world = World.made(monkeypatch)
    running = begun(world)
    journal = told([("s1", "start")]).journal
    newer = orjson.dumps({**orjson.loads(journal[0].value or b""), "v": 99})
    stream = FakeStream(batches_of([replace(journal[0], value=newer)], iter([1])))  # type: ignore[arg-type]
    with pytest.raises(Ended, match="upgrade this worker"):
        await running.stage.run(stream)
    assert not world.consumer.done_offsets


async def test_what_a_pass_owes_for_one_session_fits_its_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G10: a hundred bytes in may owe 200 KiB; a record that Kafka refuses would stop everything.

    Every outcome names the session's workspace, and each of these events is rejected.
    """
    world = World.made(monkeypatch)
    running = begun(world)
    ids = {"workspaceId": "w" * 200_000, "agentId": "a", "conversationId": "c", "contactId": "x"}
    journal = [entry("event", "agent/session.started", "s1", {**ids, "mode": "m"}, 0, T0)]
    stale = {"expectedVersion": 99, "mode": "other"}
    journal += [entry("event", "agent/session.updated", "s1", stale, n, T0 + n) for n in range(60)]
    records = tuple(
        Read(JOURNAL, 1, n, T0 + n, b"s1", encode_entry(one)) for n, one in enumerate(journal)
    )
    await running.stage.work([Batch(JOURNAL, 1, records, 70, 0)])
    limit = int(load_topics()[SESSIONS_CHANGELOG].config["max.message.bytes"])
    rows = world.kafka.lines(SESSIONS_CHANGELOG)
    assert max(len(line.value or b"") for line in rows) < limit // 2
    assert len(world.kafka.lines(ACTIONS)) == 60
    assert world.consumer.done_offsets[JOURNAL, 1] == 70
    assert decode_record(rows[-1].value or b"").journal_offset == 60
