"""A history, indexed once: what the checks ask of it."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tests.chaos.contract import Story
from tests.chaos.history import (
    CHANGELOG,
    COMMANDS,
    INPUTS,
    JOURNAL,
    LETTERS,
    OUTCOMES,
    RESULTS,
    History,
    Line,
    Place,
)


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept: its kind, the session, and what stands where."""

    kind: str
    session: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.session or '-'}: {self.detail}"


@dataclass
class Told:
    """A session as the contract tells it, beside its journal lines."""

    story: Story
    lines: list[Line] = field(default_factory=list)
    repeated: set[int] = field(default_factory=set)

    def line_at(self, offset: int) -> Line | None:
        """The session's journal line at an offset."""
        return next((line for line in self.lines if line.offset == offset), None)


def source_of(line: Line) -> Place:
    """Where a journal line came from."""
    source = line.json["source"]
    return (source["topic"], source["partition"], source["offset"])


class Reading:
    """The indexes of a history."""

    def __init__(self, history: History) -> None:
        self.history = history

    @cached_property
    def inputs(self) -> dict[Place, Line]:
        """Every input record by its place."""
        return {line.place: line for line in self.history.inputs()}

    @cached_property
    def journal(self) -> list[Line]:
        """The journal, each partition in its order."""
        return self.history.of(JOURNAL)

    @cached_property
    def sources(self) -> dict[Place, Line]:
        """The first journal line of each source record."""
        found: dict[Place, Line] = {}
        for line in self.journal:
            found.setdefault(source_of(line), line)
        return found

    @cached_property
    def letters(self) -> dict[str, dict[str, Any]]:
        """The dead letters, one per id."""
        return {item["id"]: item for item in self._values(LETTERS)}

    @cached_property
    def outcomes(self) -> dict[str, list[dict[str, Any]]]:
        """Each session's outcomes, one per id."""
        once = {item["id"]: item for item in self._values(OUTCOMES)}
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for item in once.values():
            found[item["sessionId"]].append(item)
        return found

    @cached_property
    def commands(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The commands, one per (id, attempt)."""
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for topic in COMMANDS:
            for item in self._values(topic):
                found.setdefault((item["id"], item["attempt"]), item)
        return found

    @cached_property
    def results(self) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """The results of each attempt."""
        found: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        for item in self._values(RESULTS):
            found[item["commandId"], item["attempt"]].append(item)
        return found

    @cached_property
    def caused(self) -> dict[tuple[str, int], dict[str, Any]]:
        """A session's new commands by the journal offset that caused them."""
        return {
            (item["sessionId"], item["asOf"]): item
            for (_, attempt), item in self.commands.items()
            if attempt == 1
        }

    @cached_property
    def told(self) -> dict[str, Told]:
        """Every session that the journal knows, as the contract tells it."""
        found: dict[str, Told] = {}
        for line in self.journal:
            session = line.json["sessionId"]
            if session not in found:
                story = Story(session, self.history.timing, self._command_at)
                found[session] = Told(story)
            one = found[session]
            one.lines.append(line)
            if not one.story.take(line):
                one.repeated.add(line.offset)
        return found

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Each session's record with the highest journal position."""
        found: dict[str, dict[str, Any]] = {}
        for line in self.history.of(CHANGELOG):
            row = line.json
            if row is None or line.key is None:
                continue
            session = line.key.decode()
            known = found.get(session)
            if known is None or position_of(row) >= position_of(known):
                found[session] = row
        return found

    @cached_property
    def messages(self) -> dict[str, list[Line]]:
        """Each session's customer messages, the first record of each message."""
        found: dict[str, dict[str, Line]] = defaultdict(dict)
        for line in self.history.of("agent.customer.message"):
            value = line.json
            if isinstance(value, dict) and "messageId" in value:
                # A message that was sent again counts from its first record on.
                found[value["sessionId"]].setdefault(value["messageId"], line)
        return {session: list(lines.values()) for session, lines in found.items()}

    def _command_at(self, session: str, as_of: int) -> dict[str, Any] | None:
        return self.caused.get((session, as_of))

    def _values(self, topic: str) -> Iterator[dict[str, Any]]:
        yield from (line.json for line in self.history.of(topic))


def position_of(row: dict[str, Any]) -> tuple[int, int]:
    """How far in the journal a record is, to compare two of them."""
    return row["journal_timestamp"], row["journal_offset"]


def rank_of(topic: str) -> int:
    """The place of a topic among the inputs (SPEC §1)."""
    return INPUTS.index(topic)
