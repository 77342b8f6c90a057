"""The embedded broker as a process: who lives, whose turn it is, and how one is set free.

Which process is the broker is never guessed from a process id. The broker inherits an open file
that is locked (flock) for as long as it lives, however it dies: who can take that lock knows that
no broker runs, whatever an old pid file says; who cannot knows that the pid in it is right.
"""

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Final

import structlog

from agents_stream.core.errors import TerminalError
from agents_stream.kafka.broker_files import BrokerFiles

log = structlog.get_logger()

STOP_LIMIT_S: Final = 30.0
TURN_LIMIT_S: Final = 180.0
_LOCK_LIMIT_S: Final = 10.0
_SHELL_LIMIT_S: Final = 10.0
_POLL_S: Final = 0.05
# The shell leaves the broker to the system (no child of ours, no zombie) and ends at once.
_DETACH: Final = 'pid_file=$1; shift; "$@" & echo $! > "$pid_file"'


class BrokerNotStarted(TerminalError):  # noqa: N818 - it says what happened
    """The embedded broker could not be started or stopped. The message says what to do."""


@contextmanager
def turn(files: BrokerFiles) -> Iterator[None]:
    """Hold the right to start or stop this broker, as one process at a time does.

    Raises:
        BrokerNotStarted: the folder cannot be written, or another process does not let go.

    """
    try:
        files.folder.mkdir(parents=True, exist_ok=True)
        lock_file = files.starting.open("w")
    except OSError as error:
        raise BrokerNotStarted(
            f"the embedded Kafka cannot keep its data in {files.folder}: {error}. Make it"
            " writable, or set AGENTS_STREAM_DATA_DIR to a folder that is"
        ) from error
    with lock_file:
        if not wait_until(lambda: _try_lock(lock_file, fcntl.LOCK_EX), TURN_LIMIT_S):
            raise BrokerNotStarted(
                f"another process has been starting or stopping the broker in {files.folder} for"
                f" {TURN_LIMIT_S:g} s; end it and try again"
            )
        yield


def is_alive(files: BrokerFiles) -> bool:
    """Say whether the broker's process lives.

    Raises:
        BrokerNotStarted: this user may not even look.

    """
    try:
        with files.alive.open("r") as alive:
            # Shared, so that two who look at once do not take each other for the broker.
            return not _try_lock(alive, fcntl.LOCK_SH)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise BrokerNotStarted(f"{files.alive} cannot be read: {error}") from error


def pid_of(files: BrokerFiles) -> int:
    """Give the broker's process id, which means something only while `is_alive`.

    Raises:
        BrokerNotStarted: nothing tells it.

    """
    try:
        return int(files.pid.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise BrokerNotStarted(
            f"a broker holds {files.alive}, but {files.pid} does not tell its process ({error});"
            " end that process yourself"
        ) from error


def spawn(files: BrokerFiles, command: list[str], environment: dict[str, str]) -> None:
    """Run the broker detached: a session of its own, no pipe of ours, no terminal.

    When this returns, `is_alive` and `pid_of` tell about the new process.

    Raises:
        BrokerNotStarted: the system refuses to run it, or another process lives in its place.

    """
    with files.alive.open("w") as alive, files.output.open("wb") as output:
        # The wait is for somebody who just looks whether a broker lives.
        if not wait_until(lambda: _try_lock(alive, fcntl.LOCK_EX), _LOCK_LIMIT_S):
            raise BrokerNotStarted(f"another process holds {files.alive}; end it and try again")
        try:
            subprocess.run(  # noqa: S603 - our own command
                ["/bin/sh", "-c", _DETACH, "sh", str(files.pid), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=files.folder,
                env=environment,
                pass_fds=(alive.fileno(),),
                start_new_session=True,
                timeout=_SHELL_LIMIT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise BrokerNotStarted(f"the system does not start {command[0]}: {error}") from error


def end(files: BrokerFiles) -> None:
    """Ask the broker to stop, end it by force if it does not, and clear away what told of it.

    Raises:
        BrokerNotStarted: even force did not end it.

    """
    pid = pid_of(files)
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, how)
        if wait_until(lambda: not is_alive(files), STOP_LIMIT_S):
            files.pid.unlink(missing_ok=True)
            files.address.unlink(missing_ok=True)
            log.info("broker_stopped", pid=pid, signal=how.name)
            return
        log.warning("broker_does_not_stop", pid=pid, signal=how.name, waited_s=STOP_LIMIT_S)
    raise BrokerNotStarted(f"the embedded Kafka (process {pid}) cannot be stopped")


def wait_until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Wait until the condition holds, at most `limit_s`; say whether it does."""
    give_up_at = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(_POLL_S)
    return True


def _try_lock(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
