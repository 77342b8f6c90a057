"""The verifier itself: it finds a right history right, and sees each kind of violation planted.

One test per violation. A history is spoilt in one place, and the kind that names the broken promise
is among what is found (others may be: what follows from a fault is seen as well).
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from tests.chaos.contract import MESSAGE, ORDER
from tests.chaos.history import (
    CHANGELOG,
    CRM,
    DEADLINES,
    JOURNAL,
    LETTERS,
    OUTCOMES,
    RESULTS,
    WHATSAPP,
    Exit,
    FaultDone,
    History,
    Line,
)
from tests.chaos.recording import full_run
from tests.chaos.verifier import unfinished, verify

RIGHT = full_run()
FENCED = "Kafka refused a record of the table as too old"


@pytest.fixture
def history() -> History:
    """A right history, to be spoilt."""
    return copy.deepcopy(RIGHT)


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


def test_a_right_history_is_right(history: History) -> None:
    """No check cries wolf: every flow, failing tools, a close and a new start, a broken event."""
    assert [str(one) for one in verify(history)] == []
    assert unfinished(history) == {}


def test_an_event_that_is_nowhere(history: History) -> None:
    """G1: an input record that is neither in the journal nor in the dead letters is lost."""
    index = find(history, JOURNAL, of("agent/customer.message", "complete"))
    del history.lines[JOURNAL][index]
    assert "lost" in kinds(history)
    assert unfinished(history)["inputs"] == 1


def test_an_acknowledged_event_that_kafka_does_not_have(history: History) -> None:
    """What Kafka acknowledged must stand where it said."""
    history.sent[0].tries[0].offset = 99
    assert kinds(history) == {"unwritten"}


def test_a_letter_counts_as_not_lost_but_only_for_what_was_broken(history: History) -> None:
    """G1: a good event in the dead letters is not lost, and yet wrong."""
    index = find(history, JOURNAL, of("agent/customer.message", "complete"))
    source = history.lines[JOURNAL][index].json["source"]
    del history.lines[JOURNAL][index]
    letter = {"id": "dl", "reason": "invalid_json", "detail": "", "key": "complete"}
    append(history, LETTERS, {**letter, "source": source})
    found = kinds(history)
    assert "buried" in found
    assert "lost" not in found


def test_a_broken_event_without_a_letter(history: History) -> None:
    """G1, G10: what is no event goes to the dead letters."""
    index = find(history, LETTERS, lambda value: value["reason"] == "invalid_json")
    del history.lines[LETTERS][index]
    assert {"not_buried", "lost"} <= kinds(history)


def test_a_journal_line_without_a_source(history: History) -> None:
    """Nothing stands in the journal that nobody sent."""
    index = find(history, JOURNAL, of("agent/customer.message", "closed"))
    source = {**history.lines[JOURNAL][index].json["source"], "offset": 77}
    alter(history, JOURNAL, index, source=source)
    assert "invented" in kinds(history)


def test_a_journal_line_that_says_another_thing(history: History) -> None:
    """The journal has what was sent, to the letter."""
    index = find(history, JOURNAL, of("agent/customer.message", "closed"))
    data = {**history.lines[JOURNAL][index].json["data"], "content": "other"}
    alter(history, JOURNAL, index, data=data)
    assert kinds(history) == {"invented"}


def test_an_event_before_an_older_one(history: History) -> None:
    """SPEC §2: a session's events are applied in the order of their timestamps."""
    index = find(history, JOURNAL, of("agent/session.started", "silent"))
    source = history.lines[JOURNAL][index].json["source"]
    later = source["timestamp"] + 60
    alter(history, JOURNAL, index, source={**source, "timestamp": later})
    lines = history.lines["agent.session.started"]
    lines[0] = replace(lines[0], timestamp=later)
    assert "disordered" in kinds(history)


def test_one_id_for_two_things(history: History) -> None:
    """G6: a command that is published again is the same command."""
    command = history.lines[WHATSAPP][0].json
    append(history, WHATSAPP, {**command, "inputs": {"contactId": "c-1", "message": "x"}})
    assert kinds(history) == {"changed_id"}


def test_a_message_that_was_sent_twice(history: History) -> None:
    """G6: the same command id has its effect once, also where the sandbox notices the repeat."""
    again = next(item for item in history.books if item["tool"] == MESSAGE and item["performed"])
    history.books.append({**again, "seq": len(history.books) + 1, "performed": False, "repeat": 1})
    assert kinds(history) == {"doubled"}


