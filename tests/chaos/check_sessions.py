"""Checks of the sessions: deadlines, answers, outcomes, records (G2 to G5, G8)."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import orjson

from agents_stream.core.decider import apply
from agents_stream.core.journal import Position, decode_entry
from agents_stream.core.session import SessionRecord, decode_record, encode_record
from tests.chaos.check_inputs import OF_INPUTS
from tests.chaos.contract import FRESH
from tests.chaos.exits import why_unexplained
from tests.chaos.expected import DATA_REPLY, PROMOS_REPLY, Armed
from tests.chaos.history import DEADLINES
from tests.chaos.reading import Reading, Told, Violation

ANSWERED: Final = (DATA_REPLY, PROMOS_REPLY)


def standing(read: Reading) -> Iterator[Violation]:
    """G3: no deadline stands at the end of a run that has drained; each ended once."""
    for session, told in read.told.items():
        for armed in told.story.all_deadlines:
            if armed.end == "standing" and armed.latest_ms < read.history.ended_at_ms:
                detail = f"{_name(armed)} was due at {armed.due_ms} and never ended"
                yield Violation("standing", session, detail)


def ended_twice(read: Reading) -> Iterator[Violation]:
    """G3, G2: no two commands come of one deadline, nor of one event."""
    causes: dict[tuple[Any, ...], set[tuple[str, int]]] = defaultdict(set)
    for (command_id, attempt), command in read.commands.items():
        session = command["sessionId"]
        told = read.told.get(session)
        line = None if told is None else told.line_at(command["asOf"])
        if told is None or line is None:
            detail = f"{command_id} names journal offset {command['asOf']} as its cause"
            yield Violation("no_cause", session, detail)
            continue
        if line.offset in told.repeated:
            detail = f"{command_id} came of a record that had been applied before"
            yield Violation("applied_twice", session, detail)
        entry = line.json
        if entry["kind"] == "deadline":
            cause = (session, entry["data"]["name"], entry["data"]["generation"])
            causes[cause].add((command_id, attempt))
    for cause, commands in causes.items():
        if len(commands) > 1:
            detail = f"{cause[1]} of generation {cause[2]} ended {len(commands)} times"
            yield Violation("ended_twice", cause[0], detail)


def early(read: Reading) -> Iterator[Violation]:
    """G4: nothing came of a deadline before its due time, by the brokers' stamps."""
    for session, told in read.told.items():
        dues = {(one.name, one.generation): one.due_ms for one in told.story.all_deadlines}
        for line in told.lines:
            entry = line.json
            if entry["kind"] != "deadline":
                continue
            due_ms = dues.get((entry["data"]["name"], entry["data"]["generation"]))
            stamp = entry["source"]["timestamp"]
            if due_ms is None or stamp >= due_ms or not _did_something(read, session, line):
                continue
            detail = f"{entry['data']['name']} acted at {stamp}, {due_ms - stamp} ms early"
            yield Violation("early", session, detail)


def _did_something(read: Reading, session: str, line: Any) -> bool:
    commands = any(
        command["asOf"] == line.offset and command["sessionId"] == session
        for command in read.commands.values()
    )
    return commands or any(item["at"] == line.timestamp for item in read.outcomes.get(session, ()))


def wrong_due(read: Reading) -> Iterator[Violation]:
    """SPEC §4, §5: a deadline is due when the contract says."""
    armed = {
        (session, one.name, one.generation): one
        for session, told in read.told.items()
        for one in told.story.all_deadlines
    }
    for line in read.history.of(DEADLINES):
        value = line.json
        one = armed.get((value["sessionId"], value["name"], value["generation"]))
        if one is None:
            detail = f"{value['name']} of generation {value['generation']} was never armed"
            yield Violation("wrong_due", value["sessionId"], detail)
        elif not one.due_ms <= value["dueAt"] <= one.latest_ms:
            detail = f"{_name(one)} is due at {value['dueAt']}, not {one.due_ms}"
            yield Violation("wrong_due", value["sessionId"], detail)


def silenced(read: Reading) -> Iterator[Violation]:
    """G5: who answered before the due time, by the broker's stamp, was not treated as silent."""
    for session, told in read.told.items():
        for armed in told.story.all_deadlines:
            if armed.name not in ANSWERED or armed.end != "fired":
                continue
            for message in read.messages.get(session, ()):
                if armed.armed_ms < message.timestamp < armed.due_ms:
                    ahead = armed.due_ms - message.timestamp
                    detail = f"{_name(armed)} fired; the customer wrote {ahead} ms before it"
                    yield Violation("silenced", session, detail)


def outcomes(read: Reading) -> Iterator[Violation]:
    """SPEC §4: each flow ended as the contract says, and was said to have ended once."""
    for session in read.told.keys() | read.outcomes.keys():
        told = read.told.get(session)
        expected = [] if told is None else told.story.outcomes
        yield from _compare(
            "outcome",
            session,
            map(_outcome, expected),
            map(_outcome, read.outcomes.get(session, ())),
        )


