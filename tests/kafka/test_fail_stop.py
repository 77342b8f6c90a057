"""On any surprise the process ends, with a word and an exit code (G11)."""

import subprocess
import sys
import threading
import time

import pytest

from agents_stream.kafka.clock import BrokerClock
from agents_stream.kafka.fail_stop import Standstill, Watchdog
from tests.kafka.fakes import Ended, World, end_by_raising


def run(code: str) -> "subprocess.CompletedProcess[str]":
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )


def test_the_process_ends_at_once_whatever_would_still_run() -> None:
    """H1, H2: no `finally` acknowledges what was not done; the reason is in the log."""
    ended = run(
        "from agents_stream.kafka.fail_stop import fail_stop\n"
        "try:\n"
        "    fail_stop('the reason', ValueError('the error'))\n"
        "finally:\n"
        "    print('acknowledged')\n"
    )
    assert ended.returncode == 1
    assert "acknowledged" not in ended.stdout
    assert "the reason" in ended.stdout
    assert "the error" in ended.stdout


def test_a_hanging_event_loop_ends_the_process() -> None:
    """G11: the watchdog is a thread, so a loop that hangs is seen."""
    ended = run(
        "import asyncio, time\n"
        "from agents_stream.kafka.fail_stop import Watchdog\n"
        "dog = Watchdog(limit_s=0.3, period_s=0.1)\n"
        "dog.start()\n"
        "async def hang():\n"
        "    with dog.span('sessions'):\n"
        "        time.sleep(20)\n"
        "asyncio.run(hang())\n"
    )
    assert ended.returncode == 1
    assert "watchdog: sessions has been at one batch" in ended.stdout


def test_a_watchdog_that_fails_ends_the_process() -> None:
    """G11: nobody would watch from then on."""
    ended = run(
        "import time\n"
        "from agents_stream.kafka.fail_stop import Watchdog\n"
        "dog = Watchdog(limit_s=60, period_s=0.1)\n"
        "dog.gauge('broken', lambda: 1 / 0)\n"
        "dog.start()\n"
        "time.sleep(3)\n"
    )
    assert ended.returncode == 1
    assert "watchdog" in ended.stdout


def test_spans_and_gauges_are_told_by_name() -> None:
    """What stands still is named; what ended in time is not."""
    dog = Watchdog(limit_s=0.05)
    with dog.span("ingress"):
        assert dog.stalled() is None
        time.sleep(0.1)
        assert "ingress has been at one batch" in (dog.stalled() or "")
    assert dog.stalled() is None
    dog.gauge("recovery", lambda: 7.0)
    assert dog.stalled() == "recovery has not moved for 7 s"
    dog.watch(lambda: [Standstill("journal/3 has not been read", 9.0), Standstill("j", 0.0)])
    assert dog.stalled() == "journal/3 has not been read for 9 s; recovery has not moved for 7 s"


def test_what_stands_still_is_said_before_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """At a quarter of the limit: once in the log, and to whoever asks whether it is ready."""
    dog = Watchdog(limit_s=60.0)
    seconds = 10.0
    dog.gauge("recovery", lambda: seconds)
    dog._warn()
    assert (dog.slow(), dog.stalled()) == (None, None)
    seconds = 16.0
    for _ in range(3):
        dog._warn()
    assert dog.slow() == "recovery has not moved for 16 s"
    assert dog.stalled() is None
    assert capsys.readouterr().out.count("recovery has not moved for 16 s") == 1


async def test_the_exit_code_says_who_is_to_blame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SPEC §7: 3 where Kafka cannot be reached, 1 for anything else."""
    engine = World.made(monkeypatch).engine
    engine.clock = BrokerClock()
    engine.watchdog.gauge("recovery", lambda: 70.0)
    monkeypatch.setattr(engine.watchdog, "_period_s", 0.2)
    with pytest.raises(Ended) as silent:
        engine.watchdog._watch_for_ever()
    engine.clock.observe(1)
    with pytest.raises(Ended) as heard:
        engine.watchdog._watch_for_ever()
    assert (silent.value.code, heard.value.code) == (3, 1)


def test_a_pause_of_the_whole_process_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After SIGSTOP and SIGCONT a batch has its whole time again."""
    now: float = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    end_by_raising(monkeypatch)
    dog = Watchdog(limit_s=60.0, period_s=2.0)
    checks = iter([2.0, 500.0, *range(502, 600, 8)])

    def tick(_timeout: float) -> bool:
        nonlocal now
        now = next(checks)
        return False

    monkeypatch.setattr(dog, "_stopped", type("Stop", (), {"wait": staticmethod(tick)}))
    with dog.span("sessions"), pytest.raises(Ended, match="sessions"):
        dog._watch()
    assert 560 < now <= 568


def test_spans_come_and_go_while_the_process_wakes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that ends in the moment after a SIGCONT ends like any other."""
    end_by_raising(monkeypatch)
    # A period of nothing: every look finds that the process "was paused".
    dog = Watchdog(limit_s=60.0, period_s=0.0)
    dog.start()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20_000):
                with dog.span("sessions"):
                    pass
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert dog._thread.is_alive()
    dog.stop()
    assert not errors


def test_work_that_says_it_has_moved_on_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """G11: a long backlog moves with every ack; without one the limit counts from the last."""
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    dog = Watchdog(limit_s=60)
    with dog.span("ingress") as moved:
        now += 59
        moved()
        now += 59
        assert dog.stalled() is None
        now += 2
        assert dog.stalled() == "ingress has been at one batch for 61 s"
    assert dog.stalled() is None
