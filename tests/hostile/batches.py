"""Kafka batches byte by byte, for records that no client library would write."""

import gzip
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import cramjam
from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import RecordMetadata

CODECS: Final = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_CRC_FROM: Final = struct.calcsize(">qiibI")
_LENGTH_FROM: Final = struct.calcsize(">qi")


@dataclass(frozen=True, slots=True)
class Raw:
    """A record as it will stand in its batch. `headers` are keys and values, both any bytes."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    timestamp_ms: int = 0


def varint(value: int) -> bytes:
    """A signed number as Kafka writes it in records: zigzag, seven bits a byte."""
    left = (value << 1) ^ (value >> 63)
    out = bytearray()
    while left & ~0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)


def batch(records: Sequence[Raw], codec: str = "none", base_ms: int = 1_700_000_000_000) -> bytes:
    """A batch of format 2."""
    body = b"".join(_record(index, record, base_ms) for index, record in enumerate(records))
    return sealed(compress(body, codec), len(records), codec, base_ms)


def compress(body: bytes, codec: str) -> bytes:
    """The records of a batch, compressed."""
    match codec:
        case "gzip":
            return gzip.compress(body, 9)
        case "snappy":
            return bytes(cramjam.snappy.compress_raw(body))
        case "lz4":
            packer = cramjam.lz4.Compressor(level=9, content_checksum=False, block_linked=False)
            packer.compress(body)
            return bytes(packer.finish())
        case "zstd":
            return bytes(cramjam.zstd.compress(body, level=9))
        case _:
            return body


def sealed(payload: bytes, count: int, codec: str, base_ms: int = 1_700_000_000_000) -> bytes:
    """A header before what is compressed already."""
    fields = [CODECS[codec], count - 1, base_ms, base_ms, -1, -1, -1, count]
    whole = bytearray(_HEADER.pack(0, 0, -1, 2, 0, *fields) + payload)
    struct.pack_into(">i", whole, struct.calcsize(">q"), len(whole) - _LENGTH_FROM)
    struct.pack_into(">I", whole, struct.calcsize(">qiib"), calc_crc32c(bytes(whole[_CRC_FROM:])))
    return bytes(whole)


def _record(index: int, record: Raw, base_ms: int) -> bytes:
    delta = record.timestamp_ms - base_ms if record.timestamp_ms else 0
    body = b"\0" + varint(delta) + varint(index) + _nullable(record.key) + _nullable(record.value)
    body += varint(len(record.headers))
    body += b"".join(varint(len(key)) + key + _nullable(value) for key, value in record.headers)
    return varint(len(body)) + body


def _nullable(value: bytes | None) -> bytes:
    return varint(-1) if value is None else varint(len(value)) + value


class Sealed(BatchBuilder):  # type: ignore[misc] # aiokafka has no types
    """A finished batch in the form in which aiokafka's producer takes one."""

    def __init__(self, payload: bytes, count: int) -> None:
        self._buffer = payload
        self._relative_offset = count
        self._closed = True


async def send_raw(
    producer: AIOKafkaProducer, topic: str, partition: int, payload: bytes, count: int
) -> tuple[int, int]:
    """Append a batch with a producer that is not idempotent; the offsets [first, end) it got."""
    acked: Any = await producer.send_batch(Sealed(payload, count), topic, partition=partition)
    metadata: RecordMetadata = await acked
    return metadata.offset, metadata.offset + count


@cache
def bomb(codec: str, record_bytes: int, count: int) -> tuple[bytes, int]:
    """A batch of zeros that is small on the wire; made piece by piece. Also how many records."""
    pieces: list[bytes] = []
    for index in range(count):
        head = b"\0" + varint(0) + varint(index) + varint(-1) + varint(record_bytes)
        pieces += [varint(len(head) + record_bytes + 1) + head, b"", b"\0"]
    zeros = bytes(record_bytes)
    parts = (piece or zeros for piece in pieces)
    match codec:
        case "gzip":
            zipper = zlib.compressobj(9, wbits=31)
            packed = b"".join(zipper.compress(part) for part in parts) + zipper.flush()
        case "zstd" | "lz4":
            module = getattr(cramjam, codec)
            more = {"block_linked": False} if codec == "lz4" else {}
            packer = module.Compressor(level=9, **more)
            for part in parts:
                packer.compress(part)
            packed = bytes(packer.finish())
        case _:
            packed = compress(b"".join(parts), codec)
    return sealed(packed, count, codec), count
