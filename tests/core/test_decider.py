"""The bookkeeping around a decision: what counts, what counts once, and what cannot be decided."""

from collections.abc import Iterator
from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_stream.core import decider
from agents_stream.core import instructions as do
from agents_stream.core.actions import BuryDeadLetter
from agents_stream.core.decider import Decision, apply
from agents_stream.core.events import EVENTS
from agents_stream.core.journal import Durations, Entry, EntryKind, Position, Source, decode_entry
from agents_stream.core.reasons import Reason
from agents_stream.core.session import (
    MAX_OWN_EVENTS,
    MAX_RECENT_IDS,
    SessionRecord,
    encode_record,
    journal_position,
)
from tests.core.transcript import Conversation, decide, retell, substance, tidy

TRANSCRIPTS = {
    "G2: what ingress appends twice is applied once": """
        given session.started; data.captured complete; collecting_data.started
        customer.message
            ends data_collection.reply cancelled
            arms data_collection.promos +2m
        again 1
            because duplicate
        again 4
            because duplicate
            because duplicate
            because duplicate
            because duplicate
    """,
    "G2: the same id is applied once, whatever it names": """
        given session.started
        collecting_data.started id=x
            v2 {"mode": "collecting_data", "proactive_started_at": "now"}
            arms data_collection.reply +6m
        collecting_data.started id=x
            because duplicate
        customer.message id=x
            because duplicate
    """,
    "G2: a message without an id has its messageId": """
        given session.started
        customer.message {"messageId": "m1"}
            because not_waiting
        customer.message {"messageId": "m1"}
            because duplicate
        customer.message {"messageId": "m2"}
            because not_waiting
        customer.message id=other {"messageId": "m1"}
            because not_waiting
    """,
    "events without an id are all new": """
        given session.started
        proactive.send
            @1 tells c1: REMINDER
        proactive.send
            @2 tells c1: REMINDER
    """,
    "G4: an early deadline changes nothing and still stands": """
        given session.started; collecting_data.started
        early
            because early_deadline
        due
            ends data_collection.reply fired
            @1 tells c1: PENDING
    """,
    "a deadline of another generation is stale": """
        given session.started; collecting_data.started; +5m collecting_data.started
        stale
            because stale_deadline
        due
            ends data_collection.reply fired
            @1 tells c1: PENDING
    """,
    "a deadline fires once": """
        given session.started; collecting_data.started
        due
            ends data_collection.reply fired
            @1 tells c1: PENDING
        again
            because duplicate
    """,
    "an id that looks like ours and is not": """
        given session.started
        promos.offered id=agents-stream:0123456789abcdef
            because stale_event
        promos.offered
            v2 {"mode": "ofrecer_promos", "ofrecer_promos_at": "now"}
            arms promos.reply +10m
    """,
    "G1: only our offers have ids of our own form, other events may have any": """
        given session.started
        data.captured id=agents-stream:9 {"nombre": "Ana"}
            v2 {"datos_capturados": {"nombre": "Ana"}}
    """,
}


