"""SPEC §3 and §4's session, as transcripts; the language is explained in `transcript.py`."""

from dataclasses import replace

import pytest

from agents_stream.core.actions import PublishOutcome
from agents_stream.core.decider import apply
from agents_stream.core.journal import Durations, Entry, Position, Source
from agents_stream.core.session import MAX_RECORD_BYTES, content_size
from tests.core.transcript import Conversation, retell, tidy

TRANSCRIPTS = {
    "a session starts with version 1, an empty state and who takes part": """
        session.started
            opens
            knows {"workspaceId": "w1", "agentId": "a1", "conversationId": "c1", "contactId": "k1"}
            v1 {"mode": "welcome"}
    """,
    "a second start of an open session changes nothing": """
        given session.started
        session.started {"mode": "other", "contactId": "k2", "conversationId": "c2"}
            because already_started
    """,
    "a message opens a session with what it tells": """
        customer.message {"conversationId": "c5"}
            opens
            knows {"conversationId": "c5"}
            because not_waiting
    """,
    "captured data opens a session": """
        data.captured {"nombre": "Ana"}
            opens
            v2 {"datos_capturados": {"nombre": "Ana"}}
    """,
    "an update opens a session": """
        session.updated {"mode": "m"}
            opens
            v2 {"mode": "m"}
    """,
    "an operator opens a session": """
        operator pause
            opens
            pauses
    """,
    "a close opens a session and closes it": """
        session.close timeout
            opens
            closes timeout
            outcome session closed/timeout
                with {"in": null}
        session.started
            opens
            knows {"workspaceId": "w1", "agentId": "a1", "conversationId": "c1", "contactId": "k1"}
            v2 {"mode": "welcome"}
    """,
    "extra fields tell nothing": """
        customer.message {"workspaceId": "w5", "contactId": "k5", "mode": "m"}
            opens
            knows {"conversationId": "c1"}
            because not_waiting
        data.captured {"nombre": "Ana"}
            v2 {"datos_capturados": {"nombre": "Ana"}}
        session.updated {"mode": "m", "conversationId": "c6", "workspaceId": ""}
            v3 {"mode": "m"}
    """,
    "the first start fills in what is null, the mode too": """
        given customer.message {"conversationId": "c5"}
        session.started
            knows {"workspaceId": "w1", "agentId": "a1", "contactId": "k1"}
            v2 {"mode": "welcome"}
        session.started
            because already_started
    """,
    "the first start leaves a mode that an event has set": """
        given collecting_data.started {"conversationId": "c5", "workspaceId": "w5"}
        session.started
            knows {"agentId": "a1", "contactId": "k1"}
    """,
    "the first start leaves a mode that an update has set": """
        given session.updated {"mode": "m"}
        session.started {"mode": "other"}
            knows {"workspaceId": "w1", "agentId": "a1", "conversationId": "c1", "contactId": "k1"}
    """,
    "later events fill in workspace and conversation once and never change them": """
        given data.captured {"nombre": "Ana"}
        customer.message {"conversationId": "c5"}
            knows {"conversationId": "c5"}
            because not_waiting
        promos.offered {"conversationId": "c6", "workspaceId": "w6"}
            knows {"workspaceId": "w6"}
            v3 {"mode": "ofrecer_promos", "ofrecer_promos_at": "now"}
            arms promos.reply +10m
        proactive.send {"conversationId": "c7", "workspaceId": "w7"}
            @1 tells c7: REMINDER
    """,
    "captured fields are merged; null and empty are kept": """
        given session.started; data.captured {"nombre": "Ana", "ciudad": "Cali", "edad": "3"}
        data.captured {"nombre": null, "ciudad": "", "color": "azul"}
            v3 {"datos_capturados": {"nombre": null, "ciudad": "", "color": "azul"}}
    """,
    "the same data again changes nothing, and the version stays": """
        given session.started; data.captured {"nombre": "Ana", "ciudad": "Cali"}
        data.captured {"ciudad": "Cali"}
            because nothing_changed
        data.captured {}
            because nothing_changed
    """,
    "an update merges at the top level only": """
        given session.started; data.captured {"nombre": "Ana"}
        session.updated {"state": {"nota": {"a": 1}, "pack_seleccionado": "2x"}}
            v3 {"pack_seleccionado": "2x", "nota": {"a": 1}}
        session.updated {"state": {"nota": {"b": 2}, "datos_capturados": {"ciudad": "Cali"}}}
            v4 {"datos_capturados": {"ciudad": "Cali"}, "nota": {"b": 2}}
    """,
    "an update of the mode alone, of the state alone, of both, of nothing": """
        given session.started
        session.updated {"mode": "vender"}
            v2 {"mode": "vender"}
        session.updated {"state": {"a": 1}}
            v3 {"a": 1}
        session.updated {"mode": "cerrar", "state": {"a": 2}}
            v4 {"mode": "cerrar", "a": 2}
        session.updated {"mode": "cerrar", "state": {"a": 2}}
            because nothing_changed
        session.updated {"mode": null, "state": null}
            because nothing_changed
        session.updated
            because nothing_changed
    """,
    "true is not 1, and the order of keys is no difference": """
        given session.started; session.updated {"state": {"a": 1, "b": {"x": 1, "y": 2}}}
        session.updated {"state": {"b": {"y": 2, "x": 1}, "a": 1}}
            v2 {"b": {}}
            because nothing_changed
        session.updated {"state": {"a": true}}
            v3 {"a": true}
    """,
    "the expected version lets an update in": """
        given session.started; session.updated {"mode": "m"}
        session.updated {"expectedVersion": 2, "mode": "n"}
            v3 {"mode": "n"}
    """,
    "another expected version changes nothing": """
        given session.started; session.updated {"mode": "m"}
        session.updated {"expectedVersion": 1, "mode": "n"}
            outcome session rejected/version_conflict
            because version_conflict
        session.updated {"expectedVersion": 3, "state": {"a": 1}}
            outcome session rejected/version_conflict
            because version_conflict
        session.updated {"expectedVersion": 0}
            outcome session rejected/version_conflict
            because version_conflict
    """,
    "a session that nobody started has version 1": """
        session.updated {"expectedVersion": 2, "mode": "m"}
            opens
            outcome session rejected/version_conflict
                with {"in": null}
            because version_conflict
        session.updated {"expectedVersion": 1, "mode": "m"}
            v2 {"mode": "m"}
    """,
    "a close cancels every deadline and pending retry, ends each flow, then says so": """
        given session.started; collecting_data.started; promos.offered
        given proactive.send; failed retryable
        session.close cancelled
            closes cancelled
            ends data_collection.reply cancelled
            ends promos.reply cancelled
            ends retry:@1 cancelled
            outcome data_collection cancelled/session_closed
            outcome promos cancelled/session_closed
            outcome proactive cancelled/session_closed
            outcome session closed/cancelled
    """,
    "a close tells of the order that exists already": """
        given session.started; promos.offered; due; succeeded {"outputs": {"id": "order-5"}}
        session.close
            closes completed
            outcome promos cancelled/session_closed
                with {"orderId": "order-5"}
            outcome session closed/completed
    """,
    "a close forgets what failed for good": """
        given session.started; promos.offered; due; failed
        session.close
            closes completed
            outcome session closed/completed
        succeeded
            because unknown_command
    """,
    "a closed session takes nothing but a start": """
        given session.started; session.close
        customer.message {"conversationId": "c2"}
            because session_closed
        data.captured {"nombre": "Ana"}
            because session_closed
        session.updated {"expectedVersion": 9}
            because session_closed
        collecting_data.started
            because session_closed
        promos.offered
            because session_closed
        proactive.send
            because session_closed
        session.close timeout
            because session_closed
        operator resume
            because session_closed
    """,
    "a start opens a closed session afresh; the version goes on": """
        given session.started; session.updated {"mode": "m", "state": {"nota": 1}}; session.close
        session.started {"contactId": "k2", "mode": "n"}
            opens
            knows {"contactId": "k2"}
            v3 {"mode": "n"}
        session.updated {"expectedVersion": 3, "mode": "m"}
            v4 {"mode": "m"}
    """,
    "a session opened afresh has no flow, no deadline and no pause of the one before": """
        given session.started; collecting_data.started; due; operator pause; session.close
        given session.started
        customer.message
            because not_waiting
        proactive.send
            @2 tells c1: REMINDER
        succeeded @1
            because unknown_command
    """,
    "a session opened afresh as it was keeps its version": """
        given session.started; session.close
        session.started {"contactId": "k2"}
            opens
            knows {"contactId": "k2"}
    """,
    "ids of events are remembered through close and reopening": """
        given session.started id=a; session.close id=b
        session.started id=c
            opens
        session.started id=a
            because duplicate
        session.close id=b
            because duplicate
        session.started id=c
            because duplicate
    """,
}


