"""Who lives and whose turn it is, without a broker: any program can play it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agents_stream.kafka import broker_process
from agents_stream.kafka.broker_files import BrokerFiles
from agents_stream.kafka.broker_process import (
    BrokerNotStarted,
    end,
    is_alive,
    pid_of,
    spawn,
    turn,
    wait_until,
)


@pytest.fixture
def files(tmp_path: Path) -> BrokerFiles:
    """Give a folder for a broker."""
    return BrokerFiles(tmp_path)


def test_a_spawned_program_lives_until_it_ends(files: BrokerFiles) -> None:
    """It lives when spawn returns, under the pid that is written, and is no child of ours."""
    assert not is_alive(files)
    spawn(files, ["/bin/sh", "-c", "echo said; exec sleep 60"], dict(os.environ))
    assert is_alive(files)
    pid = pid_of(files)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    assert wait_until(lambda: files.output.read_text() == "said\n", 5.0)
    end(files)
    assert not is_alive(files)
    assert not files.pid.exists()


def test_a_killed_program_is_dead_at_once(files: BrokerFiles) -> None:
    """No pid file and no port is asked: the lock goes with the process, however it ends."""
    spawn(files, ["sleep", "60"], dict(os.environ))
    os.kill(pid_of(files), signal.SIGKILL)
    assert wait_until(lambda: not is_alive(files), 5.0)
    assert files.pid.exists()


def test_one_that_does_not_listen_to_a_stop(
    files: BrokerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Force comes after the limit, and not before."""
    monkeypatch.setattr(broker_process, "STOP_LIMIT_S", 0.5)
    spawn(files, ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"], dict(os.environ))
    end(files)
    assert not is_alive(files)


def test_many_who_look_do_not_take_each_other_for_the_broker(files: BrokerFiles) -> None:
    """Looking at the lock does not look like holding it."""
    files.alive.touch()
    look = (
        "import sys; from pathlib import Path;"
        " from agents_stream.kafka.broker_files import BrokerFiles;"
        " from agents_stream.kafka.broker_process import is_alive;"
        " files = BrokerFiles(Path(sys.argv[1]));"
        " sys.exit(any(is_alive(files) for _ in range(20_000)))"
    )
    command = [sys.executable, "-c", look, str(files.folder)]
    lookers = [subprocess.Popen(command) for _ in range(2)]
    assert [looker.wait(60) for looker in lookers] == [0, 0]


def test_a_lost_pid_is_said(files: BrokerFiles) -> None:
    """Somebody deleted the file while the broker runs: no guess is made."""
    spawn(files, ["sleep", "60"], dict(os.environ))
    pid = pid_of(files)
    files.pid.unlink()
    with pytest.raises(BrokerNotStarted, match="does not tell its process"):
        end(files)
    os.kill(pid, signal.SIGKILL)


def test_turns_are_taken_one_by_one(files: BrokerFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a turn nobody else gets one; after it the next does."""
    monkeypatch.setattr(broker_process, "TURN_LIMIT_S", 0.1)
    with turn(files), pytest.raises(BrokerNotStarted, match="another process"), turn(files):
        pass
    with turn(files):
        pass
