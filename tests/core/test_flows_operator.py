"""SPEC §4, operator, as transcripts; the language is explained in `transcript.py`."""

import pytest

from agents_stream.core.actions import IssueCommand
from tests.core.transcript import Conversation, retell, tidy

TRANSCRIPTS = {
    "a timer is cancelled, and what waited for it ends": """
        given session.started; collecting_data.started
        operator cancel_timer data_collection.reply
            ends data_collection.reply cancelled
            outcome data_collection cancelled/timer_cancelled
        customer.message
            because not_waiting
    """,
    "the timer before the packs is cancelled": """
        given session.started; data.captured complete; collecting_data.started; customer.message
        operator cancel_timer data_collection.promos
            ends data_collection.promos cancelled
            outcome data_collection cancelled/timer_cancelled
    """,
    "the timer of the choice is cancelled": """
        given session.started; promos.offered
        operator cancel_timer promos.reply
            ends promos.reply cancelled
            outcome promos cancelled/timer_cancelled
    """,
    "the retry of a message is cancelled: it has failed for good": """
        given session.started; proactive.send; failed retryable
        operator cancel_timer retry:@1
            ends retry:@1 cancelled
            buries @1: tool_failed, retry_cancelled: by olga
            outcome proactive failed/reminder
                with {"error": {"code": "retry_cancelled", "message": "by olga"}}
    """,
    "the retry of a request for data is cancelled: it has failed for good": """
        given session.started; collecting_data.started; due; failed retryable
        operator cancel_timer retry:@1
            ends retry:@1 cancelled
            buries @1: tool_failed, retry_cancelled: by olga
            outcome data_collection failed/sent_pending_message
                with {"error": {"code": "retry_cancelled", "message": "by olga"}}
    """,
    "the retry of an order is cancelled: it has failed for good": """
        given session.started; promos.offered; due; failed retryable
        operator cancel_timer retry:@1
            ends retry:@1 cancelled
            buries @1: tool_failed, retry_cancelled: by olga
            outcome promos failed/order_failed
                with {"error": {"code": "retry_cancelled", "message": "by olga"}}
    """,
    "the retry of the message about an order is cancelled: the order stands": """
        given session.started; promos.offered; due; succeeded; failed retryable
        operator cancel_timer retry:@2
            v4 {"mode": "compra_confirmada"}
            ends retry:@2 cancelled
            buries @2: tool_failed, retry_cancelled: by olga
            outcome promos timeout/auto_created_order
                with {"orderId": "order-1", "notified": false}
    """,
    "a timer is fired long before its time": """
        given session.started; collecting_data.started
        +1s operator fire_timer data_collection.reply
            ends data_collection.reply fired
            @1 tells c1: PENDING
        succeeded
            outcome data_collection timeout/sent_pending_message
    """,
    "the timer before the packs is fired; two minutes were not over": """
        given session.started; data.captured complete; collecting_data.started; customer.message
        operator fire_timer data_collection.promos
            v4 {"mode": "ofrecer_promos", "ofrecer_promos_at": "now"}
            ends data_collection.promos fired
            publishes agent/promos.offered for c1: 1x, 2x, 3x
            outcome data_collection complete/transitioned_to_promos
    """,
    "the timer of the choice is fired": """
        given session.started; promos.offered
        operator fire_timer promos.reply
            ends promos.reply fired
            @1 orders for k1
    """,
    "a retry is fired": """
        given session.started; promos.offered; due; failed retryable
        operator fire_timer retry:@1
            ends retry:@1 fired
            @1 orders for k1 (attempt 2)
    """,
    "no such timer": """
        given session.started
        operator cancel_timer promos.reply
            because no_such_deadline
        operator fire_timer promos.reply
            because no_such_deadline
        operator fire_timer nonsense
            because no_such_deadline
        operator cancel_timer
            because no_such_deadline
    """,
    "while paused events are applied, deadlines wait": """
        given session.started; collecting_data.started; promos.offered
        +1m operator pause
            pauses
        data.captured {"nombre": "Ana"}
            v4 {"datos_capturados": {"nombre": "Ana"}}
        due data_collection.reply
            because paused
        due promos.reply
            because paused
        customer.message
            ends data_collection.reply cancelled
            ends promos.reply cancelled
            outcome data_collection responded/awaiting_more_data
            outcome promos responded/awaiting_selection_processing
    """,
    "while paused commands wait, and go out at the resume as they were decided": """
        given session.started
        operator pause
            pauses
        proactive.send reminder
            holds @1
            because paused
        +1m proactive.send followup
            holds @2
            because paused
        +1m operator resume
            resumes
            @1 tells c1: REMINDER
            @2 tells c1: FOLLOWUP
        succeeded @1
            outcome proactive sent/reminder
        succeeded @2
            outcome proactive sent/followup
    """,
    "at the resume what is due runs at once, in the order of its time; the rest waits": """
        given session.started; promos.offered; collecting_data.started
        operator pause
            pauses
        +5m collecting_data.started
            v4 {"proactive_started_at": "now"}
            ends data_collection.reply cancelled
            arms data_collection.reply +6m
            outcome data_collection cancelled/restarted
        +330s operator resume
            resumes
            ends promos.reply fired
            @1 orders for k1
        due
            ends data_collection.reply fired
            @2 tells c1: PENDING
        operator pause
            pauses
        +20m operator resume
            resumes
    """,
    "at the resume what is due in that millisecond runs": """
        given session.started; collecting_data.started; operator pause
        +6m operator resume
            resumes
            ends data_collection.reply fired
            @1 tells c1: PENDING
    """,
    "G4: a resume of what is not paused fires nothing": """
        given session.started; collecting_data.started
        +7m operator resume
            because not_paused
    """,
    "at the resume two are due at once": """
        given session.started; promos.offered; +4m collecting_data.started; operator pause
        +1h operator resume
            resumes
            ends data_collection.reply fired
            ends promos.reply fired
            @1 tells c1: PENDING
            @2 orders for k1
    """,
    "at the resume the packs are offered and the order is made, each as its time was": """
        given session.started; data.captured complete; collecting_data.started; customer.message
        given promos.offered; operator pause
        +20m operator resume
            resumes
            v5 {"ofrecer_promos_at": "now"}
            ends data_collection.promos fired
            ends promos.reply fired
            publishes agent/promos.offered for c1: 1x, 2x, 3x
            outcome data_collection complete/transitioned_to_promos
            @1 orders for k1
    """,
    "at the resume nothing is due yet": """
        given session.started; collecting_data.started; operator pause
        +5m operator resume
            resumes
        due
            ends data_collection.reply fired
            @1 tells c1: PENDING
    """,
    "a deadline that the wheel had published before the resume is stale": """
        given session.started; collecting_data.started; operator pause
        due
            because paused
        +1m operator resume
            resumes
            ends data_collection.reply fired
            @1 tells c1: PENDING
        again 2
            because duplicate
            because duplicate
    """,
    "a retry waits while paused": """
        given session.started; proactive.send; failed retryable; operator pause
        due
            because paused
        +1m operator resume
            resumes
            ends retry:@1 fired
            @1 tells c1: REMINDER (attempt 2)
    """,
    "an order succeeds while paused: the customer is told at the resume": """
        given session.started; promos.offered; due; operator pause
        succeeded
            v3 {"pack_seleccionado": "1x"}
            holds @2
            because paused
        +1m operator resume
            resumes
            @2 tells c1: CREATED
        succeeded
            v4 {"mode": "compra_confirmada"}
            outcome promos timeout/auto_created_order
                with {"orderId": "order-1"}
    """,
    "a timer that is fired while paused decides, and its command waits": """
        given session.started; promos.offered; operator pause
        operator fire_timer promos.reply
            ends promos.reply fired
            holds @1
            because paused
        succeeded @1
            because unknown_attempt
        operator resume
            resumes
            @1 orders for k1
        succeeded @1
            v3 {"pack_seleccionado": "1x"}
            @2 tells c1: CREATED
    """,
    "an attempt that waits has no result; the one before may still succeed": """
        given session.started; promos.offered; due; failed retryable; operator pause
        operator fire_timer retry:@1
            ends retry:@1 fired
            holds @1
            because paused
        failed @1 attempt=1
            because settled_attempt
        succeeded @1 attempt=2
            because unknown_attempt
        succeeded @1 attempt=1
            v3 {"pack_seleccionado": "1x"}
            holds @2
            because paused
    """,
    "paused twice, resumed twice": """
        given session.started
        operator pause
            pauses
        operator pause
            because paused
        operator resume
            resumes
        operator resume
            because not_paused
    """,
    "a close while paused drops what never went out": """
        given session.started; operator pause; proactive.send
        session.close
            closes completed
            resumes
            outcome proactive cancelled/session_closed
            outcome session closed/completed
        session.started
            opens
        proactive.send
            @2 tells c1: REMINDER
    """,
    "a close while the second attempt of an order waits: the first may have created it": """
        given session.started; promos.offered; due; failed retryable; operator pause
        given operator fire_timer retry:@1
        session.close
            closes completed
            resumes
            outcome promos cancelled/session_closed
            outcome session closed/completed
        succeeded @1 attempt=2
            because unknown_attempt
        succeeded @1 attempt=1
            outcome promos cancelled/order_created_after_close
                with {"orderId": "order-1"}
            because session_closed
    """,
}


@pytest.mark.parametrize("script", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_transcript(script: str) -> None:
    """SPEC §4, operator, sentence by sentence; `retry_command` is in `test_flows_tools.py`.

    How SPEC is read where it is silent: a timer that is cancelled ends what waited for it, so
    that no flow is left without a way on (`cancelled`/`timer_cancelled`; a cancelled retry is a
    failure for good); `fire_timer` works while the session is paused, its commands wait; a held
    command goes out with the time and offset of the decision that asked for it.
    """
    assert retell(script) == tidy(script)


def test_a_held_command_goes_out_as_it_was_decided() -> None:
    """SPEC §5: `issuedAt` is the causing event's time, `asOf` what its decision saw."""
    conversation = Conversation()
    for step in ("session.started", "operator pause", "proactive.send", "+1h operator resume"):
        conversation.play(step)
    decided = conversation.journal[2][1].offset
    (action,) = conversation.decisions[-1].actions
    assert isinstance(action, IssueCommand)
    assert action.command["asOf"] == decided
    assert action.command["issuedAt"] == conversation.now_ms - 3_600_000
