"""Recovery: after every rebalance, rows from the changelog, then the wheel, then the flow.

Faust's recovery logs an exception and never ends, swallows those of its callbacks, and keeps the
last record read. Ours, in its place in Faust's TableManager:

1. The worker must own the same partitions of every topic, else it ends itself.
2. A partition that it did not own in the generation just before starts from nothing (its rows may
   be another's past), or from rows that a clean stop left on disk.
3. The changelog is read to its end by a consumer of its own. The record with the **highest
   journal position** wins, not the last one (G9); where a lower record follows a higher one (a
   paused worker wrote late) the winner is written again, before compaction drops it. A tombstone
   takes away what came before it.
4. The stages are told (the wheel is rebuilt from the rows), then the streams go to their
   committed offsets, then the flow resumes.

A rebalance may come in between at any step: every step that follows a wait looks whether its
turn has passed, and then leaves the rest to the next one. Any error ends the process; standing
still does too (`progress_at`).
"""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition
from faust.tables import TableManager
from mode import Service
from mode.utils.locks import Event

from agents_stream.kafka import metrics
from agents_stream.kafka.appender import Appender, Line, Pending
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.fail_stop import fail_stop
from agents_stream.kafka.row_fold import RowFold
from agents_stream.kafka.store import PartitionStore
from agents_stream.kafka.topics import SESSIONS_CHANGELOG, load_topics

if TYPE_CHECKING:
    from agents_stream.kafka.consumer import BatchConsumer
    from agents_stream.kafka.engine import Engine
    from agents_stream.kafka.table import SessionTable

log = structlog.get_logger()