def test_an_attempt_that_was_called_twice(history: History) -> None:
    """G6: an attempt that may have acted is not called again, whatever came of it."""
    once = next(item for item in history.books if item["tool"] == MESSAGE and item["performed"])
    history.books.append({**once, "seq": len(history.books) + 1, "performed": False})
    assert kinds(history) == {"doubled"}


def test_two_orders_for_one_key(history: History) -> None:
    """G6: the key that protects an order is used."""
    again = next(item for item in history.books if item["tool"] == ORDER)
    history.books.append({**again, "seq": len(history.books) + 1})
    assert kinds(history) == {"doubled"}


def test_two_orders_for_one_silence(history: History) -> None:
    """G6: a second order under another id is a second order all the same."""
    again = next(item for item in history.books if item["tool"] == ORDER)
    command = next(item.json for item in history.lines[CRM] if item.json["id"] == again["key"])
    append(history, CRM, {**command, "id": "another"})
    history.books.append({**again, "seq": len(history.books) + 1, "key": "another"})
    assert {"doubled", "ended_twice", "command"} <= kinds(history)


def test_a_request_that_no_command_asked_for(history: History) -> None:
    """A tool is asked for what a command says, and for nothing else."""
    again = history.books[0]
    history.books.append({**again, "seq": len(history.books) + 1, "key": "unheard of"})
    assert "uncalled_for" in kinds(history)


def test_a_message_about_an_order_that_was_never_made(history: History) -> None:
    """G7: the CRM has the order before the customer is told of it."""
    order = next(item for item in history.books if item["tool"] == ORDER)
    order["performed"] = False
    assert kinds(history) == {"phantom_order"}


def test_an_order_number_that_is_none(history: History) -> None:
    """G7: an outcome names the order as the CRM does."""
    index = find(history, OUTCOMES, lambda value: "orderId" in value)
    alter(history, OUTCOMES, index, orderId="order-0")
    assert {"phantom_order", "outcome"} <= kinds(history)


def test_a_command_without_a_result(history: History) -> None:
    """G11: at the end no command waits."""
    last = history.lines[RESULTS].pop()
    index = find(
        history,
        JOURNAL,
        lambda value: (
            value["source"]["topic"] == RESULTS and value["source"]["offset"] == last.offset
        ),
    )
    del history.lines[JOURNAL][index]
    assert "stuck" in kinds(history)
    assert unfinished(history)["results"] == 1


def test_a_deadline_that_never_ends(history: History) -> None:
    """G3: an armed deadline ends."""
    index = find(history, JOURNAL, fired("silent", "data_collection.reply"))
    offset = history.lines[JOURNAL][index].json["source"]["offset"]
    del history.lines[JOURNAL][index]
    history.lines[DEADLINES] = [line for line in history.lines[DEADLINES] if line.offset != offset]
    assert {"standing", "record"} <= kinds(history)
    assert unfinished(history)["deadlines"] == 1


def test_a_deadline_that_ends_twice(history: History) -> None:
    """G3: a second firing of the same generation does nothing."""
    first = history.lines[JOURNAL][find(history, JOURNAL, fired("silent", "data_collection.reply"))]
    again = append(history, DEADLINES, first.json["data"])
    line = journalled(history, again, kind="deadline", name="session/deadline")
    command = next(
        item.json for item in history.lines[WHATSAPP] if item.json["asOf"] == first.offset
    )
    append(history, WHATSAPP, {**command, "id": "second", "asOf": line.offset})
    assert {"ended_twice", "command"} <= kinds(history)


def test_a_record_that_is_applied_twice(history: History) -> None:
    """G2: a source that stands in the journal twice counts once."""
    index = find(history, JOURNAL, of("agent/proactive.send", "nudged"))
    again = append(history, JOURNAL, history.lines[JOURNAL][index].json)
    append(history, WHATSAPP, {**history.lines[WHATSAPP][0].json, "id": "x", "asOf": again.offset,
                               "sessionId": "nudged"})  # fmt: skip
    assert {"applied_twice", "command"} <= kinds(history)


def test_an_event_that_counts_twice(history: History) -> None:
    """G2, SPEC §3: a version too many shows that something was applied a second time."""
    index = len(history.lines[CHANGELOG]) - 1
    version = history.lines[CHANGELOG][index].json["version"]
    alter(history, CHANGELOG, index, version=version + 1)
    assert {"record", "replay"} == kinds(history)


