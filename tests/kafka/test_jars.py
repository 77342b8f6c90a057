"""The cache of jars: whole or not there, repaired one by one, and off the network when whole."""

import functools
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agents_stream.kafka import jars
from agents_stream.kafka.jars import Jar, JarsUnavailable, ensure_jars, fetch_with_jgo, is_whole
from agents_stream.kafka.progress import SilentReporter

CONTENTS = {f"jar-{n}": bytes([n]) * (1000 + n) for n in range(1, 6)}


def jar_of(name: str) -> Jar:
    """Give the lock's line for one of the test's jars."""
    content = CONTENTS[name]
    return Jar("org.test", name, "1.0", len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture(autouse=True)
def _small_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "locked_jars", lambda: tuple(jar_of(name) for name in CONTENTS))
    monkeypatch.setattr(jars, "kafka_version", lambda: "0.0")
    monkeypatch.setattr(jars, "_RETRY_S", 0.0)


class Source:
    """A repository that counts what it is asked for, and may send damaged goods at first."""

    def __init__(self, damaged: Callable[[str, int], bool] = lambda _name, _attempt: False) -> None:
        self.asked: list[str] = []
        self._damaged = damaged

    def __call__(self, jar: Jar, place: Path) -> Path:
        """Bring the jar to the place."""
        self.asked.append(jar.artifact)
        place.mkdir(parents=True)
        content = CONTENTS[jar.artifact]
        if self._damaged(jar.artifact, self.asked.count(jar.artifact)):
            content = content[:-1] + b"?"
        path = place / jar.file_name
        path.write_bytes(content)
        return path


def refuse(jar: Jar, place: Path) -> Path:
    """Be the network that is not there."""
    raise ConnectionError(f"no route to a repository for {jar.artifact} in {place.name}")


def fill(cache: Path) -> Path:
    """Bring all jars into the cache, and give their folder."""
    return ensure_jars(cache, SilentReporter(), Source())[0].parent


def test_the_real_lock_pins_kafka() -> None:
    """Every line has a full checksum, no jar stands twice, and the broker itself is among them."""
    lines = [line.split() for line in jars.LOCK_FILE.read_text().splitlines() if line[0] != "#"]
    assert all(len(sha256) == 64 and int(size) > 0 for sha256, size, _ in lines)
    names = [coordinate.rsplit(":", 1)[0] for _, _, coordinate in lines]
    assert len(set(names)) == len(names)
    assert {"org.apache.kafka:kafka_2.13", "org.apache.logging.log4j:log4j-slf4j-impl"} <= {*names}


def test_first_time_and_offline_ever_after(tmp_path: Path) -> None:
    """All are fetched once; when they are whole, nobody is asked for anything."""
    source = Source()
    paths = ensure_jars(tmp_path, SilentReporter(), source)
    assert sorted(source.asked) == sorted(CONTENTS)
    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())
    assert ensure_jars(tmp_path, SilentReporter(), refuse) == paths
    assert {path.name for path in paths[0].parent.iterdir()} == {p.name for p in paths} | {".lock"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b"!" + path.read_bytes()[1:]),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
    ],
    ids=["truncated", "altered", "missing", "empty"],
)
def test_a_broken_jar_is_fetched_anew_and_no_other(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """A partial or altered file is noticed at the next start, and only that file comes again."""
    broken = fill(tmp_path) / jar_of("jar-3").file_name
    damage(broken)
    source = Source()
    ensure_jars(tmp_path, SilentReporter(), source)
    assert source.asked == ["jar-3"]
    assert is_whole(jar_of("jar-3"), broken)


def test_a_damaged_download_is_tried_again(tmp_path: Path) -> None:
    """What came with a wrong checksum never gets its name in the cache; the next attempt may."""
    source = Source(damaged=lambda name, attempt: name == "jar-2" and attempt < jars.MAX_ATTEMPTS)
    paths = ensure_jars(tmp_path, SilentReporter(), source)
    assert source.asked.count("jar-2") == jars.MAX_ATTEMPTS
    assert all(is_whole(jar_of(path.name[:5]), path) for path in paths)


def test_what_cannot_be_had_is_said_and_the_rest_kept(tmp_path: Path) -> None:
    """One jar stays damaged: its name, the reason, the way out; no other is fetched twice."""
    source = Source(damaged=lambda name, _attempt: name == "jar-5")
    with pytest.raises(JarsUnavailable, match=r"jar-5-1\.0\.jar.*3 attempts.*checksum.*network"):
        ensure_jars(tmp_path, SilentReporter(), source)
    assert not (tmp_path / "kafka-0.0" / jar_of("jar-5").file_name).exists()
    again = Source()
    ensure_jars(tmp_path, SilentReporter(), again)
    assert "jar-5" in again.asked
    assert len(again.asked) <= 2


def test_without_network(tmp_path: Path) -> None:
    """The first start on an aeroplane ends with the reason, not with a traceback of a library."""
    with pytest.raises(JarsUnavailable, match="no route to a repository"):
        ensure_jars(tmp_path, SilentReporter(), refuse)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """It is said with the setting that names another one."""
    (tmp_path / "file").write_text("")
    with pytest.raises(JarsUnavailable, match="AGENTS_STREAM_CACHE_DIR"):
        ensure_jars(tmp_path / "file", SilentReporter(), Source())


def test_two_at_once_download_once(tmp_path: Path) -> None:
    """The second waits for the first, and finds its work done."""
    source = Source()
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(ensure_jars, tmp_path, SilentReporter(), source) for _ in range(2)]
        assert found[0].result() == found[1].result()
    assert sorted(source.asked) == sorted(CONTENTS)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve a Maven repository on this machine and name it in jgo's own settings."""
    root = tmp_path / "repository"
    root.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        config = tmp_path / "jgo.conf"
        config.write_text(f"[repositories]\nhere = http://127.0.0.1:{server.server_port}\n")
        monkeypatch.setenv("JGO_CONFIG_FILE", str(config))
        yield root
        server.shutdown()
        serving.join()


def test_jgo_fetches_a_coordinate(repository: Path, tmp_path: Path) -> None:
    """The real way of a jar, from a repository that the user's own jgo settings name."""
    jar = jar_of("jar-1")
    folder = repository / "org" / "test" / "jar-1" / "1.0"
    folder.mkdir(parents=True)
    (folder / jar.file_name).write_bytes(CONTENTS["jar-1"])
    found = fetch_with_jgo(jar, tmp_path / "place")
    assert is_whole(jar, found)
    assert found.is_relative_to(tmp_path / "place")


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All projects of a user share it, where the desktop's rules want caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jars.default_cache_dir() == tmp_path / "agents_stream"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert jars.default_cache_dir() == Path.home() / ".cache" / "agents_stream"
