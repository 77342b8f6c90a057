"""The items of a JSON list as they were written, so that each can be judged as a record of its own.

Parsing the whole list first would judge it: one bad item would hide which one it is, and limits
of a record (size, depth) would count the list too. So only the commas of the outermost level are
looked for here; whether an item is JSON is for `strict_json` to say.
"""

import re
from typing import Final

from agents_stream.core.errors import InvalidEvent

MAX_ITEMS: Final = 1_000

_SPACE: Final = b" \t\r\n"
# A string, closed or broken off, or one mark. Bytes of UTF-8 above 127 are never a mark.
_STRING_OR_MARK: Final = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)


def is_list(raw: bytes) -> bool:
    """Whether a JSON text is a list, if it is JSON at all."""
    return raw.lstrip(_SPACE).startswith(b"[")


def split_list(raw: bytes) -> list[bytes]:
    """Cut the text of a JSON list into the texts of its items.

    Raises:
        InvalidEvent: `invalid_json`, the list does not end where the text ends; `too_large`, it
            has more than `MAX_ITEMS` items.

    """
    text = raw.strip(_SPACE)
    items: list[bytes] = []
    depth = begin = 0
    for match in _STRING_OR_MARK.finditer(text):
        mark = match[0]
        if mark in b"[{":
            depth += 1
            begin = 1 if depth == 1 and not items else begin
        elif mark == b"," and depth == 1:
            items.append(text[begin : match.start()])
            begin = match.end()
        elif mark in b"]}":
            depth -= 1
            if depth == 0:
                if mark != b"]" or match.end() != len(text):
                    raise InvalidEvent("invalid_json", "the list does not end with its text")
                return _complete(items, text[begin : match.start()])
        if len(items) >= MAX_ITEMS:
            raise InvalidEvent("too_large", f"a list has at most {MAX_ITEMS} events")
    raise InvalidEvent("invalid_json", "the list does not end")


def _complete(items: list[bytes], last: bytes) -> list[bytes]:
    """Add the last item; a list without commas and text is empty."""
    return [*items, last] if items or last.strip(_SPACE) else []