def test_a_deadline_that_acts_early(history: History) -> None:
    """G4: what came of a deadline came after its due time, by the broker's stamp."""
    index = find(history, JOURNAL, fired("silent", "data_collection.reply"))
    entry = history.lines[JOURNAL][index].json
    source = entry["source"]
    stamp = entry["data"]["dueAt"] - 1
    alter(history, JOURNAL, index, source={**source, "timestamp": stamp})
    at = find(history, DEADLINES, lambda value: value["sessionId"] == "silent")
    history.lines[DEADLINES][at] = replace(history.lines[DEADLINES][at], timestamp=stamp)
    assert "early" in kinds(history)


def test_a_deadline_with_another_due_time(history: History) -> None:
    """SPEC §4: the durations are the settings'."""
    index = find(history, DEADLINES, lambda value: value["sessionId"] == "complete")
    due = history.lines[DEADLINES][index].json["dueAt"] - 500
    alter(history, DEADLINES, index, dueAt=due)
    assert "wrong_due" in kinds(history)


def test_a_deadline_that_nobody_armed(history: History) -> None:
    """G3: a deadline belongs to the entry that armed it."""
    value = {"sessionId": "silent", "name": "promos.reply", "generation": 1, "dueAt": 5}
    line = append(history, DEADLINES, value)
    journalled(history, line, kind="deadline", name="session/deadline")
    assert "wrong_due" in kinds(history)


@pytest.mark.parametrize(("ahead_ms", "silenced"), [(1, True), (0, False)])
def test_an_answer_in_time_that_was_not_heard(
    history: History, ahead_ms: int, *, silenced: bool
) -> None:
    """G5: a message with a stamp before the due time beats the deadline, one after it need not."""
    index = find(history, JOURNAL, fired("silent", "data_collection.reply"))
    due = history.lines[JOURNAL][index].json["data"]["dueAt"]
    data = {"sessionId": "silent", "conversationId": "c", "messageId": "late", "content": ""}
    line = append(history, "agent.customer.message", data, due - ahead_ms)
    journalled(history, line, name="agent/customer.message")
    found = kinds(history)
    assert ("silenced" in found) is silenced
    assert ("disordered" in found) is True


@pytest.mark.parametrize("what", ["gone", "twice", "other"])
def test_a_flow_that_ends_in_another_way(history: History, what: str) -> None:
    """SPEC §4: each flow ends once, as the contract says."""
    outcomes = history.lines[OUTCOMES]
    if what == "gone":
        outcomes.pop()
    elif what == "twice":
        append(history, OUTCOMES, {**outcomes[0].json, "id": "another"})
    else:
        alter(history, OUTCOMES, 0, action="transitioned_to_promos")
    assert kinds(history) == {"outcome"}


def test_a_message_with_another_text(history: History) -> None:
    """SPEC §4: the texts are the contract's."""
    index = find(history, WHATSAPP, lambda value: value["sessionId"] == "silent")
    command = history.lines[WHATSAPP][index].json
    inputs = {**command["inputs"], "message": "Hola?"}
    alter(history, WHATSAPP, index, inputs=inputs)
    for item in history.books:
        item["inputs"] = inputs if item["key"] == command["id"] else item["inputs"]
    assert kinds(history) == {"command"}


def test_a_command_that_was_decided_and_never_published(history: History) -> None:
    """G1: what is owed is published, whatever crashed in between."""
    command = history.lines[CRM].pop().json
    assert {"command", "uncalled_for"} <= kinds(history)
    assert command["attempt"] == 1


def test_a_command_without_a_cause(history: History) -> None:
    """G6: a command names the journal entry that caused it."""
    append(history, WHATSAPP, {**history.lines[WHATSAPP][0].json, "id": "x", "asOf": 12_345})
    assert "no_cause" in kinds(history)


def test_a_failure_for_good_without_a_letter(history: History) -> None:
    """SPEC §5: a command that failed for good is in the dead letters."""
    index = find(history, LETTERS, lambda value: value["reason"] == "tool_unknown")
    del history.lines[LETTERS][index]
    assert kinds(history) == {"letter"}


