"""What follows from a mark: where a group begins, whatever has become of the log under it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.kafka.marks import Change, Found, Mark, decode_mark, judge
from agents_stream.kafka.survey import NO_EPOCH

offsets = st.integers(0, 50)
ids = st.sampled_from(["one", "two"])
marks = st.builds(
    Mark,
    topic_id=ids,
    epoch=st.integers(NO_EPOCH, 5),
    partitions=st.integers(1, 9),
    known=st.dictionaries(st.text(max_size=5), ids, max_size=3),
)


@given(marks)
def test_what_is_committed_is_read(mark: Mark) -> None:
    """Kafka keeps it as a string, beside the offset."""
    assert decode_mark(mark.encode()) == mark


@pytest.mark.parametrize("text", ["", None, "meta", "[]", '{"v": 2}', '{"v": 1, "id": 3}'])
def test_what_another_version_wrote_is_no_mark(text: str | None) -> None:
    """Then nothing is known, and nothing is refused for it: an upgrade is a rolling restart."""
    assert decode_mark(text) is None


def found(**given: object) -> Found:
    """A partition in good order, but for what is given."""
    well: dict[str, object] = {
        "committed": 7,
        "beginning": 0,
        "end": 9,
        "mark": Mark("one", 3, 8),
        "topic_id": "one",
        "epoch_end": 9,
    }
    return Found(**{**well, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given_", "change", "start"),
    [
        ({}, None, 7),
        ({"mark": None}, None, 7),
        ({"topic_id": "two"}, Change.MADE_ANEW, 0),
        ({"mark": None, "committed": None, "remembered_id": "two"}, Change.MADE_ANEW, 0),
        ({"mark": None, "committed": None, "remembered_id": "one"}, Change.FORGOTTEN, 0),
        ({"mark": None, "committed": None}, Change.FORGOTTEN, 0),
        ({"epoch_end": 5}, Change.TAIL_LOST, 5),
        ({"epoch_end": 5, "end": 20}, Change.TAIL_LOST, 5),
        ({"epoch_end": 5, "beginning": 6}, Change.TAIL_LOST, 6),
        ({"epoch_end": None, "end": 6}, Change.TAIL_LOST, 0),
        ({"beginning": 8}, Change.DELETED_UNREAD, 8),
    ],
    ids=str,
)
def test_every_change_has_its_verdict(
    given_: dict[str, object], change: Change | None, start: int
) -> None:
    """G1: the group begins where the log is another one, never beyond."""
    verdict = judge(found(**given_))
    assert (verdict.change, verdict.start) == (change, start)


@given(
    st.integers(0, 30).flatmap(
        lambda read: st.tuples(st.just(read), st.integers(0, 30), st.integers(0, 40))
    ),
    st.booleans(),
)
def test_no_record_is_skipped_that_was_not_read(case: tuple[int, int, int], anew: bool) -> None:  # noqa: FBT001 - a case
    """G1, against a log that is written out: lose a tail, write on, and begin by the verdict."""
    read, left, written = case
    old = [("old", number) for number in range(read)]
    kept = [] if anew else old[:left]
    log = kept + [("new", number) for number in range(written)]
    verdict = judge(
        Found(
            committed=read,
            beginning=0,
            end=len(log),
            mark=Mark("one", 3, 8),
            topic_id="two" if anew else "one",
            epoch_end=None if anew else len(kept),
        )
    )
    assert all(record[0] == "old" for record in log[: verdict.start])
    again = [record for record in log[verdict.start :] if record[0] == "old"]
    assert again == []  # nor is anything read twice that need not be
