"""Spoiling a right history in one place, for the tests of the verifier."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson

from tests.chaos.history import JOURNAL, History, Line
from tests.chaos.verifier import verify


def kinds(history: History) -> set[str]:
    """The kinds of violations that the verifier finds."""
    return {violation.kind for violation in verify(history)}


def find(history: History, topic: str, which: Callable[[Any], bool]) -> int:
    """The index of the first record of a topic whose value is meant."""
    values = [line.json for line in history.lines[topic]]
    return next(index for index, value in enumerate(values) if value and which(value))


def alter(history: History, topic: str, index: int, **changes: Any) -> Line:
    """Change fields of a record's value."""
    line = history.lines[topic][index]
    changed = replace(line, value=orjson.dumps({**line.json, **changes}))
    history.lines[topic][index] = changed
    return changed


def append(history: History, topic: str, value: dict[str, Any], stamp: int | None = None) -> Line:
    """Add a record at the end of a topic."""
    lines = history.lines[topic]
    session = str(value.get("sessionId") or value.get("key"))
    at = history.ended_at_ms if stamp is None else stamp
    line = Line(topic, 0, len(lines), at, session.encode(), orjson.dumps(value))
    lines.append(line)
    return line


def journalled(history: History, source: Line, stamp: int | None = None, **entry: Any) -> Line:
    """Add a journal line for a source record, like the last line but for what is given."""
    like = {"kind": "event", "id": None, "ts": None, **entry}
    last = history.lines[JOURNAL][-1].json
    place = {
        "topic": source.topic,
        "partition": source.partition,
        "offset": source.offset,
        "timestamp": source.timestamp,
        "keyed": True,
    }
    session = source.json["sessionId"]
    value = {**last, **like, "sessionId": session, "data": source.json, "source": place}
    return append(history, JOURNAL, value, stamp)


def of(name: str, session: str) -> Callable[[Any], bool]:
    """A journal entry of this name and session."""
    return lambda value: (value["name"], value["sessionId"]) == (name, session)


def fired(session: str, name: str) -> Callable[[Any], bool]:
    """The journal entry of a deadline."""
    return lambda value: (
        value["kind"] == "deadline"
        and value["sessionId"] == session
        and value["data"]["name"] == name
    )
