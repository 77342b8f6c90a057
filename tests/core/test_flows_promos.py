"""SPEC §4, promos, as transcripts; the language is explained in `transcript.py`."""

from typing import Any

import pytest

from agents_stream.core.actions import IssueCommand
from tests.core.transcript import Conversation, retell, tidy

TRANSCRIPTS = {
    "an offer sets the mode and waits ten minutes": """
        given session.started
        promos.offered
            v2 {"mode": "ofrecer_promos", "ofrecer_promos_at": "now"}
            arms promos.reply +10m
    """,
    "the mode is right already: it and its time stay": """
        given session.started {"mode": "ofrecer_promos"}
        +1m promos.offered
            arms promos.reply +10m
    """,
    "a choice ends the wait; the engine handles it": """
        given session.started; promos.offered
        +599999ms customer.message
            ends promos.reply cancelled
            outcome promos responded/awaiting_selection_processing
        +1m customer.message
            because not_waiting
    """,
    "G5: who chose after the due time, but before the firing, has chosen": """
        given session.started; promos.offered
        +11m customer.message
            ends promos.reply cancelled
            outcome promos responded/awaiting_selection_processing
    """,
    "silence: the order, then the message, then the mode": """
        given session.started; promos.offered
        due
            ends promos.reply fired
            @1 orders for k1
        succeeded {"outputs": {"id": "order-7", "total": 3}}
            v3 {"pack_seleccionado": "1x"}
            @2 tells c1: CREATED
        succeeded
            v4 {"mode": "compra_confirmada"}
            outcome promos timeout/auto_created_order
                with {"orderId": "order-7"}
    """,
    "a numeric order id stays a number": """
        given session.started; promos.offered; due
        given succeeded {"outputs": {"id": 7}}
        succeeded
            v4 {"mode": "compra_confirmada"}
            outcome promos timeout/auto_created_order
                with {"orderId": 7}
    """,
    "G7: the order fails for good, and nobody is told of one": """
        given session.started; promos.offered; due
        failed
            buries @1: tool_failed, boom: no
            outcome promos failed/order_failed
                with {"error": {"code": "boom", "message": "no"}}
        +1m succeeded
            because settled_attempt
    """,
    "G7: nobody knows whether there is an order, so nobody is told of one": """
        given session.started; promos.offered; due
        unknown
            buries @1: tool_unknown, boom: no
            outcome promos failed/order_failed
                with {"error": {"code": "boom", "message": "no"}, "unknown": true}
    """,
    "G7: a success without an order's id is no success; the order stays pending": """
        given session.started; promos.offered; due
        succeeded {"outputs": {}}
            buries @1: invalid_schema, outputs.id is required when an order succeeded
            because invalid_result
        succeeded {"outputs": {"id": ""}}
            buries @1: invalid_schema, outputs.id is required when an order succeeded
            because invalid_result
        succeeded {"outputs": {"id": true}}
            buries @1: invalid_schema, outputs.id is required when an order succeeded
            because invalid_result
        succeeded {"outputs": {"id": "order-8"}}
            v3 {"pack_seleccionado": "1x"}
            @2 tells c1: CREATED
    """,
    "the order is tried four times": """
        given session.started; promos.offered; due
        failed retryable
            arms retry:@1
        due
            ends retry:@1 fired
            @1 orders for k1 (attempt 2)
        failed retryable
            arms retry:@1
        due
            ends retry:@1 fired
            @1 orders for k1 (attempt 3)
        failed retryable
            arms retry:@1
        due
            ends retry:@1 fired
            @1 orders for k1 (attempt 4)
        failed retryable
            buries @1: retries_exhausted, boom: no
            outcome promos failed/order_failed
                with {"error": {"code": "boom", "message": "no"}}
    """,
    "the second attempt creates the order": """
        given session.started; promos.offered; due; failed retryable; due
        succeeded
            v3 {"pack_seleccionado": "1x"}
            @2 tells c1: CREATED
    """,
    "the first attempt succeeded after all, while the second waits: it is told once": """
        given session.started; promos.offered; due; failed retryable
        succeeded attempt=1
            v3 {"pack_seleccionado": "1x"}
            ends retry:@1 cancelled
            @2 tells c1: CREATED
        succeeded attempt=1 @1
            because unknown_command
        succeeded @2
            v4 {"mode": "compra_confirmada"}
            outcome promos timeout/auto_created_order
                with {"orderId": "order-1"}
    """,
    "the first attempt succeeded after all, while the second is under way: it is told once": """
        given session.started; promos.offered; due; failed retryable; due
        succeeded attempt=1
            v3 {"pack_seleccionado": "1x"}
            @2 tells c1: CREATED
        succeeded attempt=2 @1
            because unknown_command
    """,
    "the message fails for good: the order stands, and it is said that nobody was told": """
        given session.started; promos.offered; due; succeeded
        failed
            v4 {"mode": "compra_confirmada"}
            buries @2: tool_failed, boom: no
            outcome promos timeout/auto_created_order
                with {"orderId": "order-1", "notified": false}
    """,
    "the message is tried again, then fails for good": """
        given session.started; promos.offered; due; succeeded
        failed retryable
            arms retry:@2
        due
            ends retry:@2 fired
            @2 tells c1: CREATED (attempt 2)
        failed
            v4 {"mode": "compra_confirmada"}
            buries @2: tool_failed, boom: no
            outcome promos timeout/auto_created_order
                with {"orderId": "order-1", "notified": false}
    """,
    "nobody knows whether the message arrived": """
        given session.started; promos.offered; due; succeeded
        unknown
            v4 {"mode": "compra_confirmada"}
            buries @2: tool_unknown, boom: no
            outcome promos timeout/auto_created_order
                with {"orderId": "order-1", "notified": null, "unknown": true}
    """,
    "without a contact there is no order": """
        given promos.offered
        due
            ends promos.reply fired
            outcome promos failed/contact_unknown
            because contact_unknown
    """,
    "an offer while one waits replaces it": """
        given session.started; promos.offered
        +9m promos.offered {"conversationId": "c2", "workspaceId": "w2"}
            ends promos.reply replaced
            arms promos.reply +10m
            outcome promos cancelled/restarted
        due
            ends promos.reply fired
            @1 orders for k1
        succeeded
            v3 {"pack_seleccionado": "1x"}
            @2 tells c2: CREATED
        succeeded
            v4 {"mode": "compra_confirmada"}
            outcome promos timeout/auto_created_order
                with {"orderId": "order-1", "in": "w2"}
    """,
    "an offer while the order is under way changes nothing": """
        given session.started; promos.offered; due
        promos.offered
            because order_in_progress
        failed retryable
            arms retry:@1
        promos.offered
            because order_in_progress
        due
            ends retry:@1 fired
            @1 orders for k1 (attempt 2)
        succeeded
            v3 {"pack_seleccionado": "1x"}
            @2 tells c1: CREATED
        promos.offered
            because order_in_progress
        succeeded
            v4 {"mode": "compra_confirmada"}
            outcome promos timeout/auto_created_order
                with {"orderId": "order-1"}
        promos.offered
            v5 {"mode": "ofrecer_promos", "ofrecer_promos_at": "now"}
            arms promos.reply +10m
    """,
    "a choice while the order is under way is no answer": """
        given session.started; promos.offered; due
        customer.message
            because not_waiting
    """,
    "one message answers both flows": """
        given session.started; collecting_data.started; promos.offered
        customer.message
            ends data_collection.reply cancelled
            ends promos.reply cancelled
            outcome data_collection responded/awaiting_more_data
            outcome promos responded/awaiting_selection_processing
    """,
    "one message answers both flows, and the data is complete": """
        given session.started; collecting_data.started; promos.offered; data.captured complete
        customer.message
            ends data_collection.reply cancelled
            ends promos.reply cancelled
            arms data_collection.promos +2m
            outcome promos responded/awaiting_selection_processing
    """,
    "a close ends the wait": """
        given session.started; promos.offered
        session.close
            closes completed
            ends promos.reply cancelled
            outcome promos cancelled/session_closed
            outcome session closed/completed
    """,
    "a close while the order is under way; the order then exists, and only the engine is told": """
        given session.started; promos.offered; due
        session.close handoff
            closes handoff
            outcome promos cancelled/session_closed
            outcome session closed/handoff
        succeeded
            outcome promos cancelled/order_created_after_close
                with {"orderId": "order-1"}
            because session_closed
        succeeded @1
            because unknown_command
    """,
    "a close while a retry waits; the first attempt then succeeded after all": """
        given session.started; promos.offered; due; failed retryable
        session.close
            closes completed
            ends retry:@1 cancelled
            outcome promos cancelled/session_closed
            outcome session closed/completed
        succeeded
            outcome promos cancelled/order_created_after_close
                with {"orderId": "order-1"}
            because session_closed
    """,
    "a close while the order is under way; the order then fails": """
        given session.started; promos.offered; due; session.close
        failed
            buries @1: tool_failed, boom: no
            because session_closed
        succeeded
            because unknown_command
    """,
    "a close while the order is under way; its attempt fails, and there is no other": """
        given session.started; promos.offered; due; session.close
        failed retryable
            because session_closed
        succeeded
            because unknown_command
    """,
    "a close while the order is under way; its fate stays unknown": """
        given session.started; promos.offered; due; session.close
        unknown
            buries @1: tool_unknown, boom: no
            because session_closed
    """,
    "a close while the customer is being told: the mode stays": """
        given session.started; promos.offered; due; succeeded
        session.close
            closes completed
            outcome promos cancelled/session_closed
                with {"orderId": "order-1"}
            outcome session closed/completed
        succeeded
            because session_closed
    """,
    "a close of a run that waits tells of no other run's order": """
        given session.started; promos.offered; due; failed; promos.offered
        given operator retry_command @1; succeeded @1
        session.close
            closes completed
            ends promos.reply cancelled
            outcome promos cancelled/session_closed
            outcome session closed/completed
    """,
    "a session opened afresh still says that the order of the one before exists": """
        given session.started; promos.offered; due; session.close; session.started
        promos.offered
            v4 {"mode": "ofrecer_promos", "ofrecer_promos_at": "now"}
            arms promos.reply +10m
        succeeded @1
            outcome promos cancelled/order_created_after_close
                with {"orderId": "order-1"}
            because session_closed
        due
            ends promos.reply fired
            @2 orders for k1
    """,
}


