"""Cutting a JSON list into its items, judged against Python's own parser."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents_stream.core.errors import InvalidEvent
from agents_stream.core.json_list import MAX_ITEMS, is_list, split_list

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
nearly_json = st.lists(
    st.sampled_from(["[", "]", "{", "}", ",", ":", '"', "\\", '"a"', "1", " ", "\n", "é"]),
    max_size=12,
).map("".join)


def parsed(text: str) -> object:
    """Return what Python reads, or None for what is no JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def cut(text: str) -> object:
    """Return what the items say when each is read by itself, or None where that fails."""
    try:
        return [json.loads(item) for item in split_list(text.encode())]
    except (InvalidEvent, json.JSONDecodeError):
        return None


@given(st.lists(json_values, max_size=5), st.sampled_from([None, 1]))
def test_the_items_are_what_the_list_holds(items: list[object], indent: int | None) -> None:
    """However a list is written, its items come out one by one."""
    text = f" \r\n{json.dumps(items, indent=indent, ensure_ascii=False)}\t"
    assert is_list(text.encode())
    assert cut(text) == items


@given(nearly_json)
@example("[{]}")
@example("[1,]")
@example("[,1]")
@example('["]')
@example('["\\"]')
@example("[1][2]")
@example("[[1],2")
def test_what_is_no_list_is_not_taken_for_one(text: str) -> None:
    """Cutting and reading the pieces accepts exactly what reading the whole accepts."""
    whole = parsed(text)
    if is_list(text.encode()):
        assert cut(text) == whole
    else:
        assert not isinstance(whole, list)


def test_a_list_has_a_limit() -> None:
    """One event too many is `too_large`, and the rest of the text is not even looked at."""
    assert len(split_list(b"[" + b",".join([b"1"] * MAX_ITEMS) + b"]")) == MAX_ITEMS
    with pytest.raises(InvalidEvent, match="too_large"):
        split_list(b"[" + b"1," * MAX_ITEMS + b"this is no JSON")


@pytest.mark.parametrize("text", [b"[" * 100_000, b'["' + b"\\" * 200_000, b"[{" * 100_000])
def test_a_hostile_text_takes_linear_time(text: bytes) -> None:
    """Neither nesting nor a string without end can hurt (G10)."""
    with pytest.raises(InvalidEvent, match="does not end"):
        split_list(text)
