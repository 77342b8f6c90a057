"""The wheels: an index over the records' deadlines, never their owner (G3, G4)."""

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_stream.core.session import Deadline, SessionRecord, encode_record
from agents_stream.kafka.clock import BrokerClock
from agents_stream.kafka.store import MemoryStore
from agents_stream.kafka.topics import DEADLINES
from agents_stream.stages import timers as timers_module
from agents_stream.stages.timers import Timers
from tests.kafka.fakes import Ended, World

NOW = 1_700_000_000_000


class Ticking:
    """Timers on a clock that the test moves."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ms = 0.0
        world.engine.clock = BrokerClock(lambda: self.ms)
        world.engine.clock.observe(NOW)
        self.timers = Timers(world.engine)

    def at(self, ms: int) -> None:
        """It is so many milliseconds later than the beginning."""
        self.ms = float(ms)

    async def tick(self) -> list[tuple[str, str, int]]:
        """Publish what is due now: (session, name, generation) of what is new on the topic."""
        before = len(self.world.kafka.lines(DEADLINES))
        await self.timers._publish_due()
        lines = [orjson.loads(line.value or b"") for line in self.world.kafka.lines(DEADLINES)]
        new = lines[before:]
        return sorted((line["sessionId"], line["name"], line["generation"]) for line in new)


@pytest.fixture
async def one(monkeypatch: pytest.MonkeyPatch) -> Ticking:
    """Timers without a deadline."""
    return Ticking(World.made(monkeypatch))


def session(name: str, *, paused: bool = False, **deadlines: tuple[int, int]) -> SessionRecord:
    """A record with deadlines, each (milliseconds from the beginning, generation)."""
    armed = {key: Deadline(NOW + due, generation) for key, (due, generation) in deadlines.items()}
    return replace(SessionRecord(name), paused=paused, deadlines=armed, home=2)


def stored(*records: SessionRecord) -> MemoryStore:
    """The rows of a partition."""
    rows = MemoryStore()
    rows.put_many({record.session_id.encode(): encode_record(record) for record in records})
    return rows


async def test_a_deadline_is_published_once_and_never_early(one: Ticking) -> None:
    """G3, G4: by the brokers' clock, into the partition where the session's events arrive."""
    one.timers.follow(0, session("s", reply=(100, 7)))
    one.at(99)
    assert await one.tick() == []
    one.at(100)
    assert await one.tick() == [("s", "reply", 7)]
    one.timers.follow(0, session("s", reply=(100, 7)))  # the record is written again, unfired
    one.at(500_000)
    assert await one.tick() == []
    [(place, [line])] = one.world.kafka.log.items()
    assert place == (DEADLINES, 2)
    assert line.key == b"s"
    assert orjson.loads(line.value or b"")["dueAt"] == NOW + 100


async def test_nothing_is_published_before_the_brokers_time_is_known(one: Ticking) -> None:
    """G4: a worker's own clock may be years ahead."""
    one.timers.follow(0, session("s", reply=(100, 7)))
    one.world.engine.clock = BrokerClock(lambda: 4e12)
    assert await one.tick() == []


async def test_a_record_without_a_home_uses_its_own_partition(one: Ticking) -> None:
    """A session whose events all came without a key."""
    one.timers.follow(3, replace(session("s", reply=(1, 7)), home=None))
    one.at(10)
    await one.tick()
    assert set(one.world.kafka.log) == {(DEADLINES, 3)}


async def test_cancelled_replaced_and_paused_deadlines_are_followed(one: Ticking) -> None:
    """The wheel holds what the record holds."""
    one.timers.follow(0, session("s", reply=(100, 7), promos=(200, 8)))
    one.timers.follow(0, session("s", promos=(300, 9)))
    assert one.timers.sizes() == {0: 1}
    one.at(250)
    assert await one.tick() == []
    one.timers.follow(0, session("s", paused=True, promos=(300, 9)))
    one.at(400)
    assert await one.tick() == []
    one.timers.follow(0, session("s", promos=(300, 9)))  # resumed: what is due runs at once
    assert await one.tick() == [("s", "promos", 9)]


