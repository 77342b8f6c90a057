"""SPEC §5, results and retries, as transcripts; the language is explained in `transcript.py`."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.core.flows.tools import MAX_ERROR_CHARS
from agents_stream.core.journal import Durations
from agents_stream.core.session import MAX_FAILED_COMMANDS
from tests.core.transcript import Conversation, retell, tidy

TRANSCRIPTS = {
    "a command without a result stays pending and never times out": """
        given session.started; proactive.send
        +1000h customer.message
            because not_waiting
        succeeded
            outcome proactive sent/reminder
    """,
    "a result for an unknown or settled command changes nothing": """
        given session.started; proactive.send
        succeeded
            outcome proactive sent/reminder
        succeeded
            because unknown_command
        failed
            because unknown_command
    """,
    "a result for an attempt that never went out changes nothing": """
        given session.started; proactive.send
        succeeded attempt=2
            because unknown_attempt
        failed attempt=2
            because unknown_attempt
    """,
    "a failure of an earlier attempt changes nothing, its success counts": """
        given session.started; proactive.send; failed retryable; due
        failed attempt=1
            because settled_attempt
        unknown attempt=1
            because settled_attempt
        succeeded attempt=1
            outcome proactive sent/reminder
    """,
    "while a retry waits, no failure counts": """
        given session.started; proactive.send; failed retryable
        failed
            because settled_attempt
        unknown
            because settled_attempt
        failed retryable
            because settled_attempt
    """,
    "a success while a retry waits ends the retry": """
        given session.started; proactive.send; failed retryable
        succeeded
            ends retry:@1 cancelled
            outcome proactive sent/reminder
    """,
    "a result that says nothing about retrying is not retryable": """
        given session.started; proactive.send
        failed {"retryable": null}
            buries @1: tool_failed, boom: no
            outcome proactive failed/reminder
                with {"error": {"code": "boom", "message": "no"}}
    """,
    "unknown is never retried, whatever it says of itself": """
        given session.started; proactive.send
        unknown {"retryable": true}
            buries @1: tool_unknown, boom: no
            outcome proactive failed/reminder
                with {"error": {"code": "boom", "message": "no"}, "unknown": true}
    """,
    "a failure without an error": """
        given session.started; proactive.send
        failed {"error": null}
            buries @1: tool_failed, error
            outcome proactive failed/reminder
                with {"error": {"code": "error", "message": ""}}
    """,
    "a settled failure: a late success changes nothing": """
        given session.started; proactive.send; failed
        succeeded
            because settled_attempt
        failed
            because settled_attempt
    """,
    "a start that replaces a run leaves the retry of its message alone": """
        given session.started; collecting_data.started; due; failed retryable
        collecting_data.started
            v3 {"proactive_started_at": "now"}
            arms data_collection.reply +6m
            outcome data_collection cancelled/restarted
        due retry:@1
            ends retry:@1 fired
            @1 tells c1: PENDING (attempt 2)
        succeeded
            because run_ended
    """,
}

REDRIVEN = {
    "a failed message is retried: its result ends the flow anew": """
        given session.started; collecting_data.started; due; failed
        operator retry_command @1
            @1 tells c1: PENDING (attempt 2)
        operator retry_command @1
            because no_such_command
        succeeded
            outcome data_collection timeout/sent_pending_message
                with {"redriven": true}
        operator retry_command @1
            because no_such_command
    """,
    "a failed proactive message is retried and fails again": """
        given session.started; proactive.send; unknown
        operator retry_command @1
            @1 tells c1: REMINDER (attempt 2)
        failed
            buries @1: tool_failed, boom: no
            outcome proactive failed/reminder
                with {"error": {"code": "boom", "message": "no"}, "redriven": true}
        operator retry_command @1
            @1 tells c1: REMINDER (attempt 3)
        succeeded
            outcome proactive sent/reminder
                with {"redriven": true}
    """,
    "a failed order is retried: it is in progress again": """
        given session.started; promos.offered; due; failed
        operator retry_command @1
            @1 orders for k1 (attempt 2)
        promos.offered
            because order_in_progress
        succeeded
            v3 {"pack_seleccionado": "1x"}
            @2 tells c1: CREATED
        succeeded
            v4 {"mode": "compra_confirmada"}
            outcome promos timeout/auto_created_order
                with {"orderId": "order-1", "redriven": true}
    """,
    "G7: a failed order is retried and fails again": """
        given session.started; promos.offered; due; unknown
        operator retry_command @1
            @1 orders for k1 (attempt 2)
        failed
            buries @1: tool_failed, boom: no
            outcome promos failed/order_failed
                with {"error": {"code": "boom", "message": "no"}, "redriven": true}
    """,
    "the message about an order is retried": """
        given session.started; promos.offered; due; succeeded; failed
        operator retry_command @2
            @2 tells c1: CREATED (attempt 2)
        promos.offered
            because order_in_progress
        succeeded
            outcome promos timeout/auto_created_order
                with {"orderId": "order-1", "redriven": true}
    """,
    "a failed order is retried while another run waits: neither disturbs the other": """
        given session.started; promos.offered; due; failed; promos.offered
        operator retry_command @1
            @1 orders for k1 (attempt 2)
        succeeded @1
            v3 {"pack_seleccionado": "1x"}
            @2 tells c1: CREATED
        succeeded @2
            v4 {"mode": "compra_confirmada"}
            outcome promos timeout/auto_created_order
                with {"orderId": "order-1", "redriven": true}
        due promos.reply
            ends promos.reply fired
            @3 orders for k1
    """,
    "a retried command has the attempts that are left": """
        given session.started; proactive.send; failed
        operator retry_command @1
            @1 tells c1: REMINDER (attempt 2)
        failed retryable
            arms retry:@1
        given due; failed retryable; due
        failed retryable
            buries @1: retries_exhausted, boom: no
            outcome proactive failed/reminder
                with {"error": {"code": "boom", "message": "no"}, "redriven": true}
    """,
    "after four attempts a person may ask for a fifth, which is the last": """
        given session.started; proactive.send; failed retryable; due; failed retryable; due
        given failed retryable; due; failed retryable
        operator retry_command @1
            @1 tells c1: REMINDER (attempt 5)
        failed retryable
            buries @1: retries_exhausted, boom: no
            outcome proactive failed/reminder
                with {"error": {"code": "boom", "message": "no"}, "redriven": true}
    """,
    "a command is retried while paused: its next attempt waits": """
        given session.started; proactive.send; failed; operator pause
        operator retry_command @1
            holds @1
            because paused
        succeeded attempt=2
            because unknown_attempt
        operator resume
            resumes
            @1 tells c1: REMINDER (attempt 2)
        succeeded
            outcome proactive sent/reminder
                with {"redriven": true}
    """,
    "a retried message of a run that was replaced": """
        given session.started; collecting_data.started; due; failed; collecting_data.started
        operator retry_command @1
            @1 tells c1: PENDING (attempt 2)
        succeeded
            outcome data_collection timeout/sent_pending_message
                with {"redriven": true}
        customer.message
            ends data_collection.reply cancelled
            outcome data_collection responded/awaiting_more_data
    """,
    "a close while a retried order is in progress": """
        given session.started; promos.offered; due; failed; operator retry_command @1
        session.close
            closes completed
            outcome promos cancelled/session_closed
            outcome session closed/completed
        succeeded
            outcome promos cancelled/order_created_after_close
                with {"orderId": "order-1"}
            because session_closed
    """,
    "no such command, none that failed": """
        given session.started; proactive.send
        operator retry_command @1
            because no_such_command
        operator retry_command {"commandId": "nonsense"}
            because no_such_command
        operator retry_command
            because no_such_command
    """,
    "a redrive that is sent twice does nothing more than once": """
        given session.started; proactive.send; failed
        operator retry_command @1 id=dl:agent.dead_letters/3/7
            @1 tells c1: REMINDER (attempt 2)
        failed
            buries @1: tool_failed, boom: no
            outcome proactive failed/reminder
                with {"error": {"code": "boom", "message": "no"}, "redriven": true}
        operator retry_command @1 id=dl:agent.dead_letters/3/7
            because duplicate
    """,
}


@pytest.mark.parametrize("script", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_transcript(script: str) -> None:
    """SPEC §5, sentence by sentence; what each result leads to is in the flows' own tests.

    A restart cancels "both deadlines" of its flow: the retry of a message that is on its way
    is not one of them, and its result is recorded.
    """
    assert retell(script) == tidy(script)


@given(
    backoff_ms=st.integers(1, 20_000),
    retry_after_ms=st.none() | st.integers(0, 100_000_000) | st.floats(0, 1e9),
)
def test_retries_keep_their_windows(backoff_ms: int, retry_after_ms: float | None) -> None:
    """SPEC §5: attempt n+1 goes out backoff x 2^(n-1) x (1 to 1.5) after the result's time.

    At least `retryAfterMs`, capped at a day; otherwise at most five minutes. The retry is a
    deadline of the session like any other.
    """
    conversation = Conversation(Durations(retry_backoff_ms=backoff_ms))
    conversation.event("proactive.send")
    for n in (1, 2, 3):
        said = {"retryable": True, "retryAfterMs": retry_after_ms}
        decision = conversation.result(1, "failed", said=said)
        assert decision
        assert decision.record
        (name,) = decision.record.deadlines
        assert name == f"retry:{conversation.commands[0]}"
        delay_ms = decision.record.deadlines[name].due_at_ms - conversation.now_ms
        least_ms = min(backoff_ms * 2 ** (n - 1), 300_000)
        most_ms = min(least_ms * 1.5, 300_000)
        asked_ms = min(int(retry_after_ms or 0), 86_400_000)
        assert max(least_ms, asked_ms) <= delay_ms <= max(most_ms, asked_ms)
        conversation.due()
    assert conversation.play("failed retryable")[0].endswith("retries_exhausted, boom: no")


@pytest.mark.parametrize("script", REDRIVEN.values(), ids=REDRIVEN)
def test_redriven_command(script: str) -> None:
    """SPEC §4's `retry_command` and §7's redrive: the same id, the next attempt, a new end.

    How SPEC is read where it is silent: a person's attempt counts as one of the four; a flow of
    promos is in progress again while its order or message is, other flows are not.
    """
    assert retell(script) == tidy(script)


def test_a_retried_order_takes_its_run_up_again() -> None:
    """SPEC §8 shows flows: the run that goes on is that of the command, with all that it knew."""
    conversation = Conversation()
    conversation.event("session.started")
    begun = conversation.event("promos.offered", {"conversationId": "c9", "workspaceId": "w9"})
    for step in ("due", "failed", "operator retry_command @1"):
        conversation.play(step)
    assert begun.record
    assert conversation.record
    earlier, now = begun.record.flows["promos"], conversation.record.flows["promos"]
    assert now == replace(earlier, step="ordering", started_at_ms=conversation.now_ms)


def letters(conversation: Conversation) -> list[dict[str, Any]]:
    """The dead letters of the last decision."""
    record = conversation.decisions[-1].record
    assert record
    owed = record.outbox[record.journal_offset]
    return [action["body"] for action in owed if action["type"] == "dead_letter"]


@pytest.mark.parametrize(
    ("steps", "reason", "attempt"),
    [
        (["failed"], "tool_failed", 1),
        (["unknown"], "tool_unknown", 1),
        (["failed retryable", "due"] * 3 + ["failed retryable"], "retries_exhausted", 4),
    ],
)
def test_the_dead_letter_of_a_command(steps: list[str], reason: str, attempt: int) -> None:
    """SPEC §5: `source` is the journal record that decided it, `value` the command as JSON."""
    conversation = Conversation()
    for step in ("session.started", "proactive.send", *steps):
        conversation.play(step)
    (letter,) = letters(conversation)
    at = conversation.journal[-1][1]
    command = orjson.loads(letter.pop("value"))
    assert isinstance(letter.pop("id"), str)
    assert letter == {
        "reason": reason,
        "detail": "boom: no",
        "source": {
            "topic": "session.journal",
            "partition": at.partition,
            "offset": at.offset,
            "timestamp": at.timestamp,
        },
        "key": "s1",
        "encoding": "utf-8",
    }
    assert (command["id"], command["attempt"]) == (conversation.commands[0], attempt)
    assert command["inputs"]["contactId"] == "c1"


def test_the_dead_letter_of_a_result_names_what_came_in() -> None:
    """SPEC §5: an order's success needs `outputs.id`. G1: what lacks it is kept, not dropped.

    A result need not name its tool, so that only the decider can know what it lacks.
    """
    conversation = Conversation()
    for step in ("session.started", "promos.offered", "due"):
        conversation.play(step)
    conversation.result(1, "succeeded", said={"outputs": {"number": 4}})
    (letter,) = letters(conversation)
    assert letter["reason"] == "invalid_schema"
    assert letter["source"]["topic"] == "tool.results"
    assert letter["source"]["offset"] == 0
    assert orjson.loads(letter["value"])["outputs"] == {"number": 4}


def test_a_long_error_is_cut() -> None:
    """G10: a tool's endless error must not make a record that Kafka refuses."""
    conversation = Conversation()
    conversation.play("proactive.send")
    said = {"error": {"code": "c" * 10**6, "message": "m" * 10**6}}
    decision = conversation.result(1, "failed", said=said)
    assert decision
    (letter,) = letters(conversation)
    assert len(letter["detail"]) == 2 * MAX_ERROR_CHARS + len(": ")


def test_only_so_many_failed_commands_are_kept() -> None:
    """STYLE rule 8: failed commands are kept for an operator, the latest of them."""
    conversation = Conversation()
    for _ in range(MAX_FAILED_COMMANDS + 3):
        conversation.play("proactive.send")
        conversation.play("failed")
    assert conversation.record
    assert list(conversation.record.pending) == conversation.commands[3:]
    assert conversation.play("operator retry_command @1") == ["    because no_such_command"]
