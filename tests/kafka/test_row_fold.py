"""Rows from a changelog: the highest wins, a tombstone clears, garbage is remembered (G9)."""

from hypothesis import given
from hypothesis import strategies as st

from agents_stream.kafka.row_fold import RowFold
from tests.kafka.recovery_world import row


def test_a_tombstone_takes_away_what_came_before_it() -> None:
    """Whatever stood there is gone, however high; what comes after it is new."""
    fold = RowFold({b"a": row(9)}.get)
    fold.take(b"a", row(3, "late"))
    assert fold.beaten == {b"a"}
    fold.take(b"a", None)
    assert fold.beaten == set()
    assert fold.drain() == {b"a": None}
    fold.take(b"a", None)
    fold.take(b"a", row(2))
    assert fold.drain() == {b"a": row(2)}
    assert fold.drain() == {}


def test_what_cannot_be_read_is_remembered_until_a_tombstone() -> None:
    """A later record does not clear it: nobody knows which of the two is higher."""
    fold = RowFold(lambda _: None)
    for garbage in (b"", b"\x00", b"[]", b"{}", b"7"):
        fold.take(b"a", garbage)
        fold.take(b"a", row(5))
        assert set(fold.unreadable) == {b"a"}
        fold.take(b"a", None)
        assert fold.unreadable == {}


values = st.one_of(st.none(), st.integers(0, 5).map(row), st.just(b"\x00"))


@given(st.lists(values, max_size=12), st.integers(0, 12))
def test_a_fold_may_be_drained_at_any_time(history: list[bytes | None], cut: int) -> None:
    """Rows that are put away in between give the same as one fold over all."""
    whole = RowFold(lambda _: None)
    known: dict[bytes, bytes] = {}
    parts = RowFold(known.get)
    for index, value in enumerate(history):
        whole.take(b"a", value)
        parts.take(b"a", value)
        if index == cut:
            for key, found in parts.drain().items():
                if found is None:
                    known.pop(key, None)
                else:
                    known[key] = found
    after = {**known, **parts.drain()}
    assert after.get(b"a") == whole.drain().get(b"a")
    assert parts.beaten == whole.beaten
    assert set(parts.unreadable) == set(whole.unreadable)
