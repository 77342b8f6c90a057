"""What is taken agrees with Python's decoder; what is not has a reason, and costs little."""

import json
import math
import time
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents_stream.core.errors import InvalidEvent
from agents_stream.core.strict_json import (
    MAX_DEPTH,
    MAX_INTEGER,
    MAX_VALUE_BYTES,
    MIN_INTEGER,
    dump,
    parse_object,
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(MIN_INTEGER, MAX_INTEGER),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(st.text(), values, max_size=5)


def reason_of(raw: bytes | None) -> str:
    """Why `raw` is refused."""
    with pytest.raises(InvalidEvent) as caught:
        parse_object(raw)
    assert caught.value.detail
    assert len(caught.value.detail) < 600
    caught.value.detail.encode()
    return caught.value.reason


@given(objects, st.booleans(), st.none() | st.integers(0, 3))
def test_agrees_with_pythons_decoder_on_good_json(
    value: dict[str, Any],
    ensure_ascii: bool,  # noqa: FBT001
    indent: int | None,
) -> None:
    """However a producer writes it, with escapes or without: the value is the same."""
    raw = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent).encode()
    assert parse_object(raw) == json.loads(raw) == value


@given(objects)
def test_what_is_dumped_is_read_again(value: dict[str, Any]) -> None:
    """G8: a value goes through the log unchanged, the order of its keys included."""
    again = parse_object(dump(value))
    assert again == value
    assert list(again) == list(value)


fragments = st.sampled_from(
    [
        *'{}[]:,"\\ \t0123456789-+.eE',
        '"a"',
        "\\ud83d",
        "\\ude00",
        "\\u00",
        "NaN",
        "true",
        "null",
        "é",
    ]
)


@given(
    st.binary() | st.text().map(str.encode) | st.lists(fragments).map(lambda f: "".join(f).encode())
)
@example(b"")
@example(b"\xef\xbb\xbf{}")
@example(b'{"a":')
@example(b'"\\')
def test_any_bytes_give_an_object_or_a_reason(raw: bytes) -> None:
    """G10: whatever a producer sends, nothing but InvalidEvent comes out of it."""
    try:
        value = parse_object(raw)
    except InvalidEvent as error:
        reason = error.reason
    else:
        reason = "none" if value == orjson.loads(raw) else "two parsers disagree"
    assert reason in {"none", "invalid_json", "invalid_schema"}


@given(objects.filter(bool), st.data())
def test_a_damaged_object_is_refused(value: dict[str, Any], data: st.DataObject) -> None:
    """G10: an object that was cut anywhere is no object."""
    raw = dump(value)
    assert reason_of(raw[: data.draw(st.integers(0, len(raw) - 1))]) == "invalid_json"


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        b"  ",
        b"{",
        b"{}}",
        b"{} {}",
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":01}',
        b'{"a":+1}',
        b'{"a":.5}',
        b'{"a":"\n"}',
        b'{"a":"\\x"}',
        b"{1:2}",
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b'{"a":"\xff"}',
        b'{"a":"\xc0\xaf"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":[-Infinity]}',
        b"NaN",
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":1}',
        b'{"a":[{"b":{"c":1,"c":2}}]}',
        b'{"\\ud800":1,"\\ud800":2}',
        b'{"a":"\\ud83d"}',
        b'{"a":"\\uDE00"}',
        b'{"a":["x\\ude00\\ud83d"]}',
        b'{"\\ud83d":1}',
        b'["\\ud83d"]',
        b'{"a":18446744073709551616}',
        b'{"a":-9223372036854775809}',
        b'{"a":[99999999999999999999999]}',
        b'{"a":1e999}',
        b'{"a":-1e999}',
        b'{"a":1.8e308}',
        b"1e999",
    ],
)
def test_what_two_parsers_could_read_differently_is_refused(raw: bytes | None) -> None:
    """G10: each rule of SPEC §2, one example at a time."""
    assert reason_of(raw) == "invalid_json"


