"""What `up` says to the person in front of it: one line per thing that happens."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

from rich.console import Console
from rich.text import Text

from agents_stream.kafka.progress import Reporter, console_reporter

Kind = Literal["customer", "engine", "timer", "tool", "outcome", "session", "dead letter", "up"]

_STYLES: Final[dict[str, str]] = {
    "customer": "bold cyan",
    "engine": "blue",
    "timer": "yellow",
    "tool": "magenta",
    "outcome": "green",
    "session": "blue",
    "dead letter": "bold red",
    "up": "bold",
}
_KIND_WIDTH: Final = 12
_WHO_WIDTH: Final = 14
# A pipe has no width; a table cut to 80 columns would hide what it compares.
_PLAIN_WIDTH: Final = 160


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened: when (ms since the epoch), to whom, of what kind, in words."""

    at_ms: int
    who: str
    kind: Kind
    text: str


class Screen:
    """Writes lines for people. Any thread may call it."""

    def __init__(self, stream: TextIO) -> None:
        width = None if stream.isatty() else _PLAIN_WIDTH
        self.console = Console(file=stream, width=width, highlight=False)
        self._stream = stream

    @property
    def is_terminal(self) -> bool:
        """Whether a person can see it at once."""
        return self._stream.isatty()

    def reporter(self) -> Reporter:
        """Give what tells how a download goes on."""
        return console_reporter(self._stream)

    def say(self, text: str) -> None:
        """Say something of `up` itself."""
        self.show(Line(round(time.time() * 1000), "", "up", text))

    def plain(self, text: str = "") -> None:
        """Write text as it is."""
        self.console.print(text, markup=False, soft_wrap=True)

    def show(self, line: Line) -> None:
        """Write one line."""
        moment = datetime.fromtimestamp(line.at_ms / 1000, UTC).astimezone()
        text = Text()
        text.append(f"{moment:%H:%M:%S}.{line.at_ms % 1000:03d}  ", "dim")
        text.append(f"{line.kind:<{_KIND_WIDTH}}", _STYLES[line.kind])
        text.append(f"{line.who:<{_WHO_WIDTH}} " if line.who else "")
        text.append(line.text, "bold" if line.kind == "up" else "")
        self.console.print(text, soft_wrap=True)
