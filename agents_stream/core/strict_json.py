"""JSON as SPEC §2 takes it: what two parsers could read in two ways is refused.

Python's own decoder, with hooks where it is too kind (duplicate keys, NaN, numbers of any size,
lone surrogates) and with two checks before it where input could hurt it: length and depth.
"""

import json
import re
from collections import Counter
from math import isinf
from typing import Any, NoReturn

import orjson

from agents_stream.core.errors import InvalidEvent

MAX_VALUE_BYTES = 1_048_576
"""A record's value is at most 1 MiB."""

MAX_DEPTH = 32
"""Levels of objects and lists; the top-level object is the first."""

MIN_INTEGER = -(1 << 63)
MAX_INTEGER = (1 << 64) - 1

_MAX_DIGITS = 20
_MAX_SHOWN = 64
_OPENING = frozenset("[{")
_CLOSING = frozenset("]}")
# A string, closed or broken off, or one bracket. Each quote is consumed by the first alternative,
# so that no input makes the scan start again inside a string.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


def parse_object(raw: bytes | None) -> dict[str, Any]:
    """Read a record's value as one JSON object.

    Raises:
        InvalidEvent: `too_large`, `invalid_json`, or `invalid_schema` where the value is good JSON
            but no object.

    """
    if not raw:
        raise InvalidEvent("invalid_json", "the record has no value")
    if len(raw) > MAX_VALUE_BYTES:
        raise InvalidEvent("too_large", f"{len(raw)} bytes; {MAX_VALUE_BYTES} are allowed")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidEvent("invalid_json", f"no UTF-8 at byte {error.start}") from None
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        _check_depth(text)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at character {error.pos}"
        raise InvalidEvent("invalid_json", detail) from None
    if "\\ud" in text or "\\uD" in text:
        _check_surrogates(value)
    if not isinstance(value, dict):
        raise InvalidEvent("invalid_schema", "the value is JSON, but no object")
    return value


def dump(value: Any) -> bytes:
    """Write a value that `parse_object` could have returned, compact, keys in their order."""
    return orjson.dumps(value)


def _check_depth(text: str) -> None:
    """Count brackets outside of strings: the decoder would recurse before it could complain."""
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        token = match[0]
        if token in _OPENING:
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidEvent("invalid_json", f"more than {MAX_DEPTH} levels deep")
        elif token in _CLOSING:
            depth -= 1


def _check_surrogates(value: Any) -> None:
    try:
        orjson.dumps(value)
    except TypeError:
        raise InvalidEvent("invalid_json", "half of a surrogate pair stands alone") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        raise InvalidEvent("invalid_json", f"the key {twice[:_MAX_SHOWN]!a} comes twice")
    return value


def _integer(digits: str) -> int:
    if len(digits) <= _MAX_DIGITS:
        value = int(digits)
        if MIN_INTEGER <= value <= MAX_INTEGER:
            return value
    raise InvalidEvent("invalid_json", f"the number {digits[:_MAX_SHOWN]} is beyond 64 bits")


def _float(digits: str) -> float:
    value = float(digits)
    if isinf(value):
        raise InvalidEvent("invalid_json", f"the number {digits[:_MAX_SHOWN]} is beyond 64 bits")
    return value


def _constant(name: str) -> NoReturn:
    raise InvalidEvent("invalid_json", f"{name} is no JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_constant,
)
