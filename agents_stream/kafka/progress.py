"""How a long step tells the person who waits: a bar on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Callable
from typing import Final, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

_LINE_EVERY_S: Final = 3.0
_MB: Final = 1_000_000


class Reporter(Protocol):
    """Hears how a start goes on. Called from one thread at a time."""

    def say(self, text: str) -> None:
        """Take one sentence about what is being done now."""

    def downloaded(self, done_bytes: int, total_bytes: int) -> None:
        """Take how much of a download is here; equal numbers mean that it is complete."""


class SilentReporter:
    """Tells nobody."""

    def say(self, text: str) -> None:
        """Ignore it."""

    def downloaded(self, done_bytes: int, total_bytes: int) -> None:
        """Ignore it."""


class LineReporter:
    """Writes plain lines, at most one every few seconds for a download."""

    def __init__(self, stream: TextIO, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._monotonic = monotonic
        self._next_line_at = 0.0

    def say(self, text: str) -> None:
        """Write the sentence."""
        print(text, file=self._stream, flush=True)

    def downloaded(self, done_bytes: int, total_bytes: int) -> None:
        """Write how far it is, unless it has just been said."""
        now = self._monotonic()
        if now >= self._next_line_at or done_bytes == total_bytes:
            self._next_line_at = now + _LINE_EVERY_S
            done, total = done_bytes / _MB, total_bytes / _MB
            self.say(f"  downloaded {done:.1f} of {total:.1f} MB")


class TerminalReporter:
    """Draws a bar while something is downloaded."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def say(self, text: str) -> None:
        """Print the sentence above the bar."""
        self._console.print(text, highlight=False)

    def downloaded(self, done_bytes: int, total_bytes: int) -> None:
        """Move the bar, and take it away when all is here."""
        if self._bar is None:
            columns = (TextColumn("  downloading"), BarColumn(), DownloadColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=total_bytes)
            self._bar.start()
        self._bar.update(self._task, completed=done_bytes)
        if done_bytes == total_bytes:
            self._bar.stop()
            self._bar = None


def console_reporter(stream: TextIO | None = None) -> Reporter:
    """Choose the reporter that suits `stream` (default: standard error)."""
    out = stream or sys.stderr
    return TerminalReporter(out) if out.isatty() else LineReporter(out)
