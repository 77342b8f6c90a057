"""The ids that deduplicate events: the producer's, else a customer message's own (G2)."""

import hashlib

from agents_stream.core.journal import Entry

_MAX_ID_LENGTH = 48


def dedup_key(entry: Entry) -> str | None:
    """The key by which a session remembers an event, or None if it has no identity.

    Long ids are hashed, so that a producer's habit cannot fill the record.
    """
    if entry.event_id:
        return _short(f"i:{entry.event_id}")
    if entry.name == "agent/customer.message" and (message_id := entry.data.get("messageId")):
        return _short(f"m:{message_id}")
    return None


def _short(key: str) -> str:
    if len(key) <= _MAX_ID_LENGTH:
        return key
    # "#" instead of ":", so that no producer's id can be another one's hash.
    return f"{key[0]}#{hashlib.sha256(key.encode()).hexdigest()[:32]}"
