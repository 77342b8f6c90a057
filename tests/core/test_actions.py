"""What is owed to the outside: its bytes and its ids."""

from collections.abc import Mapping

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.core.actions import (
    Action,
    BuryDeadLetter,
    IssueCommand,
    PublishEvent,
    PublishOutcome,
    decode_action,
    derive_id,
    encode_action,
)

BODY: Mapping[str, object] = {"id": "x", "more": [1, None]}
ACTIONS: list[Action] = [
    IssueCommand(BODY),
    PublishEvent(BODY, 3),
    PublishEvent(BODY, None),
    PublishOutcome(BODY),
    BuryDeadLetter(BODY),
]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: type(action).__name__)
def test_what_is_written_is_what_is_read(action: Action) -> None:
    """G1: what stands in an outbox or on `session.actions` is performed as it was decided."""
    assert decode_action(orjson.loads(orjson.dumps(encode_action(action)))) == action


def test_an_action_of_a_newer_version_is_refused() -> None:
    """DESIGN §1: better to stop than to leave out what a newer worker decided."""
    with pytest.raises(ValueError, match="upgrade this worker"):
        decode_action({"type": "something", "body": {}})


causes = st.tuples(
    st.text("ab\x00") | st.text(), st.integers(0, 99), st.integers(0, 99), st.integers(0, 9)
)


@given(causes, causes)
def test_an_id_is_its_cause(
    one: tuple[str, int, int, int], other: tuple[str, int, int, int]
) -> None:
    """G6: the same cause gives the same id, another cause another one.

    A session's id may hold any character, so that no two causes may run into one text.
    """
    assert (derive_id(*one) == derive_id(*other)) is (one == other)
    assert len(derive_id(*one)) == 32


def test_ids_stay_what_they_are() -> None:
    """G6: ids outlive releases; a change here would send every pending command once more."""
    assert derive_id("s1", 1_700_000_000_000, 42, 0) == "3075a805b3dcfcd46305700d2137993c"
