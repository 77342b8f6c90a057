"""The table `sessions`: rows by partition, written only after the changelog has them."""

from pathlib import Path

import orjson
import pytest

from agents_stream.kafka.engine import create_app
from agents_stream.kafka.row_fold import later
from agents_stream.kafka.table import TABLE_NAME, SessionTable
from tests.kafka.fakes import World


def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: str) -> SessionTable:
    """The table of an app that is not started."""
    world = World.made(monkeypatch, store=store, data_dir=tmp_path)
    table = create_app(world.engine).Table(TABLE_NAME, key_type=bytes, value_type=bytes)
    assert isinstance(table, SessionTable)
    return table


def row(timestamp: int, offset: int) -> bytes:
    """As much of a record as is compared."""
    return orjson.dumps({"journal_timestamp": timestamp, "journal_offset": offset})


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
async def test_rows_belong_to_their_partition(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: str
) -> None:
    """Faust's table mixes partitions; here one key may stand in two of them."""
    table = made(monkeypatch, tmp_path, store)
    table.open(0)
    table.open(1)
    table.install(0, {b"k": b"zero"}, 5)
    table.install(1, {b"k": b"one"}, 9)
    assert [table.row(partition, b"k") for partition in (0, 1, 2)] == [b"zero", b"one", None]
    assert list(table.rows(1)) == [(b"k", b"one")]
    table.close_partition(0, complete=False)
    assert table.row(0, b"k") is None
    with pytest.raises(KeyError):
        table.install(0, {b"k": b"late"}, 6)
    table.close_partition(1, complete=True)


async def test_only_a_complete_partition_is_found_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """G9: a revoked partition's rows are somebody's past; a clean stop's are the present."""
    table = made(monkeypatch, tmp_path, "rocksdb")
    for partition in (0, 1):
        table.open(partition)
        table.install(partition, {b"k": b"v"}, 5)
    table.close_partition(0, complete=True)
    table.close_partition(1, complete=False)
    again = made(monkeypatch, tmp_path, "rocksdb")
    assert [again.open(partition).resume_offset() for partition in (0, 1)] == [5, None]
    assert [again.row(partition, b"k") for partition in (0, 1)] == [b"v", None]


async def test_rows_whose_recovery_did_not_end_are_not_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stop during recovery leaves no marker: nobody knows how far the rows are."""
    table = made(monkeypatch, tmp_path, "rocksdb")
    table.open(0).put_many({b"k": b"v"})
    table.close_partition(0, complete=True)
    assert made(monkeypatch, tmp_path, "rocksdb").open(0).resume_offset() is None


async def test_an_ack_without_an_offset_moves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A duplicate's ack says -1: the rows are complete at least up to the one before."""
    table = made(monkeypatch, tmp_path, "memory")
    table.open(0)
    table.install(0, {b"k": b"v"}, 5)
    table.install(0, {b"k": b"w"}, -1)
    assert (table.changelog_offsets, table.row(0, b"k")) == ({0: 5}, b"w")


def test_the_later_time_wins_then_the_higher_offset() -> None:
    """DESIGN §3: recovery compares (time, offset); an equal record is not later."""
    assert later(row(1, 1), None)
    assert later(row(2, 0), row(1, 9))
    assert later(row(1, 2), row(1, 1))
    assert not later(row(1, 1), row(1, 1))
    assert not later(row(1, 9), row(2, 0))
