"""Start, stop and look at the embedded broker: Apache Kafka itself, on this machine.

It listens on the first of BOOTSTRAP_SERVERS and keeps everything in `DATA_DIR/kafka`: its data, its
log, and the files by which the next command finds it (`broker_files.py`, `broker_process.py`).
"""

import errno
import re
import shutil
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from agents_stream.kafka import broker_files
from agents_stream.kafka.broker_files import Address, BrokerFiles
from agents_stream.kafka.broker_process import (
    BrokerNotStarted,
    end,
    is_alive,
    pid_of,
    spawn,
    turn,
    wait_until,
)
from agents_stream.kafka.jars import default_cache_dir, ensure_jars, kafka_version
from agents_stream.kafka.java import find_java
from agents_stream.kafka.probe import answers
from agents_stream.kafka.progress import Reporter, SilentReporter
from agents_stream.settings import Settings

log = structlog.get_logger()

START_LIMIT_S: Final = 60.0
FORMAT_LIMIT_S: Final = 60.0
PORT_ATTEMPTS: Final = 3
TAIL_LINES: Final = 15
TAIL_BYTES: Final = 64 * 1024
_BIND_FAILED: Final = re.compile(r"Address already in use|failed to bind", re.IGNORECASE)


class PortInUse(BrokerNotStarted):
    """Something else listens where the broker should."""


class BrokerDied(BrokerNotStarted):
    """The broker's process ended before it answered. The message has its last words."""


@dataclass(frozen=True, slots=True)
class BrokerInfo:
    """A broker that answers. `started` is False if it ran already."""

    host: str
    port: int
    pid: int
    folder: Path
    started: bool

    @property
    def bootstrap_servers(self) -> str:
        """The address for clients."""
        return str(Address(self.host, self.port))


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of the embedded broker of a data directory.

    `running`: its process lives. `answers`: something talks Kafka at `address`, which is where the
    broker listens, or would listen if it ran. `pid` is None unless it runs.
    """

    running: bool
    answers: bool
    pid: int | None
    address: str


@dataclass(frozen=True, slots=True)
class _Runtime:
    java: Path
    jars: list[Path]


def files_of(settings: Settings) -> BrokerFiles:
    """Give the places of the broker that belongs to these settings."""
    return BrokerFiles(settings.data_dir.resolve() / "kafka")


def address_of(settings: Settings) -> Address:
    """Give the address on which the embedded broker listens: the first bootstrap server."""
    return Address.parse(settings.bootstrap_servers.split(",")[0])


def start(settings: Settings, *, progress: Reporter | None = None) -> BrokerInfo:
    """Start the broker unless it runs, wait until it answers, and leave it running by itself.

    It outlives its caller and holds none of its pipes. Two starts at once are one start. The first
    downloads Kafka; a later one goes on with the data that is there.

    Raises:
        PortInUse: something else listens at the address.
        BrokerDied: the broker ended before it answered.
        DataDirectoryCorrupt: its data cannot be used.
        JarsUnavailable: Kafka is not in the cache and could not be downloaded.
        JavaMissing: there is no Java for it.
        BrokerNotStarted: anything else that a person must mend, such as DATA_DIR's permissions.

    """
    if settings.security_protocol != "PLAINTEXT":
        raise BrokerNotStarted(
            "the embedded Kafka speaks PLAINTEXT only, for this machine only: unset"
            " AGENTS_STREAM_SECURITY_PROTOCOL, or use a Kafka of your own"
        )
    files = files_of(settings)
    with turn(files):
        if is_alive(files):
            return _join(files, address_of(settings))
        try:
            info = _start(settings, files, progress or SilentReporter())
        except OSError as error:
            raise BrokerNotStarted(
                f"the embedded Kafka cannot use {files.folder}: {error}. Mend that, or set"
                " AGENTS_STREAM_DATA_DIR to another folder"
            ) from error
    log.info("broker_started", address=info.bootstrap_servers, pid=info.pid)
    return info


def stop(settings: Settings) -> bool:
    """Stop the broker cleanly, by force only if it does not end in time. False if none ran.

    Raises:
        BrokerNotStarted: it could not be stopped.

    """
    files = files_of(settings)
    if not files.folder.exists():
        return False
    with turn(files):
        if not is_alive(files):
            return False
        end(files)
    return True


def status(settings: Settings) -> Status:
    """Look at the broker without waiting for it."""
    files = files_of(settings)
    address, pid = address_of(settings), None
    running = is_alive(files)
    if running:
        # Its files may not be written yet: then it is being started at this moment.
        with suppress(OSError, ValueError, BrokerNotStarted):
            address = Address.parse(files.address.read_text("utf-8"))
            pid = pid_of(files)
    return Status(running, answers(address.host, address.port), pid, str(address))


def require_free(address: Address) -> None:
    """Make sure that the broker will be able to listen at this address.

    Raises:
        PortInUse: something listens there.
        BrokerNotStarted: the address is none of this machine.

    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        # Java takes the IPv4 address of a name that has both.
        family, kind, _, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(where)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(_port_in_use(address)) from error
        raise BrokerNotStarted(
            f"the embedded Kafka cannot listen at {address}: {error}. It serves this machine only:"
            " set AGENTS_STREAM_BOOTSTRAP_SERVERS to an address of it, such as localhost:9092"
        ) from error


