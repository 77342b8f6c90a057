"""The verifier itself: it finds a right history right, and sees each kind of violation planted.

One test per violation. A history is spoilt in one place, and the kind that names the broken promise
is among what is found (others may be: what follows from a fault is seen as well).
"""

import copy
from dataclasses import replace

import pytest

from tests.chaos.expected import MESSAGE, ORDER
from tests.chaos.history import (
    CRM,
    JOURNAL,
    LETTERS,
    OUTCOMES,
    RESULTS,
    WHATSAPP,
    History,
)
from tests.chaos.recording import full_run
from tests.chaos.spoiling import alter, append, find, kinds, of
from tests.chaos.verifier import unfinished, verify

RIGHT = full_run()


@pytest.fixture
def history() -> History:
    """A right history, to be spoilt."""
    return copy.deepcopy(RIGHT)


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
