"""The form of a dead letter: nothing is lost, and it always fits its topic (G10)."""

import base64
import hashlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.kafka.topics import DEAD_LETTERS, load_topics
from agents_stream.stages import dead_letters
from agents_stream.stages.dead_letters import letter_key, letter_of
from tests.kafka.fakes import Read

LIMIT = int(load_topics()[DEAD_LETTERS].config["max.message.bytes"])
MIB = 1024 * 1024


def read(value: bytes | None, key: bytes | None = b"s-1") -> Read:
    """A bad record."""
    return Read("agent.operator", 3, 7, 1_700_000_000_000, key, value)


@given(st.none() | st.binary(max_size=200), st.none() | st.binary(max_size=50))
def test_value_and_key_can_be_had_again(value: bytes | None, key: bytes | None) -> None:
    """G1: what comes in is what a redrive sends."""
    letter = orjson.loads(orjson.dumps(letter_of(read(value, key), "invalid_json", "no")))

    def decoded(text: str | None, encoding: str) -> bytes | None:
        if text is None:
            return None
        return base64.b64decode(text) if encoding == "base64" else text.encode()

    assert decoded(letter["value"], letter["encoding"]) == value
    assert decoded(letter["key"], letter.get("keyEncoding", "utf-8")) == key
    assert letter["source"] == {
        "topic": "agent.operator",
        "partition": 3,
        "offset": 7,
        "timestamp": 1_700_000_000_000,
    }
    assert letter["id"] == "dl:agent.operator/3/7"


@pytest.mark.parametrize(
    "byte", [b"\x00", b'"', b"\\", b"\x7f", b"\xff", b"a", "é".encode()], ids=repr
)
@pytest.mark.parametrize("size", [MIB, MIB + 1, 30 * MIB])
def test_every_letter_fits_its_topic(byte: bytes, size: int) -> None:
    """G10: a letter that the broker refuses would end the worker, at every restart again."""
    whole = byte * (size // len(byte))
    record = read(whole, whole)
    letter = letter_of(record, "invalid_schema", whole.decode(errors="replace")[:MIB])
    key = letter_key(record.key)
    assert key is not None
    assert len(orjson.dumps(letter)) + len(key) + 1_000 < LIMIT


def test_a_large_value_is_kept_by_its_beginning_size_and_digest() -> None:
    """SPEC §2: the first 256 KiB, `truncated`, `size` and `sha256`; `source` names the rest."""
    value = b"x" * (MIB + 1)
    letter = letter_of(read(value), "too_large", "too large")
    assert letter["value"] == "x" * (256 * 1024)
    assert letter["truncated"] is True
    assert letter["size"] == MIB + 1
    assert letter["sha256"] == hashlib.sha256(value).hexdigest()
    assert "truncated" not in letter_of(read(b"x" * MIB), "invalid_json", "no")


def test_a_letter_has_its_records_key_unless_it_is_a_giant() -> None:
    """SPEC §1, "as received": as far as a key can be one."""
    assert letter_key(None) is None
    assert letter_key(b"s-1") == b"s-1"
    giant = b"k" * (dead_letters.MAX_KEY_KEPT + 1)
    assert letter_key(giant) == giant[: dead_letters.MAX_KEY_KEPT]
    assert letter_of(read(b"", giant), "too_large", "no")["keyTruncated"] is True
