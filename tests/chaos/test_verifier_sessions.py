"""The verifier of sessions: deadlines, answers, outcomes, records and exits, each spoilt once."""

import copy
from dataclasses import replace

import pytest

from tests.chaos.history import (
    CHANGELOG,
    CRM,
    DEADLINES,
    JOURNAL,
    LETTERS,
    OUTCOMES,
    WHATSAPP,
    Exit,
    FaultDone,
    History,
)
from tests.chaos.recording import full_run
from tests.chaos.spoiling import alter, append, find, fired, journalled, kinds, of
from tests.chaos.verifier import unfinished

RIGHT = full_run()
FENCED = "Kafka refused a record of the table as too old"


@pytest.fixture
def history() -> History:
    """A right history, to be spoilt."""
    return copy.deepcopy(RIGHT)


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


def test_a_closed_session_that_keeps_its_state(history: History) -> None:
    """What the customer told about himself leaves the table with the close."""
    rows = history.lines[CHANGELOG]
    index = max(number for number, row in enumerate(rows) if row.key == b"gone")
    assert rows[index].json["state"] == {}
    alter(history, CHANGELOG, index, state=rows[index - 1].json["state"])
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
        Exit("worker-0", -15, 500, "worker_term", ""),
        Exit("worker-0", 1, 5_000, None, "worker ends itself: AssertionError: no"),
        Exit("worker-0", 1, 5_000, None, "this is a fault of agents-stream: KeyError"),
        Exit("worker-0", 1, 5_000, None, "a line of something else"),
        Exit("worker-0", 1, 5_000, None, "worker ends itself: a changelog lost its tail"),
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
        Exit("worker-0", 3, 199_000, None, "agents-stream: Kafka at x does not answer any more"),
        Exit("worker-0", 0, 1_500, "worker_term", ""),
        Exit("worker-0", 1, 199_000, "worker_term", ""),
        Exit("gateway-0", -9, 1_500, "gateway_kill", ""),
        Exit("gateway-0", -15, 1_500, "gateway_term", "", lived_s=0.5),
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
