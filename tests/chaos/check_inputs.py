"""Checks of what came in: nothing lost, nothing invented, in order (G1, G2, SPEC §2)."""

from collections.abc import Iterator
from typing import Any

from tests.chaos.history import LETTERS, Line
from tests.chaos.reading import Reading, Violation, rank_of, source_of

OF_INPUTS = {"invalid_json", "invalid_schema", "unknown_event", "too_large"}


def lost(read: Reading) -> Iterator[Violation]:
    """G1: every record of an input topic is in the journal, or in the dead letters."""
    buried = {
        (source["topic"], source["partition"], source["offset"])
        for source in (letter["source"] for letter in read.letters.values())
    }
    for place, line in read.inputs.items():
        if place not in read.sources and place not in buried:
            session = (line.key or b"").decode("utf-8", "replace")
            yield Violation("lost", session, f"{_at(line)} is neither in the journal nor a letter")


def unwritten(read: Reading) -> Iterator[Violation]:
    """What Kafka acknowledged stands where it said; without a place, it stands somewhere."""
    identities = {_identity_of(line) for line in read.inputs.values()}
    for sent in read.history.sent:
        for tried in sent.tries:
            if not tried.acknowledged:
                continue
            place = (sent.topic, tried.partition or 0, tried.offset or 0)
            there = sent.identity in identities if tried.offset == -1 else place in read.inputs
            if not there:
                detail = f"{sent.name} was acknowledged at {place} and is not there"
                yield Violation("unwritten", sent.session_id, detail)


def invented(read: Reading) -> Iterator[Violation]:
    """Every journal line has its source, and says what the source says."""
    for line in read.journal:
        entry = line.json
        source = read.inputs.get(source_of(line))
        if source is None:
            detail = f"{_at(line)} names {source_of(line)}, and nothing is there"
            yield Violation("invented", entry["sessionId"], detail)
        elif entry["source"]["timestamp"] != source.timestamp:
            detail = f"{_at(line)} has another time than its source {_at(source)}"
            yield Violation("invented", entry["sessionId"], detail)
        elif entry["data"] != _data_of(source):
            detail = f"{_at(line)} says another thing than its source {_at(source)}"
            yield Violation("invented", entry["sessionId"], detail)


def disordered(read: Reading) -> Iterator[Violation]:
    """A session's events stand in the order of their times, across topics; deadlines last."""
    for session, told in read.told.items():
        latest, before = (-1, -1), None
        for line in told.lines:
            if line.offset in told.repeated:
                continue
            source = line.json["source"]
            order = (source["timestamp"], rank_of(source["topic"]))
            if order < latest:
                detail = f"{_at(line)} (from {source_of(line)}) comes after {before}, and is older"
                yield Violation("disordered", session, detail)
            else:
                latest, before = order, source_of(line)


def buried(read: Reading) -> Iterator[Violation]:
    """Letters of inputs are only for what was broken on purpose, and for all of that."""
    broken = {
        (sent.topic, tried.partition, tried.offset)
        for sent in read.history.sent
        if sent.broken
        for tried in sent.tries
        if tried.acknowledged
    }
    sessions = {sent.session_id for sent in read.history.sent if sent.broken}
    found = set()
    for letter in read.letters.values():
        if letter["reason"] not in OF_INPUTS:
            continue
        source = letter["source"]
        place = (source["topic"], source["partition"], source["offset"])
        found.add(place)
        # A broken event may have been written twice, the first time without an acknowledgement.
        if place not in broken and letter["key"] not in sessions:
            detail = f"{letter['reason']} ({letter['detail']}) at {place}"
            yield Violation("buried", str(letter["key"]), detail)
    for place in broken - found:
        yield Violation("not_buried", "", f"the broken event at {place} is in no dead letter")


def unreadable(read: Reading) -> Iterator[Violation]:
    """What the system writes is JSON, and keyed by the session."""
    for topic, lines in read.history.lines.items():
        if topic.startswith("agent.") and topic not in {"agent.outcomes", LETTERS}:
            continue
        for line in lines:
            # A null is a tombstone of the table.
            if line.value is not None and line.json is None:
                yield Violation("unreadable", "", f"{_at(line)} is no JSON")


def _identity_of(line: Line) -> str:
    value = line.json
    if not isinstance(value, dict):
        return f"broken-{(line.key or b'').decode('utf-8', 'replace')}"
    return str(value.get("id") or value.get("messageId") or "")


def _data_of(source: Line) -> Any:
    value = source.json
    is_envelope = isinstance(value, dict) and "sessionId" not in value and "data" in value
    return value["data"] if is_envelope else value


def _at(line: Line) -> str:
    return f"{line.topic}/{line.partition}/{line.offset}"