@pytest.mark.parametrize("raw", [b"[]", b"[{}]", b'"a"', b"1", b"1.5", b"true", b"null", b" [1] "])
def test_json_that_is_no_object_has_the_wrong_schema(raw: bytes) -> None:
    """The JSON is good, so the reason is another."""
    assert reason_of(raw) == "invalid_schema"


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b' \r\n\t{"a" : 1 } ', {"a": 1}),
        (b'{"a":18446744073709551615}', {"a": MAX_INTEGER}),
        (b'{"a":-9223372036854775808}', {"a": MIN_INTEGER}),
        (b'{"a":1e300}', {"a": 1e300}),
        (b'{"a":1e-999}', {"a": 0.0}),
        (b'{"a":-0}', {"a": 0}),
        (b'{"a":123456789012345678901234.0}', {"a": 123456789012345678901234.0}),
        (b'{"a":"\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        (b'{"a":"\\\\ud83d"}', {"a": "\\ud83d"}),
        (b'{"a":"\\u0000"}', {"a": "\0"}),
        (b'{"a":{"k":1},"b":{"k":1}}', {"a": {"k": 1}, "b": {"k": 1}}),
        (b'{"":1}', {"": 1}),
    ],
)
def test_what_is_only_unusual_is_taken(raw: bytes, value: dict[str, Any]) -> None:
    """The rules refuse no more than they say."""
    assert parse_object(raw) == value


def nested(levels: int, opening: str, closing: str) -> bytes:
    """Make an object that is `levels` deep, itself included."""
    inner = opening * (levels - 1) + "0" + closing * (levels - 1)
    return f'{{"a":{inner}}}'.encode()


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"b":', "}")])
def test_depth_is_counted_in_levels(opening: str, closing: str) -> None:
    """32 levels are taken, 33 are not; the top-level object is the first."""
    assert parse_object(nested(MAX_DEPTH, opening, closing))
    assert reason_of(nested(MAX_DEPTH + 1, opening, closing)) == "invalid_json"


def test_depth_is_neither_the_number_of_brackets_nor_those_in_strings() -> None:
    """Many lists side by side are flat, and a text may hold any brackets."""
    flat = {"a": [[] for _ in range(500)], "b": '[{"' * 500 + "\\" * 7, "c": {"[[": "]]"}}
    assert parse_object(dump(flat)) == flat
    assert parse_object(dump(flat)[:-1] + b',"d":' + nested(MAX_DEPTH - 1, "[", "]") + b"}")
    deep = dump(flat)[:-1] + b',"d":' + nested(MAX_DEPTH, "[", "]") + b"}"
    assert reason_of(deep) == "invalid_json"


def test_a_value_of_exactly_one_mebibyte_is_taken() -> None:
    """1 MiB is the limit, in bytes and not in characters."""
    fill = MAX_VALUE_BYTES - len(b'{"a":""}')
    assert parse_object(b'{"a":"' + b"x" * fill + b'"}')
    assert reason_of(b'{"a":"' + b"x" * (fill + 1) + b'"}') == "too_large"
    assert reason_of('{"a":"é'.encode() + b"x" * (fill - 1) + b'"}') == "too_large"


MANY = MAX_VALUE_BYTES - 500
HOSTILE = {
    "lists in lists": b"[" * MANY,
    "objects in objects": b'{"a":' * (MANY // 5),
    "a string that never ends": b"[]" * 40 + b'"' + b'\\"' * (MANY // 2 - 40),
    "quotes": b"[]" * 40 + b'"' * (MANY - 80),
    "digits": b'{"a":' + b"9" * MANY + b"}",
    "digits of a float": b'{"a":' + b"9" * MANY + b".5}",
    "decimals": b'{"a":0.' + b"3" * MANY + b"}",
    "an exponent": b'{"a":1e' + b"9" * MANY + b"}",
    "one key again and again": b'{"a":1' + b',"a":1' * (MANY // 6) + b"}",
    "one of many keys again": b"{"
    + b",".join(b'"%d":1' % n for n in range(80_000))
    + b',"79999":1}',
    "empty lists": b'{"a":[' + b"[]," * (MANY // 3) + b"[]]}",
    "surrogates": b'{"a":"' + b"\\ud83d" * (MANY // 6) + b'"}',
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_input_costs_no_more_than_large_input(raw: bytes) -> None:
    """G10: one megabyte made to hurt neither ends the process nor holds up its partition."""
    started = time.process_time()
    detail = ""
    try:
        parse_object(raw)
    except InvalidEvent as error:  # some of these are good JSON
        detail = error.detail
    assert time.process_time() - started < 3
    assert len(detail) < 600


def test_an_event_costs_microseconds() -> None:
    """Strictness must not eat the time of a worker that takes thousands of events a second."""
    raw = dump(
        {"name": "agent/customer.message", "data": {f"field{n}": "x" * 20 for n in range(8)}}
    )
    best = math.inf
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(50):
            parse_object(raw)
        best = min(best, (time.perf_counter() - started) / 50)
    assert best < 0.000_1
