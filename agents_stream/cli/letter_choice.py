"""Which dead letters a command is about: the filters that `dead-letters` commands share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agents_stream.cli.options import parse_moment

if TYPE_CHECKING:
    from agents_stream.dead_letters import Buried

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help stays quick

_PARTS: Final = ("topic", "partition", "offset")

Reasons = Annotated[
    list[str] | None, typer.Option("--reason", help="Only those of this reason; may be repeated.")
]
Topics = Annotated[
    list[str] | None,
    typer.Option(
        "--topic",
        help="Only those whose source is on this topic, with or without prefix; may be repeated.",
    ),
]
Session = Annotated[str | None, typer.Option("--session", help="Only those of this session.")]
Since = Annotated[
    str | None,
    typer.Option("--since", help="Only those written since: 2026-01-31T12:00:00Z, or 90m (ago)."),
]
Until = Annotated[
    str | None,
    typer.Option("--until", help="Only those written before: 2026-01-31T12:00:00Z, or 90m (ago)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Choice:
    """Which letters. Without any filter every letter is wanted."""

    def __init__(
        self,
        reasons: Sequence[str] | None = None,
        topics: Sequence[str] | None = None,
        session: str | None = None,
        since: str | None = None,
        until: str | None = None,
        *,
        prefix: str = "",
    ) -> None:
        self.reasons = frozenset(reasons or ())
        self.topics = frozenset(_full_name(topic, prefix) for topic in topics or ())
        self.session = session
        self.since_ms = None if since is None else parse_moment("--since", since)
        self.until_ms = None if until is None else parse_moment("--until", until)
        self.places: frozenset[str] = frozenset()

    @property
    def reads_letters(self) -> bool:
        """Whether a letter must be read to know that it is wanted: its time stands beside it."""
        return bool(self.reasons or self.topics or self.session or self.places)

    def wants(self, letter: "Buried") -> bool:
        """Whether a letter is one of them."""
        from agents_stream.dead_letters import session_of

        if self.reasons and letter.reason not in self.reasons:
            return False
        if self.topics and letter.source[0] not in self.topics:
            return False
        if self.places and letter.id not in self.places:
            return False
        if not self.is_in_time(letter.written_at):
            return False
        if self.session is None:
            return True
        return self.session in {session_of(letter), (letter.key or b"").decode(errors="replace")}

    def is_in_time(self, written_at_ms: int) -> bool:
        """Whether a letter written then may be one of them."""
        return (self.since_ms or 0) <= written_at_ms and (
            self.until_ms is None or written_at_ms < self.until_ms
        )


def letter_id(place: str) -> str:
    """The id of a letter, from the place of its source as `list` shows it, or from the id itself.

    Raises:
        typer.BadParameter: it is neither.

    """
    parts = place.removeprefix("dl:").rsplit("/", 2)
    numbers = parts[1:]
    if len(parts) != len(_PARTS) or not all(part.isascii() and part.isdigit() for part in numbers):
        raise typer.BadParameter(f"{place!r} is no TOPIC/PARTITION/OFFSET")
    return f"dl:{parts[0]}/{int(numbers[0])}/{int(numbers[1])}"


def _full_name(topic: str, prefix: str) -> str:
    from agents_stream.kafka.topics import load_topics

    names = load_topics().names(prefix)
    for name in (topic, prefix + topic):
        if name in names:
            return name
    raise typer.BadParameter(f"--topic {topic!r} is none of ours: topics.yaml names them")