async def test_a_deadline_that_was_early_is_published_again(one: Ticking) -> None:
    """G3, G4: a worker whose clock was ahead by 50 ms waits for those 50 ms."""
    one.timers.follow(0, session("s", reply=(100, 7)))
    one.at(100)
    assert await one.tick() == [("s", "reply", 7)]
    one.timers.again(0, "s", "reply", 50)
    one.at(149)
    assert await one.tick() == []
    one.at(150)
    assert await one.tick() == [("s", "reply", 7)]


async def test_again_for_what_has_gone_does_nothing(one: Ticking) -> None:
    """A cancelled deadline, or a partition that has been revoked."""
    one.timers.follow(0, session("s", reply=(100, 7)))
    one.timers.follow(0, session("s"))
    one.timers.again(0, "s", "reply", 5)
    one.timers.again(1, "s", "reply", 5)
    one.at(1_000)
    assert await one.tick() == []


async def test_the_wheel_is_rebuilt_from_the_rows_and_from_nothing_else(one: Ticking) -> None:
    """G3: after a restart a deadline that was published and not fired is published again."""
    one.timers.follow(0, session("old", reply=(100, 1)))
    one.at(100)
    await one.tick()
    rows = [session("s", reply=(100, 7)), session("p", paused=True, reply=(100, 8))]
    await one.timers.rebuild(0, stored(*rows))
    assert await one.tick() == [("s", "reply", 7)]


async def test_a_partition_that_stays_keeps_its_wheel(one: Ticking) -> None:
    """G3: a rebalance that leaves the rows leaves the wheel: nothing is lost, nothing repeated."""
    rows = stored(session("fired", reply=(100, 7)), session("waits", reply=(300, 8)))
    await one.timers.rebuild(0, rows)
    one.at(100)
    assert await one.tick() == [("fired", "reply", 7)]
    one.timers.follow(0, session("armed since", reply=(200, 9)))
    one.world.engine.on_revoked()
    one.world.engine.on_revoked()  # two rebalances in a row
    one.at(250)
    assert await one.tick() == []
    await one.timers.rebuild(0, rows)
    assert await one.tick() == [("armed since", "reply", 9)]
    one.at(300)
    assert await one.tick() == [("waits", "reply", 8)]


async def test_a_deadline_goes_where_the_events_arrive_now(one: Ticking) -> None:
    """G5: producers with another partitioner took over while it was armed; so did its way."""
    armed = session("s", reply=(100, 7))
    one.timers.follow(0, armed)
    one.timers.follow(0, replace(armed, home=3))
    one.at(100)
    assert await one.tick() == [("s", "reply", 7)]
    assert set(one.world.kafka.log) == {(DEADLINES, 3)}
    one.timers.follow(0, replace(armed, home=1))
    assert await one.tick() == []  # it is under way


async def test_brokers_whose_clock_goes_back_hold_up_no_deadline(one: Ticking) -> None:
    """G4, G11: a clock that was an hour ahead and is put right delays by minutes."""
    hour = 3_600_000
    rows = stored(session("early", reply=(2_000, 7)), session("later", reply=(400_000, 8)))
    await one.timers.rebuild(0, rows)
    one.at(1_000)
    one.world.engine.clock.observe(NOW + 1_000 + hour)
    assert await one.tick() == [("early", "reply", 7), ("later", "reply", 8)]
    one.timers.again(0, "early", "reply", 1_000)  # so says the reducer, by the records' stamps
    one.timers.again(0, "later", "reply", 399_000)
    for at in (70_000, 140_000, 210_000):  # the bound forgets the hour
        one.at(at)
        one.world.engine.clock.observe(NOW + at)
    assert await one.tick() == [("early", "reply", 7)]
    one.timers.follow(0, session("new", reply=(300_000, 9)))
    assert await one.tick() == []
    one.at(300_000)
    assert await one.tick() == [("new", "reply", 9)]
    one.at(399_999)
    assert await one.tick() == []
    one.at(400_000)
    assert await one.tick() == [("later", "reply", 8)]


