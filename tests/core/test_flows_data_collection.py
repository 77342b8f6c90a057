"""SPEC §4, data_collection, as transcripts; the language is explained in `transcript.py`."""

import pytest

from agents_stream.core.journal import Durations
from agents_stream.core.session import iso
from tests.core.transcript import JOURNAL_LAG_MS, START_MS, Conversation, retell, tidy

TRANSCRIPTS = {
    "silence, nothing known: one message, and the outcome comes with its result": """
        given session.started
        collecting_data.started
            v2 {"mode": "collecting_data", "proactive_started_at": "now"}
            arms data_collection.reply +6m
        due
            ends data_collection.reply fired
            @1 tells c1: PENDING
        succeeded
            outcome data_collection timeout/sent_pending_message
    """,
    "silence, some data: null and empty count as missing, in the order of SPEC §3": """
        given session.started; collecting_data.started
        given data.captured {"direccion": "", "apellido": "Paz", "ciudad": null, "nombre": "Ana"}
        due
            ends data_collection.reply fired
            @1 tells c1: MISSING telefono, ciudad, direccion
        succeeded
            outcome data_collection timeout/requested_missing_data
                with {"missing": ["telefono", "ciudad", "direccion"]}
    """,
    "any data is one key of whatever worth": """
        given session.started; collecting_data.started; data.captured {"color": null}
        due
            ends data_collection.reply fired
            @1 tells c1: MISSING nombre, telefono, ciudad, direccion
    """,
    "silence, all data: two minutes from the firing, then the packs": """
        given session.started; collecting_data.started; data.captured complete
        due
            ends data_collection.reply fired
            arms data_collection.promos +2m
        due
            v4 {"mode": "ofrecer_promos", "ofrecer_promos_at": "now"}
            ends data_collection.promos fired
            publishes agent/promos.offered for c1: 1x, 2x, 3x
            outcome data_collection complete/transitioned_to_promos
    """,
    "an answer ends the wait; the engine goes on": """
        given session.started; collecting_data.started; data.captured {"nombre": "Ana"}
        +359999ms customer.message
            ends data_collection.reply cancelled
            outcome data_collection responded/awaiting_more_data
        +1m customer.message
            because not_waiting
    """,
    "an answer with all data: two minutes from the answer, whatever is said or lost meanwhile": """
        given session.started; collecting_data.started; data.captured complete
        +1m customer.message
            ends data_collection.reply cancelled
            arms data_collection.promos +2m
        +90s customer.message
            because not_waiting
        data.captured {"nombre": ""}
            v4 {"datos_capturados": {"nombre": ""}}
        due
            v5 {"mode": "ofrecer_promos", "ofrecer_promos_at": "now"}
            ends data_collection.promos fired
            publishes agent/promos.offered for c1: 1x, 2x, 3x
            outcome data_collection complete/transitioned_to_promos
    """,
    "G5: who wrote after the due time, but before the firing, has answered": """
        given session.started; collecting_data.started
        +7m customer.message
            ends data_collection.reply cancelled
            outcome data_collection responded/awaiting_more_data
    """,
    "data that came before the wait is not lost, a message before it starts nothing": """
        given session.started
        customer.message
            because not_waiting
        data.captured {"nombre": "Ana", "telefono": "300", "ciudad": "Cali"}
            v2 {"datos_capturados": {"nombre": "Ana", "telefono": "300", "ciudad": "Cali"}}
        data.captured {"direccion": "Calle 1"}
            v3 {"datos_capturados": {"direccion": "Calle 1"}}
        collecting_data.started
            v4 {"mode": "collecting_data", "proactive_started_at": "now"}
            arms data_collection.reply +6m
        due
            ends data_collection.reply fired
            arms data_collection.promos +2m
    """,
    "a second start replaces the first, which waits for an answer": """
        given session.started; collecting_data.started
        +5m collecting_data.started {"conversationId": "c2", "workspaceId": "w2"}
            v3 {"proactive_started_at": "now"}
            ends data_collection.reply cancelled
            arms data_collection.reply +6m
            outcome data_collection cancelled/restarted
        due
            ends data_collection.reply fired
            @1 tells c2: PENDING
        succeeded
            outcome data_collection timeout/sent_pending_message
                with {"in": "w2"}
    """,
    "a second start replaces the first, which waits for the packs": """
        given session.started; data.captured complete; collecting_data.started; customer.message
        +1m collecting_data.started
            v4 {"proactive_started_at": "now"}
            ends data_collection.promos cancelled
            arms data_collection.reply +6m
            outcome data_collection cancelled/restarted
        due
            ends data_collection.reply fired
            arms data_collection.promos +2m
    """,
    "a second start replaces the first, whose message is under way; its result ends nothing": """
        given session.started; collecting_data.started; due
        collecting_data.started
            v3 {"proactive_started_at": "now"}
            arms data_collection.reply +6m
            outcome data_collection cancelled/restarted
        succeeded
            because run_ended
        customer.message
            ends data_collection.reply cancelled
            outcome data_collection responded/awaiting_more_data
    """,
    "a message of an earlier run that fails for good is in the dead letters only": """
        given session.started; collecting_data.started; due; collecting_data.started
        failed
            buries @1: tool_failed, boom: no
            because run_ended
        due
            ends data_collection.reply fired
            @2 tells c1: PENDING
    """,
    "a message while ours is under way is no answer to it": """
        given session.started; collecting_data.started; due
        customer.message
            because not_waiting
        succeeded
            outcome data_collection timeout/sent_pending_message
    """,
    "the message fails for good": """
        given session.started; collecting_data.started; due
        failed
            buries @1: tool_failed, boom: no
            outcome data_collection failed/sent_pending_message
                with {"error": {"code": "boom", "message": "no"}}
    """,
    "the request for data fails for good: missing and error are both told": """
        given session.started; data.captured complete; data.captured {"ciudad": ""}
        given collecting_data.started; due
        failed
            buries @1: tool_failed, boom: no
            outcome data_collection failed/requested_missing_data
                with {"missing": ["ciudad"], "error": {"code": "boom", "message": "no"}}
    """,
    "nobody knows whether the message arrived: it is not sent again": """
        given session.started; collecting_data.started; due
        unknown
            buries @1: tool_unknown, boom: no
            outcome data_collection failed/sent_pending_message
                with {"error": {"code": "boom", "message": "no"}, "unknown": true}
        succeeded
            because settled_attempt
    """,
    "the message is tried again, and the outcome is that of the last attempt": """
        given session.started; collecting_data.started; due
        failed retryable
            arms retry:@1
        due
            ends retry:@1 fired
            @1 tells c1: PENDING (attempt 2)
        succeeded
            outcome data_collection timeout/sent_pending_message
    """,
    "our own offer comes in: the mode is right already, the wait for the choice begins": """
        given session.started; data.captured complete; collecting_data.started; customer.message
        due
            v4 {"mode": "ofrecer_promos", "ofrecer_promos_at": "now"}
            ends data_collection.promos fired
            publishes agent/promos.offered for c1: 1x, 2x, 3x
            outcome data_collection complete/transitioned_to_promos
        own
            arms promos.reply +10m
        own
            because duplicate
    """,
    "our own offer comes in late and twice, after the close": """
        given session.started; data.captured complete; collecting_data.started; customer.message
        given due; session.close
        own
            because session_closed
        own
            because stale_event
    """,
    "our own offer was published before the session was opened afresh": """
        given session.started; data.captured complete; collecting_data.started; customer.message
        given due; session.close; session.started
        own
            because stale_event
    """,
    "an engine that offers before the two minutes are over: our own offer starts the wait anew": """
        given session.started; data.captured complete; collecting_data.started; customer.message
        +1m promos.offered
            v4 {"mode": "ofrecer_promos", "ofrecer_promos_at": "now"}
            arms promos.reply +10m
        due data_collection.promos
            v5 {"ofrecer_promos_at": "now"}
            ends data_collection.promos fired
            publishes agent/promos.offered for c1: 1x, 2x, 3x
            outcome data_collection complete/transitioned_to_promos
        own
            ends promos.reply replaced
            arms promos.reply +10m
            outcome promos cancelled/restarted
    """,
    "a close ends the run that waits for an answer": """
        given session.started; collecting_data.started
        session.close
            closes completed
            ends data_collection.reply cancelled
            outcome data_collection cancelled/session_closed
            outcome session closed/completed
    """,
    "a close ends the run that waits for the packs": """
        given session.started; data.captured complete; collecting_data.started; customer.message
        session.close
            closes completed
            ends data_collection.promos cancelled
            outcome data_collection cancelled/session_closed
            outcome session closed/completed
    """,
    "a close ends the run whose message is under way; its result starts nothing": """
        given session.started; collecting_data.started; due
        session.close
            closes completed
            outcome data_collection cancelled/session_closed
            outcome session closed/completed
        succeeded
            because session_closed
    """,
    "the start of a session that nobody started opens it": """
        collecting_data.started
            opens
            knows {"workspaceId": "w1", "conversationId": "c1"}
            v2 {"mode": "collecting_data", "proactive_started_at": "now"}
            arms data_collection.reply +6m
        session.started
            knows {"agentId": "a1", "contactId": "k1"}
        due
            ends data_collection.reply fired
            @1 tells c1: PENDING
    """,
}


