"""The wheel against a sorted list, its memory, and its jumps."""

import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from agents_stream.core import wheel as wheel_module
from agents_stream.core.wheel import TimerWheel

NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
YEAR_MS = 365 * 24 * HOUR_MS

timer_ids = st.integers(0, 30)
distances_ms = st.one_of(
    st.integers(-50, 3),
    st.integers(-5, 300),
    st.integers(250, 70_000),
    st.integers(0, 20 * YEAR_MS),
    st.sampled_from([1, 255, 256, 511, 512, 360_000, YEAR_MS, 2**40 - 1, 2**40, 2**45]),
)


class WheelAgainstSortedList(RuleBasedStateMachine):
    """Any order of calls; the model is a dict that is sorted at every question."""

    def __init__(self) -> None:
        super().__init__()
        # So low that cleaning and splitting take part in the few steps of a run.
        self.limits = wheel_module.GARBAGE_SLACK, wheel_module.CROWDED
        wheel_module.GARBAGE_SLACK, wheel_module.CROWDED = 3, 2
        self.wheel = TimerWheel(NOW_MS)
        self.now_ms = NOW_MS
        self.model: dict[int, int] = {}

    def teardown(self) -> None:
        """At the end of time nothing is left behind; put the limits of the module back."""
        self.advance_to(NOW_MS + 10_000 * YEAR_MS)
        assert (self.wheel._entries, self.wheel._buckets, self.wheel._keys) == (0, {}, [])
        wheel_module.GARBAGE_SLACK, wheel_module.CROWDED = self.limits

    @rule(timer_id=timer_ids, distance_ms=distances_ms)
    def schedule(self, timer_id: int, distance_ms: int) -> None:
        """Arm a timer, or arm it anew."""
        self.wheel.schedule(timer_id, self.now_ms + distance_ms)
        self.model[timer_id] = self.now_ms + distance_ms

    @rule(first_id=timer_ids, distance_ms=distances_ms, step_ms=st.integers(0, 40))
    def schedule_many(self, first_id: int, distance_ms: int, step_ms: int) -> None:
        """Fill a bucket or a few."""
        for n in range(8):
            self.schedule(first_id + n, distance_ms + n * step_ms)

    @rule(timer_id=timer_ids)
    def cancel(self, timer_id: int) -> None:
        """Cancel a timer that may or may not stand."""
        assert self.wheel.cancel(timer_id) is (self.model.pop(timer_id, None) is not None)

    @rule()
    def cancel_the_earliest(self) -> None:
        """Cancel the one that a cached answer would be about."""
        if self.model:
            self.cancel(min(self.model, key=self.model.__getitem__))

    @rule(distance_ms=distances_ms)
    def advance(self, distance_ms: int) -> None:
        """Let some time pass, or go back a little."""
        self.advance_to(self.now_ms + distance_ms)

    @rule(early_ms=st.integers(0, 1))
    def advance_to_the_next(self, early_ms: int) -> None:
        """Go where the shell would wake up, or a millisecond before."""
        due_at_ms = self.wheel.next_due_at_ms()
        if due_at_ms is not None:
            self.advance_to(due_at_ms - early_ms)

    def advance_to(self, to_ms: int) -> None:
        """Compare what is due with the model."""
        expected = []
        if to_ms >= self.now_ms:
            self.now_ms = to_ms
            expected = sorted((due, i) for i, due in self.model.items() if due <= to_ms)
        for _, timer_id in expected:
            del self.model[timer_id]
        assert self.wheel.advance(to_ms) == expected

    @rule()
    def ask_for_the_next(self) -> None:
        """Compare the earliest due time with the model."""
        assert self.wheel.next_due_at_ms() == min(self.model.values(), default=None)

    @invariant()
    def holds_the_same(self) -> None:
        """Compare what stands with the model."""
        assert len(self.wheel) == len(self.model)
        assert [i for i in range(40) if i in self.wheel] == sorted(self.model)


def test_any_order_of_calls_agrees_with_a_sorted_list() -> None:
    """G3, G4: what is due comes out, each once, never early, whatever happened before."""
    run_state_machine_as_test(
        WheelAgainstSortedList,
        settings=settings(max_examples=150, stateful_step_count=40, deadline=None),
    )


