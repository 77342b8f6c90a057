"""Where rows are kept: the two stores behave alike, and neither trusts what it finds."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from agents_stream.kafka.store import MemoryStore, RocksStore

keys = st.sampled_from([b"a", b"b", b"bb", b"c"]) | st.binary(min_size=1, max_size=3)
rows = st.dictionaries(keys, st.none() | st.binary(max_size=5), max_size=5)


@settings(max_examples=25, deadline=None)
@given(st.lists(rows, max_size=6))
def test_both_stores_hold_the_same(writes: list[dict[bytes, bytes | None]]) -> None:
    """STORE=memory and STORE=rocksdb differ in nothing that the engine sees."""
    with TemporaryDirectory() as folder:
        memory, rocks = MemoryStore(), RocksStore(Path(folder) / "rows", "here")
        for write in writes:
            memory.put_many(write)
            rocks.put_many(write)
            assert len(memory) == len(rocks)
            assert all(memory.get(key) == rocks.get(key) for key in (*write, b"none"))
        assert dict(memory.items()) == dict(rocks.items())
        assert memory.resume_offset() is rocks.resume_offset() is None
        memory.close(3)
        rocks.close(3)


def test_rows_of_a_clean_stop_are_found_again_with_their_offset(tmp_path: Path) -> None:
    """The changelog is read from there on, once: the marker is gone with the first use."""
    store = RocksStore(tmp_path / "rows", "here")
    store.put_many({b"k": b"v"})
    store.close(17)
    again = RocksStore(tmp_path / "rows", "here")
    assert (again.get(b"k"), len(again), again.resume_offset()) == (b"v", 1, 17)
    again.close(None)
    assert RocksStore(tmp_path / "rows", "here").get(b"k") is None


def test_rows_of_an_unclean_stop_are_dropped(tmp_path: Path) -> None:
    """G9: they may hold what never reached the changelog, or another owner's past."""
    store = RocksStore(tmp_path / "rows", "here")
    store.put_many({b"k": b"v"})
    store._db.close()
    again = RocksStore(tmp_path / "rows", "here")
    assert (again.get(b"k"), again.resume_offset()) == (None, None)
    again.close(None)


def test_rows_of_another_cluster_are_dropped(tmp_path: Path) -> None:
    """Offsets of one cluster say nothing about another."""
    store = RocksStore(tmp_path / "rows", "here")
    store.put_many({b"k": b"v"})
    store.close(17)
    there = RocksStore(tmp_path / "rows", "there")
    assert (there.get(b"k"), there.resume_offset()) == (None, None)
    there.close(None)


def test_a_broken_marker_is_none(tmp_path: Path) -> None:
    """A marker that was half written when the power went says nothing."""
    for broken in (b"", b'{"incarn', b"[]", b'{"incarnation":"here"}'):
        store = RocksStore(tmp_path / "rows", "here")
        store.put_many({b"k": b"v"})
        store.close(17)
        (tmp_path / "rows.clean.json").write_bytes(broken)
        again = RocksStore(tmp_path / "rows", "here")
        assert (again.get(b"k"), again.resume_offset()) == (None, None), broken
        again.close(None)
