"""What a fetch brought, unpacked within bounds (docs/decisions/0015-bounded-unpacking.md).

A broker looks into a compressed batch only as far as it must, and its limit on size is one on the
compressed bytes. So 33 KB on the wire may be a gigabyte; a record may have a million headers, or a
header whose name is no UTF-8. aiokafka unpacks a batch whole and gives up on such a name, again
after every restart. Here, for every consumer of our processes:

- At most `MAX_UNPACKED_BYTES` of a batch are unpacked. Records beyond become `Cut` values: they
  keep their offsets, so that each can be put into the dead letters and passed.
- A value or key that is larger than any that we work on is cut at once.
- Of headers the first few are kept, whatever bytes their names are.
- One call takes at most `MAX_TAKEN_BYTES` of a partition; the rest stays packed.

Ordinary batches go through aiokafka's own compiled parser, as before.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch

from agents_stream.kafka.decompression import decompress

MAX_PLAIN_BYTES: Final = 1024 * 1024
"""Up to this size a batch goes through the compiled parser, which keeps everything."""

MAX_VALUE_BYTES: Final = 5 * 1024 * 1024
"""More than the 4 MiB that our own topics take: only inputs have larger values."""

MAX_KEY_BYTES: Final = 64 * 1024
KEPT_OF_CUT: Final = 256 * 1024
MAX_HEADERS: Final = 32
MAX_HEADER_BYTES: Final = 4_096
MAX_TAKEN_BYTES: Final = 4 * 1024 * 1024
RECORD_OVERHEAD: Final = 350
"""What a record costs in memory beside its contents, in bytes, generously."""

_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_LOG_OVERHEAD: Final = struct.calcsize(">qi")
_LENGTH_AT: Final = struct.calcsize(">q")
_ATTRIBUTES_AT: Final = struct.calcsize(">qiibI")
_MAGIC_AT: Final = struct.calcsize(">qii")
_FORMAT_2: Final = 2
_MIN_LENGTH: Final = 14
_AS_IT_CAME: Final = fetcher.MemoryRecords
_CODEC_MASK: Final = 0x07
_APPEND_TIME_MASK: Final = 0x08
_VARINT_BYTES: Final = 10


class Cut(bytes):
    """The beginning of a value or key that was too large to be unpacked whole, or of nothing.

    `size` is how long it is (None: nobody looked), `sha256` its digest (None: it was not read).
    """

    size: int | None
    sha256: str | None

    def __new__(cls, kept: bytes, size: int | None, sha256: str | None = None) -> Self:
        """Keep the beginning."""
        cut = super().__new__(cls, kept)
        cut.size = size
        cut.sha256 = sha256
        return cut


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A record as aiokafka's own parser gives them."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    checksum: None = None


class BoundedRecords:
    """In place of aiokafka's `MemoryRecords`: the batches of one fetch of one partition."""

    def __init__(self, raw: bytes) -> None:
        self._raw = memoryview(raw)
        self._at = 0

    def size_in_bytes(self) -> int:
        """How much was fetched."""
        return len(self._raw)

    def has_next(self) -> bool:
        """Whether there is a whole batch more."""
        return 0 < self._next_size() <= len(self._raw) - self._at

    def next_batch(self) -> Any:
        """The next batch."""
        if not self.has_next():
            return None
        size = self._next_size()
        raw = bytes(self._raw[self._at : self._at + size])
        self._at += size
        if raw[_MAGIC_AT] < _FORMAT_2:  # of an older Kafka: each holds little, and is not hidden
            return _AS_IT_CAME(raw).next_batch()
        return BoundedBatch(raw)

    def _next_size(self) -> int:
        if len(self._raw) - self._at < _LOG_OVERHEAD:
            return 0
        (length,) = struct.unpack_from(">i", self._raw, self._at + _LENGTH_AT)
        if length < _MIN_LENGTH:
            raise CorruptRecordException(f"a batch of {length} bytes has no room for its header")
        return _LOG_OVERHEAD + int(length)


class BoundedBatch:
    """In place of aiokafka's batch; asked for nothing but records it is that batch."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._batch = DefaultRecordBatch(raw)
        self._records: Iterator[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._records is None:
            self._records = _records_of(self._raw)
        return next(self._records)


class BoundedFetch(fetcher.FetchResult):  # type: ignore[misc] # aiokafka has no types
    """In place of aiokafka's `FetchResult`: one call takes a bounded part of what was fetched."""

    _partition_records: Any

    def getall(self, max_records: int | None = None) -> list[Any]:
        """Take records; what is left stays packed until the next call."""
        if not self.check_assignment(self._topic_partition) or not self.has_more():
            return []
        taken: list[Any] = []
        size = 0
        for record in self._partition_records:
            taken.append(record)
            size += weight(record)
            if size >= MAX_TAKEN_BYTES or len(taken) == max_records:
                self._update_position()
                return taken
        self._update_position()
        self._partition_records = None
        return taken