def test_a_letter_about_a_command_that_worked(history: History) -> None:
    """Dead letters are only for what failed."""
    index = find(history, LETTERS, lambda value: value["reason"] == "tool_unknown")
    letter = history.lines[LETTERS][index].json
    append(history, LETTERS, {**letter, "id": "another", "value": '{"id": "x"}'})
    assert kinds(history) == {"letter"}


def test_a_record_that_stands_in_another_way(history: History) -> None:
    """SPEC §3: the session's mode is the contract's, and what the journal gives."""
    alter(history, CHANGELOG, len(history.lines[CHANGELOG]) - 1, mode="intro")
    assert kinds(history) == {"record", "replay"}


def test_bookkeeping_that_the_journal_does_not_give(history: History) -> None:
    """G8: the whole record is a function of its journal, its memory of ids too."""
    alter(history, CHANGELOG, len(history.lines[CHANGELOG]) - 1, recent_ids=["i:other"])
    assert kinds(history) == {"replay"}


def test_a_record_that_lags_behind_its_journal(history: History) -> None:
    """G11: at the end everything in the journal is applied."""
    history.lines[CHANGELOG].pop()
    assert kinds(history) == {"stuck"}
    assert unfinished(history) == {"records": 1}


def test_a_lower_record_that_comes_later_does_not_count(history: History) -> None:
    """G9: a paused worker's late write is not how a session stands."""
    lines = history.lines[CHANGELOG]
    lines.append(replace(lines[-2], offset=len(lines)))
    assert kinds(history) == set()


def test_a_session_that_the_table_does_not_have(history: History) -> None:
    """A session that the journal knows has a record."""
    rows = history.lines[CHANGELOG]
    history.lines[CHANGELOG] = [row for row in rows if row.key != b"silent"]
    assert kinds(history) == {"record"}


@pytest.mark.parametrize(
    "one",
    [
        Exit("worker-1", 1, 5_000, None, "worker ends itself: something"),
        Exit("worker-1", 0, 5_000, None, "(nothing)"),
        Exit("worker-0", 1, 500, "worker_term", ""),
        Exit("worker-0", -11, 500, "worker_kill", ""),
        Exit("worker-0", 1, 5_000, None, "worker ends itself: AssertionError: no"),
        Exit("worker-0", 1, 5_000, None, "this is a fault of agents-stream: KeyError"),
        Exit("worker-0", 1, 5_000, None, "a line of something else"),
        Exit("worker-0", 1, 95_000, None, "worker ends itself: something"),
        Exit("worker-1", 1, 180_000, None, f"worker ends itself: {FENCED}"),
    ],
    ids=lambda one: f"{one.cause} {one.code} {one.words}",
)
def test_an_exit_that_no_fault_explains(history: History, one: Exit) -> None:
    """G11: who ends by itself says why, and a fault was there to be felt."""
    history.faults.append(FaultDone("worker_pause", "worker-0", 1_000, 2_000))
    history.faults.append(FaultDone("broker_kill", "broker", 150_000, 160_000))
    history.exits.append(one)
    assert kinds(history) == {"exit"}


@pytest.mark.parametrize(
    "one",
    [
        Exit("worker-0", 1, 5_000, None, "worker ends itself: too old"),
        Exit("worker-0", 3, 199_000, None, "agents-stream: no Kafka answers at localhost"),
        Exit("worker-0", 0, 1_500, "worker_term", ""),
        Exit("worker-0", 1, 199_000, "worker_term", ""),
        Exit("gateway-0", -9, 1_500, "gateway_kill", ""),
    ],
    ids=lambda one: f"{one.cause} {one.code} {one.words}",
)
def test_an_exit_that_a_fault_explains(history: History, one: Exit) -> None:
    """A paused worker is fenced, one without a broker ends; a kill is a kill."""
    history.faults.append(FaultDone("worker_pause", "worker-0", 1_000, 2_000))
    history.faults.append(FaultDone("broker_kill", "broker", 150_000, 160_000))
    history.exits.append(one)
    assert kinds(history) == set()


def test_what_cannot_be_read(history: History) -> None:
    """What the system writes is JSON; nothing else can be said about the rest then."""
    lines = history.lines[JOURNAL]
    lines[0] = replace(lines[0], value=b"{")
    assert kinds(history) == {"unreadable"}


def test_books_with_a_gap(history: History) -> None:
    """A request that the run failed to note would hide a second effect: so it is no proof."""
    del history.books[3]
    assert "books" in kinds(history)
