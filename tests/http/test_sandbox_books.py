"""The sandbox's books by themselves: one effect per key, and never more than fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.sandbox.books import Books, KeyReused, Receipt, Tool
from agents_stream.sandbox.conversations import Conversations


@given(
    st.lists(
        st.tuples(
            st.sampled_from([Tool.CRM, Tool.WHATSAPP]),
            st.none() | st.sampled_from(["a", "b", "c"]),
            st.integers(0, 2),
        ),
        max_size=30,
    )
)
def test_the_books_agree_with_a_plain_model(requests: list[tuple[Tool, str | None, int]]) -> None:
    """Whatever comes in whatever order, a key has one effect, and ids count the effects."""
    entered = Books()
    counts = {Tool.CRM: 0, Tool.WHATSAPP: 0}
    known: dict[tuple[Tool, str], tuple[str, int]] = {}
    for tool, key, content in requests:
        entry = entered.enter(Receipt(tool=tool, key=key, inputs={"n": content}, size=1))
        seen = known.get((tool, key)) if key else None
        if seen is not None and seen[1] != content:
            with pytest.raises(KeyReused):
                entered.perform(entry)
            assert not entry.performed
            continue
        effect = entered.perform(entry)
        if seen is None:
            counts[tool] += 1
            assert effect.endswith(f"-{counts[tool]}")
            if key:
                known[tool, key] = (effect, content)
        assert effect == (seen[0] if seen else effect)
        assert entry.performed == (seen is None)
        assert entry.repeat == (seen is not None)
    assert len(entered.effects(Tool.CRM)) == counts[Tool.CRM]


def test_full_books_drop_the_oldest_and_count_it() -> None:
    """The books hold a number of lines and of bytes; what goes is the oldest, and is counted."""
    entered = Books(max_entries=3, max_bytes=100)
    for size in (10, 10, 10, 10):
        entered.enter(Receipt(tool=Tool.CRM, key=None, inputs={}, size=size))
    assert [entry.seq for entry in entered.select()] == [2, 3, 4]
    entered.enter(Receipt(tool=Tool.CRM, key=None, inputs={}, size=95))
    assert [entry.seq for entry in entered.select()] == [5]
    assert entered.dropped == 4


def test_conversations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversation and the line untouched longest go first."""
    monkeypatch.setattr("agents_stream.sandbox.conversations.MAX_CONVERSATIONS", 2)
    kept = Conversations(clock=lambda: 7)
    for number in range(600):
        kept.add("long", "agent", str(number), "x")
    for name in ("b", "long", "c"):
        kept.touch(name)
    assert [item["conversationId"] for item in kept.listed()] == ["c", "long"]
    long = kept.get("long")
    assert long is not None
    assert [line.id for line in long.lines][:2] == ["100", "101"]


def test_long_conversations_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """All lines together hold a number of characters; the conversation in hand always stays."""
    monkeypatch.setattr("agents_stream.sandbox.conversations.MAX_CHARS", 100)
    kept = Conversations()
    for name in ("a", "b", "c"):
        kept.add(name, "agent", "1", "x" * 40)
    assert [item["conversationId"] for item in kept.listed()] == ["c", "b"]
    kept.add("d", "agent", "1", "x" * 500)
    assert [item["conversationId"] for item in kept.listed()] == ["d"]
    kept.touch("e", contact_id="maria")
    kept.note("y" * 9_999, "n", contact="maria", session=None)
    noted = kept.get("e")
    assert noted is not None
    assert [len(line.text) for line in noted.lines] == [500]
