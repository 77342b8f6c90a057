"""The jars of the embedded broker: fetched once, pinned by checksum, repaired one by one.

`jars.lock` names every jar by its Maven coordinate with size and SHA-256. jgo fetches a coordinate;
nothing is resolved, so what runs is what was tested, today and in a year. A jar enters the cache
by a rename after its checksum was found right, so that there is never half of one; every start
checks all of them (0.1 s) and fetches anew what is missing or damaged. When nothing is, the
network is not touched.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import structlog

from agents_stream.core.errors import TerminalError
from agents_stream.kafka.progress import Reporter

log = structlog.get_logger()

LOCK_FILE: Final = Path(__file__).with_name("jars.lock")
KAFKA_SERVER: Final = "org.apache.kafka:kafka_2.13"
MAX_ATTEMPTS: Final = 3
MAX_PARALLEL: Final = 4
REQUEST_TIMEOUT_S: Final = 30
_RETRY_S: Final = 1.0


class JarsUnavailable(TerminalError):  # noqa: N818 - it says what happened
    """A jar could not be fetched or kept. The message says which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock: where Maven has it, how long it is, and what it must hash to."""

    group: str
    artifact: str
    version: str
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """Name of the file, as Maven writes it."""
        return f"{self.artifact}-{self.version}.jar"


Fetch = Callable[[Jar, Path], Path]
"""Bring the jar to somewhere below the folder and say where it is. May raise anything."""


@cache
def locked_jars() -> tuple[Jar, ...]:
    """Read the lock that this package carries."""
    jars = []
    for line in LOCK_FILE.read_text(encoding="ascii").splitlines():
        if line.strip() and not line.startswith("#"):
            sha256, size, coordinate = line.split()
            group, artifact, version = coordinate.split(":")
            jars.append(Jar(group, artifact, version, int(size), sha256))
    return tuple(jars)


def kafka_version() -> str:
    """Give the version of Apache Kafka that the lock pins."""
    return next(
        jar.version for jar in locked_jars() if f"{jar.group}:{jar.artifact}" == KAFKA_SERVER
    )


def default_cache_dir() -> Path:
    """Give the cache of this user, shared by all projects: `$XDG_CACHE_HOME/agents_stream`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agents_stream"


def ensure_jars(cache_dir: Path, reporter: Reporter, fetch: Fetch | None = None) -> list[Path]:
    """Give the paths of all jars, each with the right content; fetch those that are not.

    Raises:
        JarsUnavailable: a jar could not be fetched, or the cache cannot be written.

    """
    folder = cache_dir / f"kafka-{kafka_version()}"
    wanted = locked_jars()
    broken = [jar for jar in wanted if not is_whole(jar, folder / jar.file_name)]
    if broken:
        try:
            with _only_one(folder):
                _repair(folder, reporter, fetch or fetch_with_jgo)
        except OSError as error:
            raise JarsUnavailable(
                f"the jars of Kafka cannot be kept in {folder}: {error}. Make it writable, or set"
                " AGENTS_STREAM_CACHE_DIR to a folder that is"
            ) from error
    return [folder / jar.file_name for jar in wanted]


def is_whole(jar: Jar, path: Path) -> bool:
    """Say whether `path` is this jar, to the last byte."""
    try:
        if path.stat().st_size != jar.size_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256
    except OSError:  # not there, or not readable: either way it has to come anew
        return False


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Let one process at a time download; the others find its work done."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _repair(folder: Path, reporter: Reporter, fetch: Fetch) -> None:
    broken = [jar for jar in locked_jars() if not is_whole(jar, folder / jar.file_name)]
    if not broken:
        return
    total = sum(jar.size_bytes for jar in broken)
    whole = len(broken) == len(locked_jars())
    what = f"Apache Kafka {kafka_version()}" if whole else f"{len(broken)} missing or damaged jars"
    reporter.say(f"Downloading {what} ({total / 1e6:.0f} MB, once) to {folder}")
    reporter.downloaded(0, total)
    done = 0
    with (
        tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as parts,
        ThreadPoolExecutor(MAX_PARALLEL) as pool,
    ):
        tasks = [pool.submit(_fetch_one, jar, folder, Path(parts), fetch) for jar in broken]
        try:
            for task in as_completed(tasks):
                done += task.result().size_bytes
                reporter.downloaded(done, total)
        finally:
            pool.shutdown(cancel_futures=True)


def _fetch_one(jar: Jar, folder: Path, parts: Path, fetch: Fetch) -> Jar:
    """Fetch one jar, again if it came damaged, and move it into place when it is right."""
    reason = ""
    for attempt in range(1, MAX_ATTEMPTS + 1):
        place = parts / f"{jar.artifact}-{attempt}"
        try:
            path = fetch(jar, place)
        except Exception as error:  # noqa: BLE001 - jgo raises what its HTTP library raises
            reason = str(error) or type(error).__name__
        else:
            if is_whole(jar, path):
                path.replace(folder / jar.file_name)
                return jar
            reason = "what came has another checksum than jars.lock says"
        shutil.rmtree(place, ignore_errors=True)
        log.warning("jar_not_fetched", jar=jar.file_name, attempt=attempt, reason=reason)
        if attempt < MAX_ATTEMPTS:
            time.sleep(_RETRY_S * attempt)
    raise JarsUnavailable(
        f"{jar.file_name} could not be downloaded in {MAX_ATTEMPTS} attempts: {reason}. Kafka is"
        " fetched once from Maven Central and needs the network for that; start again when it is"
        f" there, what has come is kept in {folder}"
    )


def fetch_with_jgo(jar: Jar, place: Path) -> Path:
    """Download the jar by its coordinate; jgo's own settings may name other repositories."""
    from jgo.config import GlobalSettings  # noqa: PLC0415 - 0.3 s that only a download needs
    from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415 - likewise
    from jgo.maven import MavenContext  # noqa: PLC0415 - likewise

    context = MavenContext(
        repo_cache=place,
        remote_repos={**GlobalSettings.load().repositories, "central": MAVEN_CENTRAL_URL},
        timeout=REQUEST_TIMEOUT_S,
    )
    component = context.project(jar.group, jar.artifact).at_version(jar.version)
    return Path(component.artifact().resolve())
