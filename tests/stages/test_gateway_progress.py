"""Which offset may be committed."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.core.errors import TerminalError
from agents_stream.stages.gateway.progress import Progress


@given(st.lists(st.integers(1, 3), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_nothing_that_is_not_done_is_ever_committed(gaps: list[int], order: Random) -> None:
    """Whatever the order in which records end: all before the offset is done, all done is passed.

    So a crash brings everything back that has no result yet (G1, G6).
    """
    offsets = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    assert Progress().committable is None
    progress = Progress()
    for offset in offsets:
        progress.take(offset)
    shuffled = list(offsets)
    order.shuffle(shuffled)
    left = set(offsets)
    for offset in shuffled:
        assert progress.committable == min(left)
        progress.finish(offset)
        left.discard(offset)
        assert len(progress) == sum(1 for one in offsets if left and one >= min(left))
    assert progress.committable == offsets[-1] + 1


def test_offsets_that_go_back_end_the_process() -> None:
    """A topic made anew under us is no longer what our offsets are about."""
    progress = Progress()
    progress.take(7)
    with pytest.raises(TerminalError, match="made anew"):
        progress.take(3)
