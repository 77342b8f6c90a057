"""The backoff: its bounds for every input, and the exact numbers that replay must find again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.core.retry import (
    MAX_ATTEMPTS,
    MAX_BACKOFF_MS,
    MAX_RETRY_AFTER_MS,
    backoff_delay_ms,
    next_attempt_at_ms,
)

any_int = st.integers(-(10**40), 10**40)


@given(st.text(), st.integers(1, 10), st.integers(0, 60_000))
def test_the_backoff_doubles_and_is_spread_by_half(
    seed: str, attempt: int, backoff_ms: int
) -> None:
    """Attempt n+1 goes out backoff x 2^(n-1) x (1 to 1.5) later, at most 5 minutes."""
    base_ms = backoff_ms * 2 ** (attempt - 1)
    delay_ms = backoff_delay_ms(seed, attempt, backoff_ms, None)
    assert min(base_ms, MAX_BACKOFF_MS) <= delay_ms <= min(base_ms * 1.5, MAX_BACKOFF_MS)


@given(st.text(), st.integers(1, 4), st.integers(0, 60_000), st.integers(0, 2 * 86_400_000))
def test_what_the_tool_asks_for_is_the_least_up_to_a_day(
    seed: str, attempt: int, backoff_ms: int, retry_after_ms: int
) -> None:
    """The wait is the longer of our backoff and what the tool asked for, capped at 24 hours."""
    own_ms = backoff_delay_ms(seed, attempt, backoff_ms, None)
    delay_ms = backoff_delay_ms(seed, attempt, backoff_ms, retry_after_ms)
    assert delay_ms == max(own_ms, min(retry_after_ms, 86_400_000))


@given(st.text(st.characters(codec=None)), any_int, any_int, any_int, st.none() | any_int)
def test_no_number_that_a_tool_or_a_setting_could_hold_fails(
    seed: str, attempt: int, at_ms: int, backoff_ms: int, retry_after_ms: int | None
) -> None:
    """G10: absurd input gives a wait between nothing and a day, and the same one every time."""
    first = next_attempt_at_ms(seed, attempt, at_ms, backoff_ms, retry_after_ms)
    assert at_ms <= first <= at_ms + MAX_RETRY_AFTER_MS
    assert first == next_attempt_at_ms(seed, attempt, at_ms, backoff_ms, retry_after_ms)


def test_lone_surrogates_and_huge_numbers_are_no_exception() -> None:
    """G10: the two inputs on which Python's own functions raise."""
    assert backoff_delay_ms("\ud800", 10**5000, 10**5000, 10**5000) == MAX_RETRY_AFTER_MS


@pytest.mark.parametrize(
    ("attempt", "at_ms"), [(1, 1_700_000_001_034), (2, 1_700_000_002_007), (3, 1_700_000_005_352)]
)
def test_the_times_never_change(attempt: int, at_ms: int) -> None:
    """G6, G8: replaying a journal of years ago must find these very times."""
    assert next_attempt_at_ms("command-1", attempt, 1_700_000_000_000, 1000, None) == at_ms


def test_commands_that_fail_together_do_not_come_back_together() -> None:
    """The spread differs by command and by attempt, over the whole of its range."""
    delays = sorted(backoff_delay_ms(f"c-{n}", 1, 100_000, None) for n in range(200))
    assert len(set(delays)) > 190
    assert delays[0] < 102_000
    assert delays[-1] > 148_000
    spreads = {backoff_delay_ms("c", n, 1 << (16 - n), None) for n in range(1, 5)}
    assert len(spreads) == 4


def test_there_are_four_attempts() -> None:
    """The first one and three retries; the number is part of the contract."""
    assert MAX_ATTEMPTS == 4