def weight(record: Any) -> int:
    """What a consumer's record costs in memory, in bytes."""
    size = RECORD_OVERHEAD + len(record.value or b"") + len(record.key or b"")
    for name, content in record.headers:
        size += 200 + len(name) + len(content or b"")
    return size


def bound_fetches() -> None:
    """Make every aiokafka consumer of this process unpack within bounds. Twice is no error."""
    fetcher.MemoryRecords = BoundedRecords
    fetcher.FetchResult = BoundedFetch


def _records_of(raw: bytes) -> Iterator[Any]:
    """The records of a batch: by the compiled parser if it is small and plain, else by ours."""
    fields = _HEADER.unpack_from(raw)
    codec = fields[5] & _CODEC_MASK
    payload, whole = memoryview(raw)[_HEADER.size :], True
    if codec:
        payload, whole = decompress(codec, payload)
    if whole and len(payload) <= MAX_PLAIN_BYTES:
        try:
            plain = _plain(raw, payload) if codec else raw
            records = list(DefaultRecordBatch(plain))
        except (CorruptRecordException, UnicodeDecodeError):
            records = None
        if records is not None and all(len(one.headers) <= MAX_HEADERS for one in records):
            return iter(records)
    return _read_records(fields, payload)


def _plain(raw: bytes, payload: memoryview) -> bytes:
    """The batch as it would be without compression; its checksum was checked before."""
    header = bytearray(raw[: _HEADER.size])
    struct.pack_into(">i", header, _LENGTH_AT, _HEADER.size - _LOG_OVERHEAD + len(payload))
    (attributes,) = struct.unpack_from(">h", header, _ATTRIBUTES_AT)
    struct.pack_into(">h", header, _ATTRIBUTES_AT, attributes & ~_CODEC_MASK)
    return bytes(header) + payload


# -- reading records ----------------------------------------------------------------------------


def _read_records(fields: tuple[int, ...], data: memoryview) -> Iterator[Unpacked]:
    """The records of a batch; those that are not there any more are cut to nothing."""
    base, last_delta = fields[0], fields[6]
    by_broker = bool(fields[5] & _APPEND_TIME_MASK)
    at, next_offset = 0, base
    for _ in range(fields[12]):
        try:
            length, at = _varint(data, at)
            body = data[at : at + length]
            record = _read_record(body, fields, length)
        except (IndexError, ValueError):
            break
        at += length
        next_offset = record.offset + 1
        yield record
        if at > len(data):
            break
    else:
        return  # where compaction took the last records, the batch has offsets beyond them
    stamp = fields[8] if by_broker else fields[7]
    for offset in range(next_offset, base + last_delta + 1):
        yield Unpacked(offset, stamp, int(by_broker), None, Cut(b"", None), [])


def _read_record(body: memoryview, fields: tuple[int, ...], length: int) -> Unpacked:
    """A record, its body perhaps broken off.

    Raises:
        IndexError: it is broken off before its value begins.

    """
    by_broker = bool(fields[5] & _APPEND_TIME_MASK)
    delta, at = _varint(body, 1)
    offset_delta, at = _varint(body, at)
    key, at = _content(body, at, MAX_KEY_BYTES)
    value, at = _content(body, at, MAX_VALUE_BYTES)
    return Unpacked(
        offset=fields[0] + offset_delta,
        timestamp=fields[8] if by_broker else fields[7] + delta,
        timestamp_type=int(by_broker),
        key=key,
        value=value,
        headers=_headers(body, at) if len(body) == length else [],
    )


def _content(body: memoryview, at: int, limit: int) -> tuple[bytes | None, int]:
    """A key or a value: whole, or cut where it is larger than `limit` or not all there."""
    size, at = _varint(body, at)
    if size < 0:
        return None, at
    there = body[at : at + size]
    if len(there) < size:
        return Cut(bytes(there[:KEPT_OF_CUT]), size), at + size
    if size > limit:
        digest = hashlib.sha256(there).hexdigest()
        return Cut(bytes(there[:KEPT_OF_CUT]), size, digest), at + size
    return bytes(there), at + size


def _headers(body: memoryview, at: int) -> list[tuple[str, bytes | None]]:
    """The first few headers, as far as they can be read."""
    headers: list[tuple[str, bytes | None]] = []
    try:
        count, at = _varint(body, at)
        for _ in range(min(count, MAX_HEADERS)):
            name, at = _content(body, at, MAX_HEADER_BYTES)
            value, at = _content(body, at, MAX_HEADER_BYTES)
            content = None if value is None else value[:MAX_HEADER_BYTES]
            headers.append(((name or b"")[:MAX_HEADER_BYTES].decode(errors="replace"), content))
    except (IndexError, ValueError):
        pass  # the headers of a record say nothing about the event in it
    return headers


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of a record, and where it ends.

    Raises:
        IndexError: the data ends within it.
        ValueError: it does not end.

    """
    value = 0
    for index in range(_VARINT_BYTES):
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004 - the mark of the last byte
            return (value >> 1) ^ -(value & 1), at + index + 1
    raise ValueError("a number of more than ten bytes")
