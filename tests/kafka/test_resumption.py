"""When a process that lost Kafka begins anew in place, and when it ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from agents_stream.core.errors import BrokerUnreachable
from agents_stream.kafka import resumption as resumption_module
from agents_stream.kafka.resumption import HEALTHY_S, VARIABLE, Resumption
from agents_stream.settings import Settings


class Executed(BaseException):
    """The program was executed anew."""


@pytest.fixture(autouse=True)
def _never_really(monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(*_: object) -> None:
        raise Executed

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(os, "execv", execute)
    monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: set())


def test_who_never_was_ready_ends() -> None:
    """A wrong address is told to whoever started the process."""
    Resumption(allowed=True).begin_anew()


def test_who_is_watched_ends() -> None:
    """Whoever watches it starts it again: `up` does."""
    one = Resumption(allowed=False)
    one.ready()
    one.begin_anew()


def test_the_pause_grows_with_quick_deaths_and_health_ends_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half a second, doubling, 10 s at most; whoever worked for half a minute begins anew."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pauses = []
    for _ in range(7):
        one = Resumption(allowed=True)
        assert VARIABLE not in os.environ
        pauses.append(one.pause_s)
        one.ready()
        with pytest.raises(Executed):
            one.begin_anew()
    assert pauses == [0, 0.5, 1, 2, 4, 8, 10]
    one = Resumption(allowed=True)
    one.ready()
    now = HEALTHY_S
    with pytest.raises(Executed):
        one.begin_anew()
    assert Resumption(allowed=True).pause_s == 0.5


def test_what_is_said_for_one_start_is_said_for_one_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """G6: what Kafka is when it comes back may ask a question that nobody has answered."""
    told = Settings(start_from="latest", partitions=3)
    assert Resumption(allowed=True).settings_of_this_life(told) is told
    monkeypatch.setenv(VARIABLE, "1")
    later = Resumption(allowed=True).settings_of_this_life(told)
    assert (later.start_from, later.partitions) == (None, 3)


async def test_a_later_life_waits_for_kafka_without_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first one says within its limit that nobody answers (exit code 3)."""
    answers = [False, False, True]

    async def ask(_settings: Settings, _limit_s: float) -> None:
        if not answers.pop(0):
            raise BrokerUnreachable("nobody answers")

    monkeypatch.setattr(resumption_module, "require_broker", ask)
    with pytest.raises(BrokerUnreachable):
        await Resumption(allowed=True).require_broker(Settings(), 1)
    monkeypatch.setenv(VARIABLE, "1")
    await Resumption(allowed=True).require_broker(Settings(), 1)
    assert answers == []


def test_a_stop_between_two_lives_is_kept() -> None:
    """SIGTERM while the program is executed anew reaches the next life's handler."""
    code = """
import os, signal, sys, time
from agents_stream.cli.run import StopSignals
from agents_stream.kafka.resumption import Resumption
one = Resumption(allowed=True)
if one.deaths == 0:
    one.ready()
    held = signal.pthread_sigmask
    def hold(*given):
        held(*given)
        os.kill(os.getpid(), signal.SIGTERM)
    signal.pthread_sigmask = hold
    one.begin_anew()
signals = StopSignals()
print("lives", one.deaths, "stopped", signals._caught)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert "lives 1 stopped True" in ended.stdout, ended.stdout + ended.stderr