@given(st.lists(distances_ms, max_size=60))
def test_each_timer_fires_once_and_at_its_millisecond(distances: list[int]) -> None:
    """G3, G4: going from one due time to the next, each timer comes at its own and only there."""
    wheel = TimerWheel(NOW_MS)
    for timer_id, distance_ms in enumerate(distances):
        wheel.schedule(timer_id, NOW_MS + distance_ms)
    fired = wheel.advance(NOW_MS)
    while (next_ms := wheel.next_due_at_ms()) is not None:
        assert wheel.advance(next_ms - 1) == []
        due = wheel.advance(next_ms)
        assert {due_at_ms for due_at_ms, _ in due} == {next_ms}
        fired += due
    assert fired == sorted((NOW_MS + d, i) for i, d in enumerate(distances))
    assert len(wheel) == 0


def test_a_rescheduled_timer_fires_at_its_new_time_only() -> None:
    """G3: a replaced deadline does not fire, whether the new time is later or earlier."""
    wheel = TimerWheel(NOW_MS)
    wheel.schedule(1, NOW_MS + 100)
    wheel.schedule(1, NOW_MS + 200)
    wheel.schedule(2, NOW_MS + 300)
    wheel.schedule(2, NOW_MS + 150)
    assert wheel.advance(NOW_MS + 100) == []
    assert wheel.advance(NOW_MS + 1000) == [(NOW_MS + 150, 2), (NOW_MS + 200, 1)]


def test_cancelled_and_scheduled_again_for_the_same_time_fires_once() -> None:
    """G3: two entries of one timer in one bucket are one timer."""
    wheel = TimerWheel(NOW_MS)
    for _ in range(3):
        wheel.schedule(1, NOW_MS + 360_000)
        wheel.cancel(1)
    wheel.schedule(1, NOW_MS + 360_000)
    assert wheel.advance(NOW_MS + 360_000) == [(NOW_MS + 360_000, 1)]
    assert wheel.advance(NOW_MS + 720_000) == []


def test_an_overdue_timer_comes_at_the_next_advance_even_to_the_same_time() -> None:
    """What was due before it was scheduled is due at once."""
    wheel = TimerWheel()
    assert wheel.advance(NOW_MS) == []
    wheel.schedule(1, NOW_MS - YEAR_MS)
    wheel.schedule(2, NOW_MS)
    assert wheel.next_due_at_ms() == NOW_MS - YEAR_MS
    assert wheel.advance(NOW_MS) == [(NOW_MS - YEAR_MS, 1), (NOW_MS, 2)]


def test_time_that_goes_backwards_returns_nothing() -> None:
    """G3, G4: a clock that was set back neither fires nor fails; nothing is lost meanwhile."""
    wheel = TimerWheel(NOW_MS)
    for timer_id, overdue_ms in [(1, 30), (2, 20), (3, 10)]:
        wheel.schedule(timer_id, NOW_MS - overdue_ms)
    assert wheel.advance(NOW_MS - 15) == []
    wheel.cancel(1)
    assert wheel.next_due_at_ms() == NOW_MS - 20
    assert wheel.advance(NOW_MS) == [(NOW_MS - 20, 2), (NOW_MS - 10, 3)]


def test_the_earliest_may_be_in_a_bucket_that_starts_later() -> None:
    """A wide bucket that was filled long ago overlaps the narrow ones that are filled now."""
    wheel = TimerWheel(0)
    start_ms = 2048 * 200
    wheel.schedule(1, start_ms + 2000)
    wheel.advance(start_ms - 100)
    wheel.schedule(2, start_ms + 500)
    wheel.schedule(3, start_ms - 50)
    wheel.cancel(3)
    assert wheel.next_due_at_ms() == start_ms + 500


def test_an_id_or_a_time_beyond_64_bits_is_refused_and_changes_nothing() -> None:
    """A limit on everything, checked before anything is written."""
    wheel = TimerWheel(NOW_MS)
    for timer_id, due_at_ms in [(2**63, NOW_MS), (1, 2**63)]:
        with pytest.raises(OverflowError):
            wheel.schedule(timer_id, due_at_ms)
    wheel.schedule(2**63 - 1, 2**63 - 1)
    assert len(wheel) == 1
    assert wheel.next_due_at_ms() == 2**63 - 1