@pytest.mark.parametrize("script", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_transcript(script: str) -> None:
    """SPEC §4, promos, sentence by sentence.

    "While the run's order or message is under way" covers the time in which a retry of either
    waits.
    """
    assert retell(script) == tidy(script)


def issued(conversation: Conversation) -> list[dict[str, Any]]:
    """The commands that went out."""
    return [
        dict(action.command)
        for decision in conversation.decisions
        for action in decision.actions
        if isinstance(action, IssueCommand)
    ]


def test_commands_have_the_shape_of_section_5() -> None:
    """SPEC §4 step 3 and §5: the order's inputs, and who asks for it when.

    A command belongs to the workspace and the conversation of the event that started its flow.
    """
    conversation = Conversation()
    conversation.event("session.started", {"contactId": "k9"})
    conversation.event("promos.offered", {"conversationId": "c9", "workspaceId": "w9"})
    conversation.due()
    fired = conversation.journal[-1][1]
    conversation.now_ms += 17
    conversation.result(1, "succeeded")
    order, message = issued(conversation)
    assert order == {
        "id": conversation.commands[0],
        "tool": "crm.order.create",
        "workspaceId": "w9",
        "sessionId": "s1",
        "attempt": 1,
        "issuedAt": fired.timestamp,
        "asOf": fired.offset,
        "inputs": {
            "contact_id": "k9",
            "products": [{"product_id": "default-pack-1x", "quantity": 1}],
            "notes": "Auto-created after 10 min timeout. Pack: 1x",
        },
    }
    assert message == {
        "id": conversation.commands[1],
        "tool": "whatsapp.message.send",
        "workspaceId": "w9",
        "sessionId": "s1",
        "attempt": 1,
        "issuedAt": conversation.now_ms,
        "asOf": fired.offset + 1,
        "inputs": {
            "contactId": "c9",
            "message": "He creado tu pedido con el Pack 1x. Un asesor se pondra en contacto "
            "contigo pronto para confirmar los detalles.",
        },
    }
