"""The table `sessions`: a Faust table whose writes name their partition and are awaited.

Faust's `table[k] = v` queues a changelog record whose delivery nobody sees (H1, H2) and may only be
called while handling one event. Here a write is three explicit steps of the sessions stage: append
to the changelog, wait for the ack, `install`. The rows are the records' bytes, in a store of ours
per partition; the local store never holds a row that is not in the changelog.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import faust
import structlog
from yarl import URL

from agents_stream.kafka.store import MemoryStore, PartitionStore, RocksStore
from agents_stream.kafka.topics import SESSIONS_CHANGELOG

if TYPE_CHECKING:
    from agents_stream.kafka.engine import Engine

log = structlog.get_logger()

TABLE_NAME: Final = "sessions"


class SessionTable(faust.Table[bytes, bytes]):
    """Rows by partition. The partitions that are here are those that this worker owns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine: Engine = self.app.engine  # type: ignore[attr-defined] # set by create_app
        self.partitions_owned: dict[int, PartitionStore] = {}
        self.changelog_offsets: dict[int, int] = {}

    def _new_store(self) -> Any:
        return self._new_store_by_url(URL("memory://"))  # never written; ours are per partition

    def persisted_offset(self, tp: Any) -> int | None:  # noqa: ARG002 - recovery.py asks the store
        """Faust's bookkeeping is not used."""
        return None

    def open(self, partition: int, *, trusted: bool = True) -> PartitionStore:
        """Take a partition's store into use; rows on disk are dropped unless they are trusted."""
        settings = self.engine.settings
        if settings.store == "memory":
            store: PartitionStore = MemoryStore()
        else:
            path = settings.data_dir / "rocksdb" / settings.group_id / f"{TABLE_NAME}-{partition}"
            incarnation = self.engine.ground.incarnation(self.engine.topic(SESSIONS_CHANGELOG))
            store = RocksStore(path, incarnation, trusted=trusted)
        self.partitions_owned[partition] = store
        return store

    def close_partition(self, partition: int, *, complete: bool) -> None:
        """Put a partition's store away; `complete` if its rows equal the changelog."""
        store = self.partitions_owned.pop(partition)
        offset = self.changelog_offsets.pop(partition, None)
        self.engine.ground.forget(self.engine.topic(SESSIONS_CHANGELOG), partition)
        store.close(offset if complete else None)

    def row(self, partition: int, key: bytes) -> bytes | None:
        """A row of an owned partition."""
        store = self.partitions_owned.get(partition)
        return None if store is None else store.get(key)

    def install(self, partition: int, rows: Mapping[bytes, bytes | None], next_offset: int) -> None:
        """Write rows that the changelog has acknowledged up to `next_offset`; None: it is gone."""
        self.partitions_owned[partition].put_many(rows)
        if next_offset >= 0:
            self.changelog_offsets[partition] = next_offset
            self.engine.ground.wrote(self.engine.topic(SESSIONS_CHANGELOG), partition, next_offset)

    def row_count(self) -> int:
        """How many rows this worker owns."""
        return sum(len(store) for store in self.partitions_owned.values())

    def rows(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """All rows of an owned partition."""
        return self.partitions_owned[partition].items()

    def session_keys(self, partition: int) -> Iterator[bytes]:
        """The keys of a partition, as long as it is owned; none of one that is not."""
        store = self.partitions_owned.get(partition)
        return iter(()) if store is None else store.keys()
