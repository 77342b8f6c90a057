"""Batches that expand, lie or are no UTF-8, unpacked without Kafka and within bounds (G10)."""

import hashlib
import tracemalloc
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.record.memory_records import _MemoryRecordsPy
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.kafka import unpacking
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.decompression import MAX_UNPACKED_BYTES
from agents_stream.kafka.unpacking import (
    KEPT_OF_CUT,
    MAX_HEADERS,
    MAX_KEY_BYTES,
    MAX_TAKEN_BYTES,
    MAX_VALUE_BYTES,
    RECORD_OVERHEAD,
    BoundedFetch,
    BoundedRecords,
    Cut,
    weight,
)
from agents_stream.settings import Settings
from tests.hostile.batches import CODECS, Raw, batch, bomb, sealed

MIB = 1024 * 1024
CONTENTS = st.none() | st.binary(max_size=40)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=9).map(str.encode)
RAWS = st.builds(Raw, CONTENTS, CONTENTS, st.lists(st.tuples(NAMES, CONTENTS), max_size=3))


def unpacked(*batches: bytes) -> list[Any]:
    """All records of a fetch, as aiokafka's consumer would walk over them."""
    records = BoundedRecords(b"".join(batches))
    found = []
    while records.has_next():
        one = records.next_batch()
        assert one.validate_crc()
        found += list(one)
    return found


def shown(records: Sequence[Any]) -> list[Any]:
    """What matters of records, from whichever parser."""
    return [
        (one.offset, one.timestamp, one.timestamp_type, one.key, one.value, list(one.headers))
        for one in records
    ]


@given(st.lists(RAWS, min_size=1, max_size=9), st.sampled_from(sorted(CODECS)), st.booleans())
def test_an_ordinary_batch_is_read_as_aiokafka_reads_it(
    raws: list[Raw],
    codec: str,
    ours: bool,  # noqa: FBT001 - drawn by hypothesis
) -> None:
    """Whatever the codec, and by the compiled parser as by ours."""
    raw = batch(raws, codec)
    expected = shown(list(_MemoryRecordsPy(raw).next_batch()))
    with pytest.MonkeyPatch.context() as patch:
        if ours:
            patch.setattr(unpacking, "MAX_PLAIN_BYTES", -1)
        assert shown(unpacked(raw)) == expected


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_bomb_costs_a_bounded_memory_and_no_offset(codec: str) -> None:
    """G10: what expands to more than is allowed is cut; every record keeps its place."""
    raw, count = bomb(codec, record_bytes=MIB, count=100)
    tracemalloc.start()
    found = [(one.offset, type(one.value)) for one in BoundedRecords(raw).next_batch()]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * MAX_UNPACKED_BYTES
    assert [offset for offset, _ in found] == list(range(count))
    whole = [offset for offset, kind in found if kind is bytes]
    assert len(whole) == (0 if codec == "snappy" else 31)  # a snappy block is whole or nothing
    assert {kind for _, kind in found[31:]} == {Cut}


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_large_value_is_cut_and_keeps_its_size_and_digest(codec: str) -> None:
    """SPEC §2: 20 MiB in a compressed batch of a few hundred bytes are reported as they are."""
    value = b"x" * (20 * MIB)
    (found,) = unpacked(batch([Raw(value, b"k")], codec))
    assert isinstance(found.value, Cut)
    assert (found.key, found.value) == (b"k", value[:KEPT_OF_CUT])
    assert found.value.size == len(value)
    assert found.value.sha256 == hashlib.sha256(value).hexdigest()
    (beyond,) = unpacked(bomb("zstd", record_bytes=100 * MIB, count=1)[0])
    assert (len(beyond.value), beyond.value.size) == (KEPT_OF_CUT, 100 * MIB)
    assert beyond.value.sha256 is None


