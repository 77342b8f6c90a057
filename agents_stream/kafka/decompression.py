"""The codecs of Kafka's batches, decompressed into at most so many bytes.

aiokafka decompresses whatever comes, however much it becomes. Here a buffer of a fixed size is
filled; what does not fit is never made.
"""

import struct
import zlib
from typing import Any, Final

import cramjam

MAX_UNPACKED_BYTES: Final = 32 * 1024 * 1024
"""As large as the largest record that an input topic takes uncompressed."""

_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER: Final = 16
_FIRST_GUESS: Final = 16
_GROWTH: Final = 8
_NOTHING: Final = memoryview(b"")


def decompress(codec: int, packed: memoryview) -> tuple[memoryview, bool]:
    """Decompress the records of a batch.

    Args:
        codec: the number that Kafka has for it.
        packed: what stands behind the header of the batch.

    Returns:
        As much as is allowed, and whether that is all. What cannot be decompressed is empty.

    """
    try:
        match codec:
            case 1:
                return _gunzip(packed)
            case 2:
                return _unsnap(packed)
            case 3:
                return _into(cramjam.lz4, packed)
            case 4:
                return _into(cramjam.zstd, packed)
            case _:
                return _NOTHING, False
    except (cramjam.DecompressionError, struct.error):
        return _NOTHING, False


def _gunzip(packed: memoryview) -> tuple[memoryview, bool]:
    """One member after the other, as Java's and Python's libraries read them."""
    out, rest, ended = bytearray(), bytes(packed), False
    while rest and len(out) <= MAX_UNPACKED_BYTES:
        member = zlib.decompressobj(wbits=31)
        try:
            out += member.decompress(rest, MAX_UNPACKED_BYTES - len(out) + 1)
        except zlib.error:
            break  # what follows the last member is nobody's
        rest, ended = member.unused_data, member.eof
    return memoryview(out)[:MAX_UNPACKED_BYTES], ended and len(out) <= MAX_UNPACKED_BYTES


def _into(codec: Any, packed: memoryview) -> tuple[memoryview, bool]:
    """Into a buffer of the size allowed: what does not fit is not made."""
    size = _FIRST_GUESS * len(packed)
    while True:
        size = min(size, MAX_UNPACKED_BYTES)
        out = bytearray(size)
        try:
            made = codec.decompress_into(bytes(packed), out)
        except cramjam.DecompressionError as error:
            if "whole buffer" not in str(error):
                raise
            if size == MAX_UNPACKED_BYTES:
                return memoryview(out), False
            size *= _GROWTH
        else:
            return memoryview(out)[:made], True


def _unsnap(packed: memoryview) -> tuple[memoryview, bool]:
    """One block, or many of them as Java's library writes them."""
    if bytes(packed[: len(_XERIAL)]) != _XERIAL:
        block = _unsnap_block(packed, MAX_UNPACKED_BYTES)
        return memoryview(block or b""), block is not None
    out, at = bytearray(), _XERIAL_HEADER
    while at < len(packed):
        (size,) = struct.unpack_from(">i", packed, at)
        at += 4
        block = _unsnap_block(packed[at : at + size], MAX_UNPACKED_BYTES - len(out))
        if size <= 0 or block is None:
            return memoryview(out), False
        out += block
        at += size
    return memoryview(out), True


def _unsnap_block(packed: memoryview, limit: int) -> bytes | None:
    """A block says first how long it is; None where that is too long."""
    block = bytes(packed)
    if cramjam.snappy.decompress_raw_len(block) > limit:
        return None
    return bytes(cramjam.snappy.decompress_raw(block))
