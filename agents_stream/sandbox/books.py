"""The sandbox's books: what it was sent, in order, and what came of it.

A request is entered when it has been read, before anything is done about it, and settled when it
has been answered. The books keep the newest `MAX_ENTRIES` requests and `MAX_BYTES` of inputs,
and count what they drop. They also remember, for longer, which idempotency key had which effect.
"""

import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from agents_stream.core.errors import TerminalError

MAX_ENTRIES = 10_000
MAX_BYTES = 16 * 1024 * 1024
MAX_KEYS = 100_000
MAX_KEY_CHARS = 256
MAX_CONTACT_CHARS = 1_024


class Tool(StrEnum):
    """Who is being played."""

    WHATSAPP = "whatsapp.message.send"
    CRM = "crm.order.create"
    WEBHOOK = "webhook"


_ID_PREFIX = {Tool.WHATSAPP: "wamid", Tool.CRM: "order", Tool.WEBHOOK: "webhook"}


def now_ms() -> int:
    """Return the machine's time, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class KeyReused(TerminalError):  # noqa: N818 - it says what happened
    """An idempotency key came a second time, with other inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A request as it came in, before anything is done about it."""

    tool: Tool
    key: str | None
    inputs: Any
    size: int
    contact: str | None = None
    authorized: bool = True
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Entry:
    """One line of the books.

    `attempt` counts the requests with this key, this one included (null without a key).
    `performed`: this request had the effect. `repeat`: an earlier one with the same key had, so
    this one was answered like it and did nothing. `status` is null while the answer is not
    given, and for ever when the connection was dropped.
    """

    seq: int
    received_at_ms: int
    receipt: Receipt
    attempt: int | None
    status: int | None = None
    repeat: bool = False
    performed: bool = False
    answer_id: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as `GET /books` shows it."""
        return {
            "seq": self.seq,
            "tool": self.receipt.tool.value,
            "key": self.receipt.key,
            "attempt": self.attempt,
            "receivedAt": self.received_at_ms,
            "inputs": self.receipt.inputs,
            "status": self.status,
            "repeat": self.repeat,
            "performed": self.performed,
            "authorized": self.receipt.authorized,
            "id": self.answer_id,
            **self.receipt.more,
        }


@dataclass(slots=True)
class _Known:
    """What is remembered of an idempotency key."""

    attempts: int = 0
    answer_id: str | None = None
    fingerprint: bytes = b""


def _fingerprint(inputs: Any) -> bytes:
    return hashlib.sha256(orjson.dumps(inputs, option=orjson.OPT_SORT_KEYS)).digest()


class Books:
    """Everything that the sandbox was sent. Emptying them forgets no idempotency key and no count.

    Args:
        clock: tells the time in milliseconds since the epoch.
        max_entries: how many requests are kept.
        max_bytes: how many bytes of inputs are kept.

    """

    def __init__(
        self,
        clock: Callable[[], int] = now_ms,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._seq = 0
        self._effects = dict.fromkeys(Tool, 0)
        self._keys: OrderedDict[tuple[Tool, str], _Known] = OrderedDict()
        self.dropped = 0

    def enter(self, receipt: Receipt) -> Entry:
        """Write down a request, dropping the oldest lines where the books are full."""
        self._seq += 1
        attempt = None
        if receipt.key is not None:
            known = self._recall(receipt.tool, receipt.key)
            known.attempts += 1
            attempt = known.attempts
        entry = Entry(self._seq, self._clock(), receipt, attempt)
        self._entries.append(entry)
        self._bytes += receipt.size
        # The newest line always stays, however large: the body limit bounds it.
        while len(self._entries) > 1 and self._is_full():
            self._bytes -= self._entries.popleft().receipt.size
            self.dropped += 1
        return entry

    def perform(self, entry: Entry) -> str:
        """Have the effect that a request asks for, unless its key already had it.

        Returns the id of the effect, the same one for the same key.

        Raises:
            KeyReused: the key already had an effect, with other inputs.

        """
        receipt = entry.receipt
        if receipt.key is None:
            entry.performed = True
            entry.answer_id = self._next_id(receipt.tool)
            return entry.answer_id
        known = self._recall(receipt.tool, receipt.key)
        fingerprint = _fingerprint(receipt.inputs)
        if known.answer_id is None:
            entry.performed = True
            known.answer_id = self._next_id(receipt.tool)
            known.fingerprint = fingerprint
        elif known.fingerprint != fingerprint:
            raise KeyReused(receipt.key)
        else:
            entry.repeat = True
        entry.answer_id = known.answer_id
        return known.answer_id

    def select(
        self,
        tool: str | None = None,
        contact: str | None = None,
        since_ms: int = 0,
        after_seq: int = 0,
    ) -> Iterator[Entry]:
        """Yield the lines that match, oldest first. `since_ms` is inclusive, `after_seq` not."""
        for entry in self._entries:
            if (
                entry.seq > after_seq
                and entry.received_at_ms >= since_ms
                and (tool is None or entry.receipt.tool == tool)
                and (contact is None or entry.receipt.contact == contact)
            ):
                yield entry

    def effects(self, tool: Tool, contact: str | None = None) -> list[dict[str, Any]]:
        """Return what `tool` really did (no repeats, no failures), each as one JSON object."""
        return [
            {
                **entry.receipt.inputs,
                "id": entry.answer_id,
                "seq": entry.seq,
                "key": entry.receipt.key,
                "at": entry.received_at_ms,
            }
            for entry in self.select(tool, contact)
            if entry.performed
        ]

    def clear(self) -> int:
        """Empty the books; how many lines there were."""
        count = len(self._entries)
        self._entries.clear()
        self._bytes = 0
        self.dropped = 0
        return count

    def _is_full(self) -> bool:
        return len(self._entries) > self._max_entries or self._bytes > self._max_bytes

    def _next_id(self, tool: Tool) -> str:
        self._effects[tool] += 1
        return f"{_ID_PREFIX[tool]}-{self._effects[tool]}"

    def _recall(self, tool: Tool, key: str) -> _Known:
        """Return what is known of a key, as the key used last; the one unused longest goes."""
        known = self._keys.setdefault((tool, key), _Known())
        self._keys.move_to_end((tool, key))
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)
        return known