def test_what_our_own_topics_hold_is_never_cut() -> None:
    """4 MiB is the most that a journal, an action or a record of a session takes."""
    (found,) = unpacked(batch([Raw(b"x" * (4 * MIB), b"k" * 300)], "zstd"))
    assert (type(found.value), len(found.value)) == (bytes, 4 * MIB)
    assert MAX_VALUE_BYTES > 4 * MIB


def test_a_header_that_is_no_utf_8_stops_nothing() -> None:
    """G10: brokers take it, aiokafka dies of it, after every restart again."""
    first, second = unpacked(batch([Raw(b"{}", b"k", [(b"\xff\xfe", b"v")]), Raw(b"[]")]))
    assert (first.key, first.value, second.value) == (b"k", b"{}", b"[]")
    assert list(first.headers) == [("\ufffd\ufffd", b"v")]


def test_a_million_headers_are_a_few() -> None:
    """G10: 150 bytes on the wire must not be a hundred megabytes of objects."""
    (found,) = unpacked(batch([Raw(b"{}", None, [(b"", b"")] * 1_000_000)], "zstd"))
    assert (found.value, len(found.headers)) == (b"{}", MAX_HEADERS)


def test_a_giant_key_is_cut() -> None:
    """No session has such a key, and whoever hashes it stands still for seconds."""
    (found,) = unpacked(batch([Raw(b"{}", b"k" * (2 * MIB))]))
    assert isinstance(found.key, Cut)
    assert (found.key.size, found.value) == (2 * MIB, b"{}")
    assert len(found.key) > MAX_KEY_BYTES


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_what_cannot_be_unpacked_keeps_its_offsets(codec: str) -> None:
    """G10: a batch of which nothing can be read is as many letters as it says it has records."""
    found = unpacked(sealed(b"\xff" * 100, 3, codec))
    assert [(one.offset, one.key, one.value) for one in found] == [
        (number, None, b"") for number in range(3)
    ]
    assert all(isinstance(one.value, Cut) and one.value.size is None for one in found)


@given(st.binary(max_size=200), st.sampled_from(sorted(CODECS)), st.integers(1, 5))
def test_any_payload_gives_records_and_never_an_error(
    payload: bytes, codec: str, count: int
) -> None:
    """G10: offsets rise, and none is left out, whatever stands behind a sound header."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpacking, "MAX_PLAIN_BYTES", -1)
        assert len(unpacked(sealed(payload, count, codec))) >= 1


def test_offsets_that_compaction_removed_are_not_invented() -> None:
    """A compacted batch keeps its last offset without its last record."""
    raw = bytearray(batch([Raw(b"x" * (2 * MIB))]))
    raw[23:27] = (9).to_bytes(4, "big")  # the last offset's distance from the first
    assert [one.offset for one in BoundedRecords(bytes(raw)).next_batch()] == [0]


def test_one_call_takes_a_bounded_part() -> None:
    """G11: the rest stays packed, and the position says how far the consumer is."""
    tp = TopicPartition("t", 0)
    state = SimpleNamespace(paused=False, position=0)
    state.consumed_to = lambda offset: setattr(state, "position", offset)
    assignment = SimpleNamespace(active=True, state_value=lambda _: state)
    packed = fetcher.PartitionRecords(
        tp, BoundedRecords(bomb("zstd", MIB, 10)[0]), [], 0, None, None, check_crcs=True,
        isolation_level=1,
    )  # fmt: skip
    fetch = BoundedFetch(tp, assignment=assignment, partition_records=packed, backoff=0)
    sizes = []
    while fetch.has_more():
        taken = fetch.getall()
        assert state.position == (taken[-1].offset + 1 if taken else 10)
        sizes.append(sum(weight(record) for record in taken))
    assert sum(sizes) == 10 * (MIB + RECORD_OVERHEAD)
    assert max(sizes) < MAX_TAKEN_BYTES + MIB


def test_every_client_of_ours_has_bounds() -> None:
    """There is one place from which all of them take their options."""
    client_options(Settings())
    assert fetcher.MemoryRecords is BoundedRecords
    assert fetcher.FetchResult is BoundedFetch
