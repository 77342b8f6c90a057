"""Where a worker keeps its rows: bytes by session id, one store per partition.

Two kinds: `memory`, a dict; and `rocksdb`, one database per partition under DATA_DIR, with bounds
on its memory (RocksDB's defaults are 2 GiB of cache a partition). Neither is trusted: rows come
from the changelog, and the rows of a RocksDB that was not closed cleanly are dropped, since they
may be ahead of it.
"""

import shutil
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import orjson
import structlog
from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteBatch

log = structlog.get_logger()

_CLEAN: Final = "clean.json"
_BLOCK_CACHE_BYTES: Final = 8 * 1024 * 1024
_WRITE_BUFFER_BYTES: Final = 4 * 1024 * 1024
_KEYS_AT_ONCE: Final = 4_000


class PartitionStore(Protocol):
    """The rows of one partition."""

    def get(self, key: bytes) -> bytes | None:
        """The row of `key`."""

    def put_many(self, rows: Mapping[bytes, bytes | None]) -> None:
        """Write rows; None takes one away."""

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All rows."""

    def keys(self) -> Iterator[bytes]:
        """All keys. It may be left standing for a while: it ends where the store is closed."""

    def __len__(self) -> int: ...

    def resume_offset(self) -> int | None:
        """The changelog offset up to which the rows found on disk are complete, or None."""

    def close(self, changelog_offset: int | None) -> None:
        """Put the store away. `changelog_offset`: the rows equal the changelog up to there."""


class MemoryStore:
    """Rows in a dict; nothing outlives the process."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        """The row of `key`."""
        return self._rows.get(key)

    def put_many(self, rows: Mapping[bytes, bytes | None]) -> None:
        """Write rows; None takes one away."""
        for key, row in rows.items():
            if row is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = row

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All rows, by key."""
        yield from list(self._rows.items())

    def keys(self) -> Iterator[bytes]:
        """All keys, as of now."""
        yield from list(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def resume_offset(self) -> int | None:
        """Nothing is found on disk."""
        return None

    def close(self, changelog_offset: int | None) -> None:  # noqa: ARG002 - the interface's
        """Forget the rows."""
        self._rows.clear()


class RocksStore:
    """Rows in a RocksDB. A marker written at a clean close says how far they are complete.

    `incarnation` names the one changelog that the rows belong to: the cluster's id and the topic's.
    A name and an address do not: another cluster may answer there, or a topic be made anew.
    """

    def __init__(self, path: Path, incarnation: str, *, trusted: bool = True) -> None:
        self._path = path
        self._incarnation = incarnation
        self._why = "not closed cleanly"
        self._resume = self._take_marker()
        if not trusted:
            self._resume, self._why = None, "the changelog tells no more what became of them"
        if self._resume is None and path.exists():
            log.warning("rows dropped", store=path.name, why=self._why)
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = Rdict(str(path), _options())
        self._closed = False
        self._count = sum(1 for _ in self._db.keys())  # noqa: SIM118 - Rdict is no dict

    def get(self, key: bytes) -> bytes | None:
        """The row of `key`."""
        row: bytes | None = self._db.get(key)
        return row

    def put_many(self, rows: Mapping[bytes, bytes | None]) -> None:
        """Write rows, all or none; None takes one away."""
        batch = WriteBatch(raw_mode=True)
        for key, row in rows.items():
            self._count += (row is not None) - (key in self._db)
            if row is None:
                batch.delete(key)
            else:
                batch.put(key, row)
        self._db.write(batch)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All rows, by key."""
        yield from self._db.items()

    def keys(self) -> Iterator[bytes]:
        """All keys, by key.

        No iterator of the database lives between two steps: it would keep the lock of a store
        that is closed meanwhile, and the partition could not be opened again.
        """
        start = b""
        while not self._closed and (keys := self._some_keys(start)):
            yield from keys
            start = keys[-1] + b"\x00"

    def _some_keys(self, start: bytes) -> list[bytes]:
        found: Iterator[Any] = self._db.keys(from_key=start)
        return list(islice(found, _KEYS_AT_ONCE))

    def __len__(self) -> int:
        return self._count

    def resume_offset(self) -> int | None:
        """How far the rows found on disk are complete."""
        return self._resume

    def close(self, changelog_offset: int | None) -> None:
        """Close; the marker is written last, and only if the rows are complete."""
        self._closed = True
        self._db.close()
        if changelog_offset is not None:
            marker = {"incarnation": self._incarnation, "offset": changelog_offset}
            self._marker.write_bytes(orjson.dumps(marker))

    @property
    def _marker(self) -> Path:
        return self._path.with_name(f"{self._path.name}.{_CLEAN}")

    def _take_marker(self) -> int | None:
        """Read the marker and remove it: from now on the rows may run ahead of it."""
        if not self._marker.exists():
            return None
        try:
            marker = orjson.loads(self._marker.read_bytes())
        except orjson.JSONDecodeError:
            marker = None
        self._marker.unlink()
        match marker:
            case {"incarnation": self._incarnation, "offset": int(offset)} if self._path.exists():
                return offset
            case {"incarnation": str(other)}:
                self._why = f"of another cluster or topic: {other}, here is {self._incarnation}"
        return None


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)  # noqa: FBT003 - rocksdict's signature
    options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(2)
    options.set_max_open_files(64)
    options.set_compression_type(DBCompressionType.lz4())
    blocks = BlockBasedOptions()
    blocks.set_block_cache(Cache(_BLOCK_CACHE_BYTES))
    options.set_block_based_table_factory(blocks)
    return options