def commands(read: Reading) -> Iterator[Violation]:
    """SPEC §4, §5: what was asked of the tools is what the contract asks, attempt by attempt."""
    found: dict[str, list[str]] = defaultdict(list)
    for (_, attempt), item in read.commands.items():
        found[item["sessionId"]].append(
            _command(item["asOf"], item["tool"], attempt, item["inputs"])
        )
    for session in read.told.keys() | found.keys():
        told = read.told.get(session)
        expected = [] if told is None else [_command(*item) for item in told.story.issued]
        yield from _compare("command", session, expected, found[session])


def letters(read: Reading) -> Iterator[Violation]:
    """SPEC §5: a command that failed for good is in the dead letters, once, and no other is."""
    found: dict[str, list[str]] = defaultdict(list)
    for letter in read.letters.values():
        if letter["reason"] not in OF_INPUTS:
            value = orjson.loads(letter["value"])
            found[str(letter["key"])].append(f"{letter['reason']} {value.get('id')}")
    for session in read.told.keys() | found.keys():
        told = read.told.get(session)
        expected = [] if told is None else [f"{why} {of}" for why, of in told.story.letters]
        yield from _compare("letter", session, expected, found[session])


def records(read: Reading) -> Iterator[Violation]:
    """SPEC §3: each session stands as the contract says; nothing is left to be done."""
    for session, told in read.told.items():
        row, story = read.rows.get(session), told.story
        if row is None:
            if story.known:
                yield Violation("record", session, "the table does not have it")
            continue
        if row["journal_offset"] != told.lines[-1].offset:
            detail = f"its record is at {row['journal_offset']}, not {told.lines[-1].offset}"
            yield Violation("stuck", session, detail)
            continue
        stands = {
            "mode": row["mode"],
            "status": row["status"],
            "close_reason": row["close_reason"],
            "version": row["version"],
            "state": row["state"],
            "flows": sorted(row["flows"]),
            "deadlines": sorted(row["deadlines"]),
            "pending": sorted((one["id"], one["state"]) for one in row["pending"].values()),
        }
        for name, should in _as_record(told).items():
            if stands[name] != should:
                detail = f"{name} is {stands[name]}, the contract says {should}"
                yield Violation("record", session, detail)


def _as_record(told: Told) -> dict[str, Any]:
    story = told.story
    return {
        "mode": story.mode,
        "status": story.status,
        "close_reason": story.reason,
        "version": story.version,
        # A closed session's record keeps no state that was ever touched (docs/data.md).
        "state": {} if story.status == "closed" and story.state != FRESH else story.state,
        "flows": sorted(story.flows),
        "deadlines": sorted(story.deadlines),
        "pending": sorted((one.id, one.state) for one in story.commands.values()),
    }


def replays(read: Reading) -> Iterator[Violation]:
    """G8: a session's record is what its journal gives, by the production code."""
    for session, told in read.told.items():
        row = read.rows.get(session)
        if row is None:
            continue
        record: SessionRecord | None = None
        for line in told.lines:
            if line.offset > row["journal_offset"]:
                break
            at = Position(line.topic, line.partition, line.offset, line.timestamp)
            record = apply(record, decode_entry(line.value or b""), at).record
        stands = replace(decode_record(orjson.dumps(row)), outbox={})
        given = b"" if record is None else encode_record(replace(record, outbox={}))
        if encode_record(stands) != given:
            yield Violation("replay", session, "the record is not what its journal gives")


def exits(read: Reading) -> Iterator[Violation]:
    """G11: a process ends only because of a fault, and says which."""
    for one in read.history.exits:
        if (why := why_unexplained(one, read.history.faults)) is not None:
            yield Violation("exit", "", f"{one.process} ended with {one.code} ({why}): {one.words}")


def _compare(kind: str, session: str, expected: Any, found: Any) -> Iterator[Violation]:
    should, stands = Counter(expected), Counter(found)
    for item, count in (should - stands).items():
        yield Violation(kind, session, f"missing {count}: {item}")
    for item, count in (stands - should).items():
        yield Violation(kind, session, f"too many {count}: {item}")


def _outcome(item: dict[str, Any]) -> str:
    extra = {
        name: value
        for name, value in item.items()
        if name in {"missing", "orderId", "notified", "unknown"}
    }
    if "error" in item:
        extra["error"] = item["error"].get("code")
    named = orjson.dumps(extra, option=orjson.OPT_SORT_KEYS).decode()
    return f"{item['flow']}/{item['status']}/{item['action']} at {item['at']} {named}"


def _command(as_of: int, tool: str, attempt: int, inputs: dict[str, Any]) -> str:
    named = orjson.dumps(inputs, option=orjson.OPT_SORT_KEYS).decode()
    return f"{tool}, attempt {attempt}, by journal {as_of}: {named}"


def _name(armed: Armed) -> str:
    return f"{armed.name} (generation {armed.generation})"