@pytest.mark.parametrize("script", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_transcript(script: str) -> None:
    """SPEC §2's identities and DESIGN §3's steps 1 and 2."""
    assert retell(script) == tidy(script)


def entry_of(
    name: str = "agent/data.captured",
    kind: EntryKind = "event",
    offset: int = 0,
    timestamp: int = 1_000,
) -> Entry:
    """A journal entry from partition 3 of a topic of its own kind."""
    source = Source(f"from.{kind}", 3, offset, timestamp, keyed=True)
    return Entry(kind, name, "s1", {"sessionId": "s1", "data": {}}, source, Durations())


def at(offset: int, timestamp: int = 2_000) -> Position:
    """A place in partition 3 of the journal."""
    return Position("session.journal", 3, offset, timestamp)


def opened(first: Entry | None = None) -> SessionRecord:
    """The record that a first entry leaves."""
    record = apply(None, first or entry_of(), at(10)).record
    assert record
    return record


def test_an_entry_that_was_applied_changes_nothing_and_owes_its_outbox_again() -> None:
    """G2: a redelivered batch finds its offsets passed; the outbox tells what it owed."""
    conversation = Conversation()
    conversation.event("proactive.send")
    conversation.event("proactive.send")
    record = conversation.record
    assert record
    for raw, position in conversation.journal:
        assert decide(record, raw, position) == Decision(record, repeated=True)
        assert len(record.outbox[position.offset]) == 1


def test_a_journal_made_anew_is_new() -> None:
    """DESIGN §3: a lower offset with a later time was not applied; it is accepted."""
    record = opened()
    decision = apply(record, entry_of(offset=1, timestamp=5_000), at(3, 9_000))
    assert not decision.repeated
    assert decision.record
    assert (decision.record.journal_offset, decision.record.journal_timestamp) == (3, 9_000)


KNOWN = [(5, 1_000), (4, 900), (4, 1_000)]
NEW = [(5, 1_001), (2, 2_000), (6, 1_000), (6, 900)]


@pytest.mark.parametrize(("offset", "timestamp"), [*KNOWN, *NEW])
def test_a_source_record_is_known_by_offset_and_time(offset: int, timestamp: int) -> None:
    """DESIGN §3 step 2: not beyond `seen` in offset and in time; a topic made anew is new."""
    record = opened(entry_of(offset=5, timestamp=1_000))
    decision = apply(record, entry_of(offset=offset, timestamp=timestamp), at(11))
    known = (offset, timestamp) in KNOWN
    assert (Reason.DUPLICATE in decision.reasons) is known
    expected = (5, 1_000) if known else (offset, max(timestamp, 1_000))
    assert decision.record
    assert decision.record.seen == {"from.event/3": expected}


def test_a_brokers_clock_that_goes_back_repeats_nothing() -> None:
    """G2, G9: after a change of leader a later offset may have an earlier time.

    Both offsets stay known, in the journal and in the source, and the later record stays the
    higher one for recovery, which compares times first.
    """
    first, second = entry_of(offset=5, timestamp=1_000), entry_of(offset=6, timestamp=900)
    record = opened(first)
    later = apply(record, second, at(11, 1_900)).record
    assert later
    assert later.seen == {"from.event/3": (6, 1_000)}
    assert journal_position(encode_record(later)) > journal_position(encode_record(record))
    for entry, place in ((first, at(10)), (second, at(11, 1_900))):
        assert apply(later, entry, place).repeated
        assert apply(later, entry, at(12, 1_950)).reasons == (Reason.DUPLICATE,)


def test_only_the_journal_position_moves_for_a_duplicate() -> None:
    """DESIGN §3 step 2; the position does move, or the entry would be read for ever."""
    record = opened(entry_of(offset=5))
    moved = apply(record, entry_of(offset=5), at(11, 3_000)).record
    assert moved == replace(record, journal_offset=11, journal_timestamp=3_000)


@pytest.mark.parametrize("kind", ["result", "deadline"])
def test_only_events_open_a_session(kind: EntryKind) -> None:
    """SPEC §3: tool results open no session; nor does a deadline that nobody armed."""
    decision = apply(None, entry_of("any", kind), at(10))
    assert decision == Decision(None, reasons=(Reason.UNKNOWN_SESSION,))


@pytest.mark.parametrize(("late_ms", "reason"), [(-1, Reason.EARLY_DEADLINE), (0, None)])
def test_a_deadline_fires_in_its_own_millisecond(late_ms: int, reason: Reason | None) -> None:
    """G4: never early, and not a millisecond later than it must."""
    conversation = Conversation()
    record = conversation.event("collecting_data.started").record
    assert record
    deadline = record.deadlines["data_collection.reply"]
    conversation.now_ms = deadline.due_at_ms + late_ms
    name, generation = "data_collection.reply", deadline.generation
    decision = conversation.deadline(name, generation, deadline.due_at_ms)
    assert decision.reasons == ((reason,) if reason else ())
    assert [end.end for end in decision.ended] == ([] if reason else ["fired"])


def test_a_session_is_at_home_where_its_keyed_events_arrive() -> None:
    """DESIGN §2: deadlines and own events go to the partition of the session's events."""
    record = opened()
    keyless = entry_of(offset=1)
    keyless = replace(keyless, source=replace(keyless.source, partition=5, keyed=False))
    decision = apply(record, keyless, at(11))
    assert decision.record
    assert decision.record.home == 3
    keyed = replace(keyless, source=replace(keyless.source, partition=6, keyed=True))
    assert (moved := apply(decision.record, keyed, at(12)).record)
    assert moved.home == 6
    asked = replace(entry_of("agent/operator.action"), source=replace(keyed.source, partition=7))
    assert (same := apply(moved, asked, at(13)).record)
    assert same.home == 6


def test_the_last_256_ids_are_remembered() -> None:
    """SPEC §6, G2: no more than that, and those in the order in which they came."""
    conversation = Conversation()
    for n in range(MAX_RECENT_IDS + 2):
        conversation.event("customer.message", event_id=f"e{n}")
    assert conversation.record
    assert len(conversation.record.recent_ids) == MAX_RECENT_IDS == 256
    repeated = [conversation.event("customer.message", event_id=f"e{n}") for n in (2, 257, 1)]
    assert [Reason.DUPLICATE in decision.reasons for decision in repeated] == [True, True, False]


def test_only_so_many_own_events_are_awaited() -> None:
    """STYLE rule 8: the oldest is given up; should it still come, it is stale."""
    conversation = Conversation()
    conversation.play("data.captured complete")
    for _ in range(MAX_OWN_EVENTS + 1):
        for step in ("collecting_data.started", "customer.message", "due"):
            conversation.play(step)
    offers = [offer.envelope["id"] for offer in conversation.published()]
    assert conversation.record
    assert list(conversation.record.own_events) == offers[1:]


def fails(session: SessionRecord, cause: do.Cause) -> Iterator[do.Instruction]:
    """A rule with a bug, after half its work."""
    yield do.Change("half", {"datos_capturados": {"nombre": session.session_id}})
    yield do.Cancel("data_collection.reply")
    raise AssertionError(f"a customer's words: {cause.data['content']}")


def test_a_decision_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """G10: `reducer_error`; the letter names and holds the event; the session goes on."""
    conversation = Conversation()
    conversation.event("collecting_data.started")
    before = conversation.record
    rules = {**decider.RULES, "agent/customer.message": (fails,)}
    monkeypatch.setattr(decider, "RULES", rules)
    decision = conversation.event("customer.message", {"content": "hola"}, "e1")
    again = conversation.event("customer.message", {"content": "hola"}, "e1")
    monkeypatch.undo()

    assert before
    assert decision.record
    assert isinstance(decision.crash, AssertionError)
    assert decision.reasons == (Reason.REDUCER_ERROR,)
    assert decision.ended == ()
    applied = replace(
        before,
        seen=decision.record.seen,
        recent_ids=("i:e1",),
        outbox=decision.record.outbox,
    )
    assert substance(decision.record) == substance(applied)
    (action,) = decision.actions
    assert isinstance(action, BuryDeadLetter)
    letter = dict(action.letter)
    value = orjson.loads(letter.pop("value"))
    assert letter == {
        "id": letter["id"],
        "reason": "reducer_error",
        "detail": "AssertionError in the decision",
        "source": {
            "topic": "agent.customer.message",
            "partition": 3,
            "offset": 0,
            "timestamp": conversation.now_ms,
        },
        "key": "s1",
        "encoding": "utf-8",
    }
    assert value["name"] == "agent/customer.message"
    assert (value["id"], value["data"]["content"]) == ("e1", "hola")
    assert again.reasons == (Reason.DUPLICATE,)
    assert conversation.play("customer.message")[0] == "    ends data_collection.reply cancelled"


def test_a_decision_that_fails_on_the_first_event_leaves_an_empty_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G10 and G2: the record has to be there to know the event again."""
    monkeypatch.setattr(decider, "RULES", {"agent/customer.message": (fails,)})
    conversation = Conversation()
    record = conversation.event("customer.message").record
    assert record
    assert (record.mode, record.conversation_id, record.version) == (None, None, 1)
    assert conversation.play("again") == ["    because duplicate"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
fields = st.sampled_from(
    ["mode", "state", "data", "reason", "messageId", "conversationId", "workspaceId", "action"]
) | st.sampled_from(
    ["name", "generation", "commandId", "attempt", "status", "packOptions", "messageType"]
)
names = st.sampled_from([*EVENTS, "agent/nonsense", "tool/result", "session/deadline"])
kinds: st.SearchStrategy[EntryKind] = st.sampled_from(["event", "result", "deadline"])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(kinds, names, st.dictionaries(fields, json_values)), max_size=6))
def test_whatever_an_entry_holds_is_decided(
    entries: list[tuple[EntryKind, str, dict[str, object]]],
) -> None:
    """G10: ingress validates, and yet the reducer survives what should never have come."""
    conversation = Conversation()
    conversation.event("session.started")
    conversation.event("collecting_data.started")
    for kind, name, data in entries:
        conversation.take(kind, name, f"from.{kind}", {"sessionId": "s1", **data})
    for decision, (raw, _) in zip(conversation.decisions, conversation.journal, strict=True):
        if decision.crash is not None:
            assert decision.reasons == (Reason.REDUCER_ERROR,)
            assert len(decision.actions) == 1
            assert decode_entry(raw).name
