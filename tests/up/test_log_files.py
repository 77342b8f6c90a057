"""The log of a child: rotated, bounded, and followed for its warnings."""

from pathlib import Path

import orjson
import pytest

from agents_stream.up import log_files
from agents_stream.up.log_files import LogFile


def line(event: str, level: str, **more: str) -> bytes:
    """A line as a child logs it."""
    return orjson.dumps({"event": event, "level": level, "timestamp": "now", **more}) + b"\n"


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    """A log that a child can write."""
    made = LogFile(tmp_path / "logs", "worker")
    made.rotate()
    return made


def test_lines_are_given_once_and_whole(log: LogFile) -> None:
    """A line that is half written waits for its other half."""
    with log.open() as child:
        whole = line("recovered", "info", rows="3")
        child.write(whole + line("slow", "warning")[:9])
        assert [(one.event, one.told) for one in log.read_new()] == [("recovered", False)]
        assert log.read_new() == []
        child.write(line("slow", "warning")[9:])
        assert [(one.words, one.told) for one in log.read_new()] == [("slow", True)]


def test_what_is_no_json_is_quoted_at_the_end(log: LogFile) -> None:
    """A traceback stays among the last lines, and is no line of the log."""
    with log.open() as child:
        child.write(b"Traceback (most recent call last):\nValueError: no\n[1, 2]\n\xff\n")
        child.write(line("ends", "critical", reason="x", exception="Traceback\nKeyError: 'a'"))
    (told,) = log.read_new()
    assert (told.words, told.told) == ("ends reason=x", True)
    assert log.last_lines()[1] == "ValueError: no"
    assert log.last_lines()[-2:] == ["critical: ends reason=x", "KeyError: 'a'"]


def test_three_files_are_kept(log: LogFile) -> None:
    """Each start begins a new file; the two before it stay."""
    for number in range(5):
        log.rotate()
        with log.open() as child:
            child.write(line(str(number), "info"))
        assert [one.event for one in log.read_new()] == [str(number)]
    names = sorted(path.name for path in log.path.parent.iterdir())
    assert names == ["worker.log", "worker.log.1", "worker.log.2"]
    assert b'"2"' in log.path.with_name("worker.log.2").read_bytes()


def test_a_running_child_cannot_fill_the_disk(
    log: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that grew too large is moved aside; the child goes on in the emptied one."""
    monkeypatch.setattr(log_files, "MAX_FILE_BYTES", 200)
    seen = []
    with log.open() as child:
        for number in range(40):
            child.write(line(str(number), "info"))
            seen += [one.event for one in log.read_new()]
    assert seen == [str(number) for number in range(40)]
    sizes = [path.stat().st_size for path in log.path.parent.iterdir()]
    assert len(sizes) == 3
    assert max(sizes) < 300
