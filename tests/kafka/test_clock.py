"""The worker's idea of the brokers' time: a lower bound, whatever it has seen (G4)."""

from hypothesis import given
from hypothesis import strategies as st

from agents_stream.kafka.clock import BrokerClock


class Local:
    """A monotonic clock that the test moves, and the broker's true time, `ahead_ms` from it."""

    def __init__(self, ahead_ms: int) -> None:
        self.ms = 0.0
        self.ahead_ms = ahead_ms

    @property
    def truth_ms(self) -> float:
        """What the broker's clock says now."""
        return self.ms + self.ahead_ms


steps = st.lists(
    st.tuples(
        st.floats(0, 200_000),  # how much time passes
        st.none() | st.floats(0, 50_000),  # how long ago the stamp was made; None: nothing is seen
    ),
    max_size=40,
)


@given(st.integers(-(10**6), 2 * 10**12), steps)
def test_the_bound_is_never_ahead_of_the_brokers(ahead_ms: int, history: list[tuple]) -> None:  # type: ignore[type-arg]
    """G4: no history of stamps, however late they were seen, brings the bound past the truth."""
    local = Local(ahead_ms)
    clock = BrokerClock(lambda: local.ms)
    for passed_ms, delay_ms in history:
        local.ms += passed_ms
        if delay_ms is not None:
            clock.observe(int(max(0, local.truth_ms - delay_ms)) if local.truth_ms >= 0 else -1)
        if clock.known:
            assert clock.now_ms() <= local.truth_ms + 1e-3
            assert clock.wait_ms(int(local.truth_ms) + 2) > 0


@given(st.lists(st.floats(0, 59_000), min_size=1, max_size=5))
def test_the_bound_is_as_good_as_the_best_stamp_of_the_last_minute(delays: list[float]) -> None:
    """The lateness of a timer is that of the fastest ack, not that of the last."""
    local = Local(10**12)
    clock = BrokerClock(lambda: local.ms)
    for delay_ms in delays:
        local.ms += 10
        clock.observe(int(local.truth_ms - delay_ms))
    best = min(delay + 10 * back for back, delay in enumerate(reversed(delays)))
    assert local.truth_ms - clock.now_ms() <= best + 2


def test_a_duplicates_ack_says_nothing() -> None:
    """The timestamp -1 is no time: without another stamp nothing is known."""
    clock = BrokerClock(lambda: 0.0)
    clock.observe(-1)
    assert not clock.known
    assert clock.age_ms() == float("inf")


def test_an_old_bound_stands_until_there_is_a_newer_one_and_then_goes() -> None:
    """A drift of the broker's clock is followed within two minutes; silence forgets nothing."""
    local = Local(1_000)
    clock = BrokerClock(lambda: local.ms)
    clock.observe(1_000)
    local.ms = 600_000
    assert clock.now_ms() == 601_000
    assert clock.age_ms() == 600_000
    local.ahead_ms = 0  # the broker's clock was set back by a second
    for _ in range(3):
        clock.observe(int(local.truth_ms))
        local.ms += 61_000
    assert clock.now_ms() == local.truth_ms


def test_a_past_moment_has_its_own_bound() -> None:
    """The fence needs the broker's time at the last heartbeat, not now's."""
    local = Local(500)
    clock = BrokerClock(lambda: local.ms)
    clock.observe(500)
    local.ms = 9_000
    assert clock.at(2_000) == 2_500