_POLL_MS: Final = 200


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What an assignment asks for. `kept`: owned in the generation just before as well."""

    turn: int
    partitions: frozenset[int]
    kept: frozenset[int]


class ChangelogRecovery(Service):
    """Brings the rows of the assigned partitions back, then lets the streams flow."""

    def __init__(self, app: Any, tables: "SessionTableManager", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.app = app
        self.tables = tables
        self.completed = Event()
        self.in_recovery = False
        self.progress_at = time.monotonic()
        self.lock = asyncio.Lock()
        self.engine.stages.append(self)
        self._turn = 0
        self._wanted: asyncio.Queue[_Wanted] = asyncio.Queue()
        self._last: tuple[int, frozenset[int]] = (-1, frozenset())

    @property
    def engine(self) -> "Engine":
        """What the parts of this worker share."""
        engine: Engine = self.app.engine
        return engine

    @property
    def table(self) -> "SessionTable":
        """The one table."""
        table: SessionTable = next(iter(self.tables.values()))
        return table

    def stalled_s(self) -> float:
        """How long a recovery under way has made no progress, in seconds."""
        return time.monotonic() - self.progress_at if self.in_recovery else 0.0

    def on_partitions_revoked(self, revoked: Any) -> None:  # noqa: ARG002 - Faust's signature
        """Stop being ready at once; what is under way is of the past."""
        self._next_turn()

    async def on_rebalance(
        self, assigned: Any, revoked: Any, newly_assigned: Any, generation_id: int = 0
    ) -> None:
        """Note what is to be recovered; the work is done outside Faust's callback."""
        del revoked, newly_assigned
        partitions = self._owned_alike(assigned)
        generation, before = self._last
        kept = partitions & before if generation_id == generation + 1 else frozenset[int]()
        self._last = (generation_id, partitions)
        self._next_turn()
        self._wanted.put_nowait(_Wanted(self._turn, partitions, kept))

    def _next_turn(self) -> None:
        self._turn += 1
        self.completed.clear()
        self.in_recovery = True
        self.progress_at = time.monotonic()

    def _owned_alike(self, assigned: Iterable[Any]) -> frozenset[int]:
        """The partition numbers owned; they must be the same for every topic of ours."""
        topics = self.app.topics._topic_name_index  # noqa: SLF001 - Faust has no public way
        by_topic: dict[str, set[int]] = {topic: set() for topic in topics}
        for topic, partition in assigned:
            by_topic.setdefault(topic, set()).add(partition)
        sets = {frozenset(partitions) for partitions in by_topic.values()}
        if len(sets) > 1:
            fail_stop(
                "this worker does not own the same partitions of every topic (workers with "
                f"another topic list are running beside it, or a topic was altered): {by_topic}. "
                "Run `agents-stream topics check`"
            )
        return sets.pop() if sets else frozenset()

    @Service.task
    async def _recover_as_wanted(self) -> None:
        while not self.should_stop:
            wanted = await self._wanted.get()
            while not self._wanted.empty():
                newer = self._wanted.get_nowait()
                # Kept is only what was owned all the way, from the rows that are here.
                wanted = replace(newer, kept=newer.kept & wanted.kept)
            started = time.monotonic()
            try:
                if not (await self._recover(wanted) and await self._resume(wanted)):
                    continue
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, a restart is the cure
                fail_stop(f"recovery failed: {type(error).__name__}: {error}", error)
            seconds = time.monotonic() - started
            metrics.RECOVERY_SECONDS.set(seconds)
            log.info(
                "recovered",
                partitions=len(wanted.partitions),
                kept=len(wanted.kept),
                rows=sum(len(store) for store in self.table.partitions_owned.values()),
                seconds=round(seconds, 3),
            )

    async def _recover(self, wanted: _Wanted) -> bool:
        """Bring the rows back and tell the stages; False where a rebalance came in between."""
        for partition in set(self.table.partitions_owned) - wanted.kept:
            self.table.close_partition(partition, complete=False)
        fresh = sorted(wanted.partitions - set(self.table.partitions_owned))
        if fresh:
            stores = {partition: self.table.open(partition) for partition in fresh}
            if not await self._replay(stores, wanted.turn):
                for partition in fresh:  # what was found out about them is lost
                    self.table.close_partition(partition, complete=False)
                return False
        for hook in self.engine.assign_hooks:
            for partition in sorted(wanted.partitions):
                await hook(partition)
                self.progress_at = time.monotonic()
        return True

    async def _replay(self, stores: dict[int, PartitionStore], turn: int) -> bool:
        topic = load_topics().name(SESSIONS_CHANGELOG, self.engine.settings.topic_prefix)
        tps = {TopicPartition(topic, partition): store for partition, store in stores.items()}
        reader = AIOKafkaConsumer(
            **client_options(self.engine.settings),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_POLL_MS,
        )
        await reader.start()
        try:
            reader.assign(list(tps))
            beginnings = await reader.beginning_offsets(list(tps))
            ends = await reader.end_offsets(list(tps))
            for tp, store in tps.items():
                found = store.resume_offset()
                start = beginnings[tp] if found is None else max(found, beginnings[tp])
                if start > ends[tp]:
                    fail_stop(f"the rows on disk are ahead of {topic}: is this another cluster?")
                reader.seek(tp, start)
            beaten = await self._read(reader, tps, ends)
        finally:
            await reader.stop()
        if beaten and not await self._write_winners(topic, stores, beaten, turn):
            return False
        for tp in tps:
            self.table.changelog_offsets[tp.partition] = ends[tp]
        return True

    async def _read(
        self, reader: Any, tps: dict[TopicPartition, PartitionStore], ends: dict[Any, int]
    ) -> dict[int, set[bytes]]:
        """Apply the changelog up to `ends`; the keys for which a lower record came later."""
        folds = {tp: RowFold(store.get) for tp, store in tps.items()}
        unfinished = set(tps)
        while unfinished:
            fetched = await reader.getmany(timeout_ms=_POLL_MS)
            for tp, records in fetched.items():
                self.progress_at = time.monotonic()
                for record in records:
                    if record.key is not None:
                        folds[tp].take(record.key, record.value)
                tps[tp].put_many(folds[tp].drain())
                await asyncio.sleep(0)
            unfinished = {tp for tp in unfinished if await reader.position(tp) < ends[tp]}
        unreadable = [key for fold in folds.values() for key in fold.unreadable]
        if unreadable:
            sessions = ", ".join(repr(key.decode(errors="replace")) for key in unreadable[:3])
            fail_stop(
                f"{len(unreadable)} records of the changelog cannot be read ({sessions}): "
                "`agents-stream timers rebuild` repairs them from the journal"
            )
        return {tp.partition: fold.beaten for tp, fold in folds.items() if fold.beaten}

    async def _write_winners(
        self,
        topic: str,
        stores: dict[int, PartitionStore],
        beaten: dict[int, set[bytes]],
        turn: int,
    ) -> bool:
        """Put the highest record after the lower one that followed it.

        A revoke waits for it as for a stage's batch: afterwards the rows may be another's.
        """
        appender: Appender = self.engine.sessions_appender
        await self.engine.membership.prove()
        async with self.lock:
            if self._turn != turn:
                return False
            again = Pending()
            stamp = self.engine.fence_timestamp()
            for partition, keys in beaten.items():
                for key in keys:
                    again.add(topic, partition, Line(key, stores[partition].get(key), (), stamp))
            rows = sum(len(keys) for keys in beaten.values())
            log.warning("winners written again", why="a paused worker wrote late", rows=rows)
            await appender.append(again)
        return True

    async def _resume(self, wanted: _Wanted) -> bool:
        """What Faust's recovery does at its end, in the order that loses nothing."""
        consumer: BatchConsumer = self.app.consumer
        await self.engine.membership.prove()
        if self._turn != wanted.turn:
            return False
        await self.app.on_rebalance_complete.send()
        if wanted.partitions:
            await consumer.perform_seek()
            if self._turn != wanted.turn:
                return False
            consumer.resume_partitions(
                {tp for tp in consumer.assignment() if not consumer._is_changelog_tp(tp)}  # noqa: SLF001
            )
        self.in_recovery = False
        self.completed.set()
        self.app.flow_control.resume()
        consumer.resume_flow()
        await self.app._fetcher.maybe_start()  # noqa: SLF001 - as Faust's own recovery does
        self.tables.on_actives_ready()
        self.tables.on_standbys_ready()
        self.app.on_rebalance_end()
        return True


class SessionTableManager(TableManager):
    """Faust's table manager with the recovery above, and without its second of sleep."""

    _recovery: Any = None

    @property
    def recovery(self) -> Any:
        """The one `ChangelogRecovery`, where Faust keeps a Recovery of its own."""
        if self._recovery is None:
            self._recovery = ChangelogRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery

    async def on_start(self) -> None:
        """Register the changelog with the consumer and be ready for the first assignment."""
        await self._update_channels()
        await self.recovery.start()