@pytest.mark.parametrize("script", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_transcript(script: str) -> None:
    """SPEC §3 and the session of §4, sentence by sentence.

    How SPEC is read where it is silent: an operator's action and a close open a session as any
    event does; a rejected event that opens a session leaves an empty one, which remembers it as
    applied; only `session.started` opens with version 1, other events that change mode or state
    raise it at once; a session opened afresh has the next version only if mode or state differ.
    """
    assert retell(script) == tidy(script)


def grown(size: int) -> Conversation:
    """A session whose record has `size` bytes, as SPEC §3 counts them."""
    conversation = Conversation()
    record = conversation.event("session.started").record
    assert record
    filling = "y" * (size - content_size(record) - len(',"x":""'))
    record = conversation.event("session.updated", {"state": {"x": filling}}).record
    assert record
    assert content_size(record) == size
    return conversation


def test_a_record_of_the_limit_is_accepted_and_not_a_byte_more() -> None:
    """SPEC §3: what would make the record larger than 256 KiB changes nothing and says so."""
    full = grown(MAX_RECORD_BYTES)
    assert full.play('session.updated {"state": {"y": 1}}') == [
        "    outcome session rejected/state_too_large",
        "    because state_too_large",
    ]
    assert full.record
    assert "y" not in full.record.state
    assert full.record.version == 2


def test_a_full_session_is_not_locked_in() -> None:
    """A full record still takes what makes it smaller or changes nothing, a pause and a close."""
    full = grown(MAX_RECORD_BYTES)
    assert full.play("customer.message") == ["    because not_waiting"]
    assert full.play("operator pause") == ["    pauses"]
    assert full.play("operator resume") == ["    resumes"]
    assert full.play("session.close completed")[0] == "    closes completed"
    smaller = grown(MAX_RECORD_BYTES)
    assert smaller.play('session.updated {"state": {"x": 0}}') == ['    v3 {"x": 0}']


def test_a_rejected_event_ends_no_deadline_and_counts_as_applied() -> None:
    """SPEC §3 and G3: the whole event is rejected, what it would have cancelled stands."""
    full = grown(MAX_RECORD_BYTES - 400)
    full.event("collecting_data.started")
    large = {"state": {"y": "z" * 400}}
    for expected in ("state_too_large", "duplicate"):
        assert full.event("session.updated", large, "the-id").reasons == (expected,)
    assert full.record
    assert list(full.record.deadlines) == ["data_collection.reply"]


def test_an_event_that_is_too_large_opens_no_session() -> None:
    """SPEC §3: it changes nothing. A later start is the first event, with version 1."""
    conversation = Conversation()
    decision = conversation.event("session.updated", {"state": {"x": "y" * MAX_RECORD_BYTES}})
    assert decision.record is None
    assert decision.reasons == ("state_too_large",)
    (action,) = decision.actions
    assert isinstance(action, PublishOutcome)
    assert action.outcome["action"] == "state_too_large"
    record = conversation.event("session.started").record
    assert record
    assert (record.version, record.started) == (1, True)


def test_a_rejected_opening_has_one_id_wherever_it_stands() -> None:
    """G6: nothing remembers its record, so ingress may append it twice. Older rules keep theirs."""
    data = {"sessionId": "s1", "state": {"x": "y" * MAX_RECORD_BYTES}}
    source = Source("agent.session.updated", 0, 7, 1_000, keyed=True)
    one = Entry("event", "agent/session.updated", "s1", data, source, Durations())
    told = [apply(None, one, Position("j", 0, offset, 2_000)) for offset in (3, 9)]
    assert told[0] == told[1]
    other = replace(one, source=replace(source, topic="agent.data.captured"))
    assert apply(None, other, Position("j", 0, 3, 2_000)).actions != told[0].actions
    old = apply(None, replace(one, rules=1), Position("j", 0, 3, 2_000)).record
    assert old
    assert (old.status, old.version) == ("open", 1)


def test_results_and_deadlines_are_not_limited() -> None:
    """SPEC §3 limits events: what a full session has asked for goes on to its end."""
    full = grown(MAX_RECORD_BYTES - 400)
    full.event("promos.offered")
    assert full.play("due")[-1] == "    @1 orders for k1"
    assert full.play("succeeded")[-1] == "    @2 tells c1: CREATED"
    assert full.record
    assert content_size(full.record) > MAX_RECORD_BYTES
    as_large = {"state": {"x": full.record.state["x"].replace("y", "z")}}
    assert full.event("session.updated", as_large).reasons == ()
    assert full.play("succeeded")[-1] == '        with {"orderId": "order-1"}'