def _port_in_use(address: Address) -> str:
    ours = answers(address.host, address.port)
    who = "a Kafka that this data directory did not start" if ours else "another program"
    other = Address(address.host, address.port + 1)
    return (
        f"{address} is in use by {who}. Stop it, or choose another port for the embedded Kafka,"
        f" such as AGENTS_STREAM_BOOTSTRAP_SERVERS={other}"
    )


def _join(files: BrokerFiles, address: Address) -> BrokerInfo:
    """Use the broker that runs already, if it is where it is wanted."""
    pid = pid_of(files)
    found = Address.parse(files.address.read_text("utf-8"))
    if found != address:
        raise BrokerNotStarted(
            f"the embedded Kafka of {files.folder} runs already, at {found} and not at {address}."
            " Stop it first (`agents-stream kafka stop`), or set AGENTS_STREAM_DATA_DIR to another"
            " folder for a second one"
        )
    if not _answers_or_ends(files, address):
        raise BrokerNotStarted(
            f"the embedded Kafka (process {pid}) has not answered at {address} for"
            f" {START_LIMIT_S:g} s. Stop it (`agents-stream kafka stop`); its log is {files.log}"
        )
    if not is_alive(files):
        raise BrokerDied(f"the embedded Kafka at {address} has just ended; its log is {files.log}")
    return BrokerInfo(address.host, address.port, pid, files.folder, started=False)


def _start(settings: Settings, files: BrokerFiles, reporter: Reporter) -> BrokerInfo:
    address = address_of(settings)
    require_free(address)
    formatted = broker_files.is_formatted(files)
    runtime = _Runtime(
        find_java(settings.java_home),
        ensure_jars((settings.cache_dir or default_cache_dir()).resolve(), reporter),
    )
    files.logging.write_text(broker_files.logging_properties(), "ascii")
    if not formatted:
        reporter.say(f"Preparing an empty Kafka in {files.folder}")
        _format(files, runtime, address)
    reporter.say(f"Starting Apache Kafka {kafka_version()} at {address}")
    return _run(files, runtime, address)


def _format(files: BrokerFiles, runtime: _Runtime, address: Address) -> None:
    """Make the data directory of a new cluster, all of it or nothing."""
    shutil.rmtree(files.formatting, ignore_errors=True)
    cluster_id = broker_files.new_cluster_id()
    _write_properties(files, address, broker_files.FORMATTING_NAME)
    tool = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", files.properties.name]
    try:
        subprocess.run(  # noqa: S603 - our own command
            broker_files.java_command(runtime.java, runtime.jars, tool),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=files.folder,
            env=broker_files.java_environment(),
            timeout=FORMAT_LIMIT_S,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = "\n  ".join((error.stdout + error.stderr).splitlines()[-TAIL_LINES:])
        raise BrokerDied(f"Kafka could not prepare {files.data}; it said:\n  {said}") from error
    except subprocess.TimeoutExpired as error:
        raise BrokerNotStarted(f"Kafka could not prepare {files.data}: {error}") from error
    files.cluster_id.write_text(cluster_id + "\n", "ascii")
    files.formatting.rename(files.data)


def _run(files: BrokerFiles, runtime: _Runtime, address: Address) -> BrokerInfo:
    """Start the process and wait for its first answer.

    The controller's port is chosen anew each time; should somebody else take it between our choice
    and the broker's, the broker dies of it and the next attempt chooses another.
    """
    main = ["kafka.Kafka", files.properties.name]
    command = broker_files.java_command(runtime.java, runtime.jars, main)
    said = ""
    for _attempt in range(PORT_ATTEMPTS):
        _write_properties(files, address, broker_files.DATA_NAME)
        files.address.write_text(f"{address}\n", "utf-8")
        log_start = files.log.stat().st_size if files.log.exists() else 0
        spawn(files, command, broker_files.java_environment())
        if not _answers_or_ends(files, address):
            end(files)
            raise BrokerNotStarted(
                f"Kafka did not answer at {address} within {START_LIMIT_S:g} s and was stopped."
                f" {_last_words(files, log_start)}"
            )
        if is_alive(files):
            return BrokerInfo(address.host, address.port, pid_of(files), files.folder, started=True)
        said = _last_words(files, log_start)
        if not _BIND_FAILED.search(said):
            break
        require_free(address)
    raise BrokerDied(f"Kafka ended before it answered at {address}. {said}")


def _answers_or_ends(files: BrokerFiles, address: Address) -> bool:
    return wait_until(
        lambda: answers(address.host, address.port) or not is_alive(files), START_LIMIT_S
    )


def _write_properties(files: BrokerFiles, address: Address, data: str) -> None:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        controller_port = int(trial.getsockname()[1])
    text = broker_files.server_properties(address, controller_port, data)
    files.properties.write_text(text, "ascii")


def _last_words(files: BrokerFiles, log_start: int) -> str:
    """Quote the end of what this start logged (from `log_start`) and printed."""
    words = [*_tail(files.log, log_start), *_tail(files.output, 0)]
    shown = "\n  ".join(words) or "(nothing)"
    return f"Its last words ({files.log}):\n  {shown}"


def _tail(path: Path, from_byte: int) -> list[str]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            # A log that is shorter than it was has been rolled: all of it is new.
            begin = from_byte if from_byte <= size else 0
            file.seek(max(begin, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-TAIL_LINES:]
