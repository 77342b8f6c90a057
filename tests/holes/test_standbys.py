"""H5: a standby loses rows, and nobody knows until it is promoted."""

from dataclasses import replace

import pytest

from agents_stream.core.session import SessionRecord, encode_record
from agents_stream.settings import Settings
from tests.holes.conftest import Found
from tests.holes.ours import our_world
from tests.holes.plain import plain_world

pytestmark = pytest.mark.by_name
HOLE = "H5 a worker with a standby leaves"
ROWS = 2_000  # in each of two partitions


async def test_faust_promotes_a_standby_with_gaps(kafka_settings: Settings, found: Found) -> None:
    """Faust as it comes: the end of a recovery empties the queue from which the standby is fed.

    The program follows the changelog with a callback (half a millisecond a row) and has an
    `on_recover` of 1.5 s; both are offered by Table, and make what is otherwise a race certain.
    """
    async with plain_world(kafka_settings, partitions=2) as world:
        await world.create(world.changelog, cleanup_policy="compact")
        for partition in (0, 1):
            for number in range(ROWS):
                key = b'"%d-%d"' % (partition, number)
                await world.producer.send(world.changelog, b'"v"', key=key, partition=partition)
        await world.producer.flush()
        first = await world.ready("standby")
        [alone] = await first.until("recovered")
        assert alone["rows"] == 2 * ROWS
        second = await world.ready("standby")
        [joined] = await second.until("recovered")
        [other] = {0, 1} - set(joined["owned"])
        await world.send("new", partition=other)  # whose row moves the standby past the gap
        await second.until("following", offset=ROWS)
        first.end()
        promoted = (await second.until("recovered", count=2))[-1]
        assert promoted["owned"] == [0, 1]
        lost = 2 * ROWS + 1 - promoted["rows"]
        assert lost > 0
    found(f"{lost} of {2 * ROWS + 1} rows lost by the worker that took over")


async def test_ours_has_no_standbys_and_all_rows(kafka_settings: Settings, found: Found) -> None:
    """G1, G9: whoever takes a partition over reads its changelog from the beginning."""
    disk = {"AGENTS_STREAM_STORE": "rocksdb"}
    async with our_world(kafka_settings, partitions=2) as world:
        for partition in (0, 1):
            for number in range(ROWS):
                name = f"{partition}-{number}"
                record = replace(SessionRecord(name), journal_offset=0, journal_timestamp=0)
                await world.cluster.producer.send(
                    world.changelog,
                    encode_record(record),
                    key=name.encode(),
                    partition=partition,
                )
        await world.cluster.producer.flush()
        first = await world.worker(**disk).ready()
        await world.said(first, f"rows={2 * ROWS}")
        second = await world.worker(**disk).ready()
        await world.said(second, f"rows={ROWS} ")
        assert first.end() == 0
        await world.said(second, f"rows={2 * ROWS}")
    found(f"all {2 * ROWS} rows there, read from the changelog")
