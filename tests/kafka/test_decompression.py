"""Each codec into a bounded buffer."""

import gzip
import os

import cramjam
import pytest
from aiokafka.codec import snappy_encode
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.kafka import decompression
from agents_stream.kafka.decompression import decompress
from tests.hostile.batches import CODECS, compress

PACKED = sorted(set(CODECS) - {"none"})


@given(st.binary(max_size=3_000), st.sampled_from(PACKED), st.integers(0, 3_000))
def test_what_fits_is_whole_and_what_does_not_is_its_beginning(
    body: bytes, codec: str, limit: int
) -> None:
    """G10: never more than the limit, for any content and any limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decompression, "MAX_UNPACKED_BYTES", limit)
        found, whole = decompress(CODECS[codec], memoryview(compress(body, codec)))
    assert whole == (len(body) <= limit)
    assert body.startswith(bytes(found))
    assert len(found) == (len(body) if whole else 0 if codec == "snappy" else limit)


def test_javas_snappy_comes_in_blocks() -> None:
    """With a header of its own, which librdkafka does not write."""
    body = os.urandom(100_000) + bytes(100_000)
    found, whole = decompress(2, memoryview(snappy_encode(body)))
    assert (bytes(found), whole) == (body, True)


def test_several_members_are_one_content() -> None:
    """As decompressors have it."""
    for codec, packed in ((1, gzip.compress(b"one")), (4, bytes(cramjam.zstd.compress(b"one")))):
        found, whole = decompress(codec, memoryview(packed + packed))
        assert (bytes(found), whole) == (b"oneone", True)


@pytest.mark.parametrize("codec", range(1, 8))
def test_what_is_broken_is_not_whole(codec: int) -> None:
    """An unknown codec too."""
    assert decompress(codec, memoryview(b"\xff" * 50)) == (memoryview(b""), False)
