"""The log of one child: a file that it writes itself, bounded, and followed for what it warns of.

The child holds the file and no pipe of ours, so that it never waits for whoever reads. It writes
one JSON object per line; whatever else it prints (a traceback) stays in the file and is quoted
when it dies.
"""

import os
import shutil
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

KEPT_FILES: Final = 3
MAX_FILE_BYTES: Final = 20 * 1024 * 1024
MAX_READ_BYTES: Final = 1024 * 1024
MAX_LAST_LINES: Final = 10
MAX_LINE_CHARS: Final = 300
_TOLD_LEVELS: Final = frozenset({"warning", "error", "critical"})
# Shown where they are read, on the topic of the dead letters.
_TOLD_ELSEWHERE: Final = frozenset({"dead letter"})
_NOT_TOLD: Final = frozenset({"event", "level", "timestamp", "logger", "exception", "stack"})


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a child logged as JSON."""

    event: str
    level: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> bool:
        """Whether a person should see it at once."""
        return self.level in _TOLD_LEVELS and self.event not in _TOLD_ELSEWHERE

    @property
    def words(self) -> str:
        """The line for people, clipped."""
        details = " ".join(f"{key}={value}" for key, value in self.details.items())
        return f"{self.event} {details}".strip()[:MAX_LINE_CHARS]


class LogFile:
    """`<folder>/<name>.log`; the two before it are `.1` and `.2`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.log"
        self._position = 0
        self._rest = b""
        self._last: deque[str] = deque(maxlen=MAX_LAST_LINES)

    def rotate(self) -> None:
        """Begin a new file; keep the files before it, KEPT_FILES in all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for number in range(KEPT_FILES - 1, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        self._position = 0

    def open(self) -> BinaryIO:
        """Open the file for a child to append to."""
        return self.path.open("ab", buffering=0)

    def read_new(self) -> list[LogLine]:
        """Give what was logged since the last call, at most MAX_READ_BYTES of it."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                chunk = file.read(MAX_READ_BYTES)
        except FileNotFoundError:
            return []
        self._position += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self._rest = self._rest[-MAX_READ_BYTES:]
        parsed = [self._parse(line) for line in lines if line.strip()]
        self._bound()
        return [line for line in parsed if line is not None]

    def last_lines(self) -> list[str]:
        """Give the last lines that were read, clipped, oldest first."""
        return list(self._last)

    def _parse(self, raw: bytes) -> LogLine | None:
        """Read one line; None if it is no JSON object."""
        text = raw.decode("utf-8", "replace").rstrip()
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            self._last.append(text[:MAX_LINE_CHARS])
            return None
        details = {key: item for key, item in value.items() if key not in _NOT_TOLD}
        line = LogLine(str(value.get("event", "")), str(value.get("level", "")), details)
        self._last.append(f"{line.level}: {line.words}")
        if exception := value.get("exception"):
            self._last.append(str(exception).strip().rsplit("\n", 1)[-1][:MAX_LINE_CHARS])
        return line

    def _bound(self) -> None:
        """Move a file that has grown too large aside. What is logged meanwhile may be lost.

        The child goes on with the same open file, so the content moves and not the file.
        """
        if self._position < MAX_FILE_BYTES or self._position < self.path.stat().st_size:
            return
        for number in range(KEPT_FILES - 1, 1, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        shutil.copyfile(self.path, self._numbered(1))
        os.truncate(self.path, 0)
        self._position = 0

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path