def test_a_jump_over_idle_years_takes_no_ticks() -> None:
    """A hundred idle years with a timer now and then cost as little as a hundred idle seconds."""
    wheel = TimerWheel(NOW_MS)
    for n in range(100):
        wheel.schedule(n, NOW_MS + n * YEAR_MS + n)
    started = time.perf_counter()
    fired = [
        timer_id for n in range(100) for _, timer_id in wheel.advance(NOW_MS + n * YEAR_MS + n)
    ]
    assert fired == list(range(100))
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("now_ms", [NOW_MS, NOW_MS + HOUR_MS], ids=["ahead", "overdue"])
def test_a_timer_takes_few_bytes(now_ms: int) -> None:
    """A million deadlines of a worker are 130 MB, not a graph of objects; after an outage too."""
    wheel = TimerWheel(now_ms)
    tracemalloc.start()
    for timer_id in range(50_000):
        wheel.schedule(timer_id + 2**40, NOW_MS + 1 + timer_id * 7919 % 600_000)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 200 * len(wheel)


def test_a_million_timers_never_hold_up_the_loop() -> None:
    """A million deadlines within ten minutes come out in order, a few at a time."""
    wheel = TimerWheel(NOW_MS)
    for timer_id in range(1_000_000):
        wheel.schedule(timer_id, NOW_MS + 1 + timer_id * 7919 % 600_000)
    fired = 0
    longest = 0.0
    for now_ms in range(NOW_MS, NOW_MS + 601_000, 250):
        started = time.perf_counter()
        due = wheel.advance(now_ms)
        longest = max(longest, time.perf_counter() - started)
        assert not due or now_ms - 250 < due[0][0] <= due[-1][0] <= now_ms
        fired += len(due)
    assert fired == 1_000_000
    assert wheel.next_due_at_ms() is None
    assert longest < 0.5


@pytest.mark.parametrize("step_ms", [-100, -1, 0, 1, 100])
def test_a_timer_that_is_replaced_for_ever_leaves_no_lasting_garbage(step_ms: int) -> None:
    """Memory follows the timers that stand, whichever way the replacement goes."""
    wheel = TimerWheel(NOW_MS)
    tracemalloc.start()
    for n in range(20_000):
        wheel.schedule(1, NOW_MS + HOUR_MS + n * step_ms)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(wheel) == 1
    assert size < 150_000


@pytest.mark.parametrize("step_ms", [-60_000, 60_000])
def test_garbage_is_bounded_by_the_timers(step_ms: int) -> None:
    """Each of a thousand timers is replaced fifty times, and the entries do not add up."""
    wheel = TimerWheel(NOW_MS)
    for n in range(50):
        for timer_id in range(1000):
            wheel.schedule(timer_id, NOW_MS + HOUR_MS + n * step_ms + timer_id)
        assert wheel._entries < 3 * len(wheel) + 2 * wheel_module.GARBAGE_SLACK


@pytest.mark.parametrize("ask", [TimerWheel.__len__, TimerWheel.next_due_at_ms])
def test_many_cancels_leave_no_lasting_garbage(ask: Callable[[TimerWheel], object]) -> None:
    """Memory follows the timers that stand, with and without a search for the earliest."""
    wheel = TimerWheel(NOW_MS)
    tracemalloc.start()
    for n in range(30_000):
        wheel.schedule(n, NOW_MS + HOUR_MS + n)
        wheel.cancel(n - 10)
        ask(wheel)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(wheel) == 10
    assert size < 200_000


def test_memory_is_given_back_after_a_peak() -> None:
    """A wheel that once held 50,000 timers does not keep their memory for ever."""
    wheel = TimerWheel(NOW_MS)
    tracemalloc.start()
    for n in range(50_000):
        wheel.schedule(n, NOW_MS + HOUR_MS + n)
    for n in range(49_500):
        wheel.cancel(n)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 700_000
    assert [timer_id for _, timer_id in wheel.advance(NOW_MS + 2 * HOUR_MS)] == list(
        range(49_500, 50_000)
    )


def test_the_earliest_of_a_crowd_far_away_is_found_without_searching_all() -> None:
    """Cancelling the earliest again and again costs no search through all the others."""
    wheel = TimerWheel(NOW_MS)
    for n in range(50_000):
        wheel.schedule(n, NOW_MS + YEAR_MS + n * 50)
    started = time.perf_counter()
    for n in range(5_000):
        assert wheel.next_due_at_ms() == NOW_MS + YEAR_MS + n * 50
        wheel.cancel(n)
    assert time.perf_counter() - started < 5
