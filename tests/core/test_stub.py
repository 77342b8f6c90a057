"""What is kept of a closed session decides as the whole record would (G2, G8, SPEC §3)."""

from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from agents_stream.core.session import SessionRecord, empty_state, encode_record
from agents_stream.core.stub import stub
from tests.core.test_decider_properties import Story, filled_in, lines, stories
from tests.core.transcript import Conversation, decide

CAPTURED = {**empty_state(), "datos_capturados": {"nombre": "Ana"}}

# Closed early, so that most of the story happens to a closed session, or to one opened afresh.
afterwards = st.lists(
    st.tuples(
        st.one_of(
            lines,
            st.sampled_from(
                [
                    "session.started",
                    "session.close",
                    "succeeded COMMAND",
                    "failed COMMAND",
                    "unknown COMMAND",
                    "customer.message",
                    'session.started {"mode": "intro"}',
                    "own",
                    "again 3",
                ]
            ),
        ),
        st.integers(0, 3),
    ),
    max_size=20,
)


def decided(journal: list[Any]) -> list[Any]:
    """The decisions on a journal."""
    record: SessionRecord | None = None
    found = []
    for raw, at in journal:
        found.append(decide(record, raw, at))
        record = found[-1].record
    return found


@settings(max_examples=150, deadline=None)
@given(stories, afterwards)
def test_a_stub_decides_as_the_whole_record(before: Story, after: Story) -> None:
    """For every later input: the same actions, reasons and ends, and the same record but for it."""
    conversation = Conversation()
    conversation.play("session.started")
    for line, number in [*before, ("session.close", 0), *after]:
        if (resolved := filled_in(conversation, line, number)) is not None:
            conversation.play(resolved)
    kept = decided(conversation.journal)
    with mock.patch("agents_stream.core.decider.stub", lambda record: record):
        whole = decided(conversation.journal)
    for ours, theirs in zip(kept, whole, strict=True):
        assert (ours.actions, ours.reasons, ours.ended) == (
            theirs.actions,
            theirs.reasons,
            theirs.ended,
        )
        assert ours.record == stub(theirs.record)
        assert ours.record.status == "open" or not ours.record.state or is_untouched(ours.record)


def is_untouched(record: SessionRecord) -> bool:
    """Whether a session has the state of one that has just been opened."""
    return dict(record.state) == empty_state()


def test_a_close_shrinks_at_once() -> None:
    """What the customer said about himself leaves the record with the close."""
    conversation = Conversation()
    conversation.play("session.started")
    conversation.play("data.captured complete")
    open_one = conversation.record
    conversation.play("session.close")
    closed = conversation.record
    assert open_one is not None
    assert closed is not None
    assert open_one.state["datos_capturados"]
    assert closed.state == {}
    assert (closed.mode, closed.version) == (open_one.mode, open_one.version)
    assert b"datos_capturados" not in encode_record(closed)


def test_only_a_closed_session_shrinks() -> None:
    """An open one stays as it is; a stub of a stub is itself; an untouched state is kept."""
    open_one = SessionRecord("s", state=CAPTURED)
    assert stub(open_one) is open_one
    closed = SessionRecord("s", status="closed", state=CAPTURED)
    assert stub(closed).state == {}
    assert stub(stub(closed)) == stub(closed)
    untouched = SessionRecord("s", status="closed")
    assert stub(untouched) == untouched