async def test_other_rows_get_another_wheel(one: Ticking) -> None:
    """G3, G9: what came back after another worker had it is rebuilt, and the old wheel is gone."""
    before = stored(session("s", reply=(100, 7)), session("gone", reply=(100, 8)))
    await one.timers.rebuild(0, before)
    one.world.engine.on_revoked()
    del before
    gc.collect()
    assert len(one.timers._resting) == 0
    await one.timers.rebuild(0, stored(session("s", reply=(100, 9))))
    one.at(100)
    assert await one.tick() == [("s", "reply", 9)]


async def test_a_revoked_partition_publishes_nothing(
    one: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the revoke came while its wheel was being rebuilt."""
    monkeypatch.setattr(timers_module, "_REBUILD_SLICE", 1)
    rows = stored(*(session(f"s{number}", reply=(1, 7)) for number in range(5)))
    rebuilding = asyncio.create_task(one.timers.rebuild(0, rows))
    await asyncio.sleep(0)
    one.world.engine.on_revoked()
    await rebuilding
    assert one.timers.sizes() == {}
    one.at(1_000)
    assert await one.tick() == []


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["s1", "s2"]),
            st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 300), max_size=2),
            st.booleans(),
            st.integers(0, 60),
        ),
        max_size=20,
    )
)
async def test_what_is_published_is_what_stands_and_is_due(
    writes: list[tuple[str, dict[str, int], bool, int]],
) -> None:
    """G3, G4: whatever is armed, replaced, paused or cancelled: each generation once, in time."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        one = Ticking(World.made(monkeypatch))
        standing: dict[tuple[str, str], tuple[int, int]] = {}
        published: set[tuple[str, str, int]] = set()
        now = 0
        for generation, (name, dues, paused, passed) in enumerate(writes):
            kept = {
                key: standing[name, key]
                if standing.get((name, key), (None,))[0] == due
                else (due, generation)
                for key, due in dues.items()
            }
            standing = {key: value for key, value in standing.items() if key[0] != name}
            if paused:  # what was published before a pause is published again after it
                published = {key for key in published if key[0] != name}
            else:
                standing |= {(name, key): value for key, value in kept.items()}
            one.timers.follow(0, session(name, paused=paused, **kept))
            now += passed
            one.at(now)
            expected = {
                (other, key, born)
                for (other, key), (due, born) in standing.items()
                if due <= now and (other, key, born) not in published
            }
            assert set(await one.tick()) == expected
            published |= expected


@pytest.fixture
async def running(one: Ticking) -> AsyncIterator[Ticking]:
    """Timers whose loop runs, on the real monotonic clock."""
    one.world.engine.clock = BrokerClock()
    one.world.engine.clock.observe(NOW)
    await one.timers.start()
    yield one
    await one.timers.stop()


async def test_the_loop_sleeps_until_the_next_deadline_and_wakes_for_an_earlier_one(
    running: Ticking,
) -> None:
    """G4: milliseconds late at low load, and no polling in between."""
    running.timers.follow(0, session("late", reply=(60_000, 1)))
    await asyncio.sleep(0.02)
    running.timers.follow(0, session("soon", reply=(100, 2)))
    await asyncio.sleep(0.05)
    assert running.world.kafka.appends == 0
    await asyncio.sleep(0.1)
    [line] = running.world.kafka.lines(DEADLINES)
    assert line.key == b"soon"


async def test_wheels_that_nobody_looks_at_are_noticed(
    one: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G11: a timer is due, and the task that publishes it does not come."""
    hang = asyncio.Event()
    monkeypatch.setattr(one.timers, "_publish_due", hang.wait)
    assert one.timers.stalled_s() == 0
    await one.timers.start()
    one.timers.follow(0, session("s", reply=(0, 7)))
    await asyncio.sleep(0.02)
    assert one.timers.stalled_s() > 0
    hang.set()
    await asyncio.sleep(0.02)
    await one.timers.stop()


async def test_an_error_while_publishing_ends_the_process(one: Ticking) -> None:
    """G11: no worker goes on without its timers."""
    one.world.kafka.error = ConnectionError("refused")
    one.timers.follow(0, session("s", reply=(0, 7)))
    with pytest.raises(Ended, match="the timers failed"):
        await one.timers._publish_for_ever()