@pytest.mark.parametrize("script", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_transcript(script: str) -> None:
    """SPEC §4, data_collection, sentence by sentence."""
    assert retell(script) == tidy(script)


def test_now_is_the_time_of_the_event_in_hand() -> None:
    """A message's two minutes count from its record, a deadline's from its journal record."""
    answered, silent = Conversation(), Conversation()
    for conversation in (answered, silent):
        conversation.event("collecting_data.started")
        conversation.play("data.captured complete")
    answered.now_ms += 10
    answered.event("customer.message")
    silent.due()
    dues = [
        conversation.record.deadlines["data_collection.promos"].due_at_ms
        for conversation in (answered, silent)
        if conversation.record
    ]
    fired_at_ms = START_MS + 360_000 + 1
    assert dues == [START_MS + 10 + 120_000, fired_at_ms + JOURNAL_LAG_MS + 120_000]


def test_durations_are_those_of_the_entry() -> None:
    """G8: each entry carries the settings that its decision depends on."""
    conversation = Conversation(Durations(data_reply_ms=7, promos_delay_ms=11))
    conversation.event("collecting_data.started")
    conversation.play("data.captured complete")
    assert conversation.play("due") == [
        "    ends data_collection.reply fired",
        "    arms data_collection.promos +11ms",
    ]
    assert conversation.now_ms == START_MS + 7 + 1


def test_times_in_the_state_are_iso_8601() -> None:
    """SPEC §3: `proactive_started_at` is ISO 8601 in UTC with milliseconds."""
    conversation = Conversation()
    conversation.now_ms += 42
    record = conversation.event("collecting_data.started").record
    assert record
    assert record.state["proactive_started_at"] == "2023-11-14T22:13:20.042Z" == iso(START_MS + 42)


def test_the_offer_is_an_envelope_for_the_partition_of_the_session() -> None:
    """SPEC §4 step 4: an envelope with an id, published where the session's events arrive."""
    conversation = Conversation()
    conversation.event("collecting_data.started", {"conversationId": "c7", "workspaceId": "w7"})
    for step in ("data.captured complete", "customer.message", "due"):
        conversation.play(step)
    (offer,) = conversation.published()
    own_id = offer.envelope["id"]
    assert offer.partition == 3
    assert own_id.startswith("agents-stream:")
    assert offer.envelope == {
        "name": "agent/promos.offered",
        "data": {
            "sessionId": "s1",
            "conversationId": "c7",
            "workspaceId": "w7",
            "packOptions": ["1x", "2x", "3x"],
        },
        "id": own_id,
        "ts": conversation.journal[-1][1].timestamp,
    }
