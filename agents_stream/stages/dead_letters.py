"""The form of a dead letter about a record that could not be accepted (SPEC §2)."""

import base64
import hashlib
from typing import Any, Final

import orjson
from aiokafka.structs import ConsumerRecord

from agents_stream.kafka.unpacking import Cut

MAX_KEPT_WHOLE: Final = 1024 * 1024
KEPT_OF_LARGE: Final = 256 * 1024
MAX_KEY_KEPT: Final = 4096
MAX_DETAIL_CHARS: Final = 4096


def letter_of(record: ConsumerRecord, reason: str, detail: str) -> dict[str, Any]:
    """A dead letter about a Kafka record, with as much of it as SPEC §2 keeps."""
    letter: dict[str, Any] = {
        "id": f"dl:{record.topic}/{record.partition}/{record.offset}",
        "reason": reason,
        "detail": detail[:MAX_DETAIL_CHARS],
        "source": {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp": record.timestamp,
        },
    }
    key, key_encoding = _text(letter_key(record.key))
    letter["key"] = key
    if key_encoding == "base64":
        letter["keyEncoding"] = key_encoding
    if record.key is not None and len(record.key) > MAX_KEY_KEPT:
        letter["keyTruncated"] = True
    return {**letter, **_value(record.value)}


def letter_key(key: bytes | None) -> bytes | None:
    """The key of a letter's own record: as received, by its beginning if it is a giant."""
    return None if key is None else key[:MAX_KEY_KEPT]


def _value(raw: bytes | None) -> dict[str, Any]:
    if isinstance(raw, Cut):
        text, encoding = _text(bytes(raw))
        told = {"truncated": True, "size": raw.size, "sha256": raw.sha256}
        return {"value": text, "encoding": encoding, **told}
    whole = raw is None or len(raw) <= MAX_KEPT_WHOLE
    text, encoding = _text(raw if whole or raw is None else raw[:KEPT_OF_LARGE])
    kept: dict[str, Any] = {"value": text, "encoding": encoding}
    if not whole and raw is not None:
        digest = hashlib.sha256(raw).hexdigest()
        kept |= {"truncated": True, "size": len(raw), "sha256": digest}
    return kept


def _text(raw: bytes | None) -> tuple[str | None, str]:
    """The bytes as text; as base64 where they are none, or where escaping would blow them up."""
    if raw is None:
        return None, "utf-8"
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return base64.b64encode(raw).decode(), "base64"
    if len(orjson.dumps(text)) > 2 * len(raw) + 2:
        return base64.b64encode(raw).decode(), "base64"
    return text, "utf-8"
