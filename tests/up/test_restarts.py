"""When what died is started again."""

import signal

import pytest

from agents_stream.up.restarts import HEALTHY_S, MAX_QUICK_DEATHS, Restarts, exit_words


def test_the_pause_doubles_up_to_its_limit_and_then_one_gives_up() -> None:
    """Half a second, doubling, 10 s at most; the tenth quick death in a row is the last (G11)."""
    restarts = Restarts()
    pauses = [restarts.pause_s(1.0) for _ in range(MAX_QUICK_DEATHS)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0, 10.0, None]


def test_who_was_healthy_begins_anew() -> None:
    """A process that lived for half a minute is not blamed for its earlier deaths."""
    restarts = Restarts()
    for _ in range(MAX_QUICK_DEATHS - 1):
        restarts.pause_s(1.0)
    assert restarts.pause_s(HEALTHY_S) == 0.5
    assert restarts.pause_s(HEALTHY_S - 0.1) == 1.0


def test_a_death_for_want_of_kafka_counts_for_nothing() -> None:
    """G11: Kafka may be away for as long as it likes; each try has waited for it."""
    restarts = Restarts()
    assert {restarts.pause_s(21.0, code=3) for _ in range(3 * MAX_QUICK_DEATHS)} == {0.5}
    assert restarts.pause_s(1.0, code=1) == 0.5


@pytest.mark.parametrize(
    ("code", "words"),
    [(3, "exit code 3"), (-signal.SIGKILL, "killed by SIGKILL"), (-250, "killed by signal 250")],
)
def test_the_end_of_a_process_in_words(code: int, words: str) -> None:
    """A person reads how it ended, not a negative number."""
    assert exit_words(code) == words
