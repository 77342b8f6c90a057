"""Recovery: after every rebalance, rows from the changelog, then the wheel, then the flow.

Faust's recovery logs an exception and never ends, swallows those of its callbacks, and keeps the
last record read. Ours, in its place in Faust's TableManager:

1. The worker must own the same partitions of every topic, else it ends itself.
2. A partition that it did not own in the generation just before starts from nothing (its rows may
   be another's past), or from rows that a clean stop left on disk.
3. Partitions that it keeps go on at once (step 5), whatever the others still need.
4. The changelog of the others is read to its end by a consumer of its own. The record with the
   **highest journal position** wins, not the last one (G9); where a lower record follows a higher
   one (a paused worker wrote late) the winner is written again, before compaction drops it. A
   tombstone takes away what came before it.
5. The stages are told (the wheel is rebuilt from the rows), then the streams go to their
   committed offsets, then the flow resumes.

A rebalance may come in between at any step: every step that follows a wait looks whether its
turn has passed, and then leaves the rest to the next one. Any error ends the process; standing
still does too (`progress_at`).
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition
from faust.tables import TableManager
from mode import Service
from mode.utils.locks import Event

from agents_stream.core.session import journal_position
from agents_stream.kafka import metrics
from agents_stream.kafka.appender import Appender, Line, Pending
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.fail_stop import Standstill, exit_code_of, fail_stop
from agents_stream.kafka.forgetting import must_be_read_anew
from agents_stream.kafka.marks import Change
from agents_stream.kafka.row_fold import RowFold
from agents_stream.kafka.starting import JOURNAL_AGAIN, changelog_anew, tell
from agents_stream.kafka.store import PartitionStore
from agents_stream.kafka.topics import SESSIONS_CHANGELOG, load_topics

if TYPE_CHECKING:
    from agents_stream.kafka.consumer import BatchConsumer
    from agents_stream.kafka.engine import Engine
    from agents_stream.kafka.table import SessionTable

log = structlog.get_logger()

_POLL_MS: Final = 200
_REBALANCING: Final = "waiting for the group to give out partitions"


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
        self.step = _REBALANCING
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

    def standing(self) -> list[Standstill]:
        """The step that a recovery under way is at, and since when, for the watchdog."""
        if not self.in_recovery:
            return []
        return [Standstill(f"recovery, {self.step}, has not moved", self.stalled_s())]

    def on_partitions_revoked(self, revoked: Any) -> None:  # noqa: ARG002 - Faust's signature
        """Stop being ready at once; what is under way is of the past."""
        self._next_turn()

    async def on_rebalance(
        self, assigned: Any, revoked: Any, newly_assigned: Any, generation_id: int = 0
    ) -> None:
        """Note what is to be recovered; the work is done outside Faust's callback."""
        del revoked, newly_assigned
        partitions = await self._owned_alike(assigned)
        generation, before = self._last
        kept = partitions & before if generation_id == generation + 1 else frozenset[int]()
        self._last = (generation_id, partitions)
        # At a revoke Faust calls `wait_empty`, which forgets it, only where there were partitions.
        # A proof from before the wait for a dead member is too old for the fence: who went on with
        # it would end at its first record, and be the dead member of the next rebalance.
        self.engine.membership.forget()
        self._next_turn()
        self._wanted.put_nowait(_Wanted(self._turn, partitions, kept))

    def _next_turn(self) -> None:
        self._turn += 1
        self.completed.clear()
        self.in_recovery = True
        self._at(_REBALANCING)

    def _at(self, step: str) -> None:
        self.step = step
        self.progress_at = time.monotonic()

    async def _owned_alike(self, assigned: Iterable[Any]) -> frozenset[int]:
        """The partition numbers owned; they must be the same for every topic of ours."""
        topics = self.app.topics._topic_name_index  # noqa: SLF001 - Faust has no public way
        by_topic: dict[str, set[int]] = {topic: set() for topic in topics}
        for topic, partition in assigned:
            by_topic.setdefault(topic, set()).add(partition)
        sets = {frozenset(partitions) for partitions in by_topic.values()}
        if len(sets) > 1:
            fail_stop(
                await self.engine.ground.explain()
                or "this worker does not own the same partitions of every topic: a worker of "
                "another version, with another topic list, is in the group. Stop all workers of "
                f"one of the versions. It was given {_uneven(by_topic)}"
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
                if not (await self._recover(wanted) and await self._finish(wanted)):
                    continue
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, a restart is the cure
                words = f"recovery failed: {type(error).__name__}: {error}"
                fail_stop(words, error, exit_code_of(error))
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
        """Bring the rows back and let the partitions flow; False where a rebalance came between."""
        for partition in set(self.table.partitions_owned) - wanted.kept:
            self.table.close_partition(partition, complete=False)
        kept = wanted.partitions & set(self.table.partitions_owned)
        fresh = wanted.partitions - kept
        if kept and not await self._resume(kept, wanted.turn):
            return False
        if not fresh:
            return True
        self._at(f"looking at the changelog of the partitions {sorted(fresh)}")
        lost = await self._lost(sorted(fresh))
        if self._turn != wanted.turn:
            return False
        stores = {
            partition: self.table.open(partition, trusted=partition not in lost)
            for partition in sorted(fresh)
        }
        if not await self._replay(stores, lost, wanted.turn):
            for partition in fresh:  # what was found out about them is lost
                self.table.close_partition(partition, complete=False)
            return False
        return await self._resume(fresh, wanted.turn)

    async def _lost(self, partitions: Iterable[int]) -> set[int]:
        """The partitions whose changelog lost records; a changelog that is another ends us."""
        findings = await self.app.consumer.examine_changelog(partitions)
        topic = self.engine.topic(SESSIONS_CHANGELOG)
        told = self.engine.settings.start_from is not None
        rebuilt = any(one.found.beginning < one.found.end for one in findings.values())
        for partition, finding in findings.items():
            if finding.verdict.change is Change.MADE_ANEW and not (rebuilt and told):
                fail_stop(changelog_anew(topic))
            if finding.verdict.change is not Change.FORGOTTEN:
                tell(self.engine.settings.topic_prefix, TopicPartition(topic, partition), finding)
        return {
            number for number, one in findings.items() if one.verdict.change is Change.TAIL_LOST
        }

    async def _replay(self, stores: dict[int, PartitionStore], lost: set[int], turn: int) -> bool:
        self._at(f"reading the changelog of the partitions {sorted(stores)}")
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
                found, now_ms = store.resume_offset() or 0, self.engine.clock.now_ms()
                if found > ends[tp]:
                    # Of this changelog, by the marker's incarnation: so it has lost its tail.
                    lost.add(tp.partition)
                if found and await must_be_read_anew(reader, tp, found, ends[tp], now_ms):
                    self.table.close_partition(tp.partition, complete=False)
                    tps[tp] = stores[tp.partition] = self.table.open(tp.partition, trusted=False)
                    found = 0
                reader.seek(tp, max(found, beginnings[tp]))
            beaten, last = await self._read(reader, tps, ends)
        finally:
            await reader.stop()
        if beaten and not await self._write_winners(topic, stores, beaten, turn):
            return False
        for tp in tps:
            self.table.changelog_offsets[tp.partition] = ends[tp]
            self.engine.ground.writes((tp.topic, tp.partition), ends[tp])
        for partition in lost:
            self._read_journal_again(partition, last.get(partition))
        return True

    def _read_journal_again(self, partition: int, last: bytes | None) -> None:
        """The changelog lost its tail: what its records were made of is applied once more.

        What was lost came after the last record that is left, so it was made of entries from the
        same pass or later ones. Entries that a record has applied already change nothing.
        """
        begin = max(0, journal_position(last)[1] - JOURNAL_AGAIN) if last else 0
        self.engine.journal_again[partition] = begin
        log.warning("the journal is read again from before the loss", partition=partition, at=begin)

    async def _read(
        self, reader: Any, tps: dict[TopicPartition, PartitionStore], ends: dict[Any, int]
    ) -> tuple[dict[int, set[bytes]], dict[int, bytes]]:
        """Apply the changelog up to `ends`.

        Returns:
            The keys for which a lower record came later, and the last record of each partition.

        """
        folds = {tp: RowFold(store.get) for tp, store in tps.items()}
        last: dict[int, bytes] = {}
        unfinished = {tp for tp in tps if await reader.position(tp) < ends[tp]}
        while unfinished:
            fetched = await reader.getmany(timeout_ms=_POLL_MS)
            for tp, records in fetched.items():
                self.progress_at = time.monotonic()
                for record in records:
                    if record.key is not None:
                        folds[tp].take(record.key, record.value)
                        last[tp.partition] = record.value or last.get(tp.partition, b"")
                tps[tp].put_many(folds[tp].drain())
                await asyncio.sleep(0)
            unfinished = {tp for tp in unfinished if await reader.position(tp) < ends[tp]}
            self.step = f"reading the changelog of the partitions {_numbers(unfinished)}"
        unreadable = [key for fold in folds.values() for key in fold.unreadable]
        if unreadable:
            sessions = ", ".join(repr(key.decode(errors="replace")) for key in unreadable[:3])
            fail_stop(
                f"{len(unreadable)} records of the changelog cannot be read ({sessions}): "
                "`agents-stream timers rebuild` repairs them from the journal"
            )
        return {tp.partition: fold.beaten for tp, fold in folds.items() if fold.beaten}, last

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
        self._at("writing winners again")
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

    async def _resume(self, partitions: frozenset[int], turn: int) -> bool:
        """Tell the stages of partitions whose rows are back, and let them flow."""
        consumer: BatchConsumer = self.app.consumer
        for hook in self.engine.assign_hooks:
            for partition in sorted(partitions):
                self._at(f"building the wheel of partition {partition}")
                await hook(partition)
        self._at("waiting for a good heartbeat")
        await self.engine.membership.prove()
        if self._turn != turn:
            return False
        self._at(f"asking for the committed offsets of the partitions {sorted(partitions)}")
        await consumer.perform_seek(partitions)
        if self._turn != turn:
            return False
        consumer.resume_partitions(consumer.inputs_of(partitions))
        await self._flow()
        return True

    async def _flow(self) -> None:
        """Open the flow, once a turn: Faust empties the streams' queues when it is resumed."""
        if not self.app.flow_control.is_active():
            self.app.flow_control.resume()
        self.app.consumer.resume_flow()
        await self.app._fetcher.maybe_start()  # noqa: SLF001 - as Faust's own recovery does

    async def _finish(self, wanted: _Wanted) -> bool:
        """What Faust's recovery does at its end."""
        await self.engine.membership.prove()
        if self._turn != wanted.turn:
            return False
        await self.app.on_rebalance_complete.send()
        if self._turn != wanted.turn:
            return False
        await self._flow()
        self.in_recovery = False
        self.completed.set()
        self.tables.on_actives_ready()
        self.tables.on_standbys_ready()
        self.app.on_rebalance_end()
        return True


def _uneven(by_topic: Mapping[str, set[int]]) -> str:
    """What was given, in as few words as tell the difference."""
    alike: dict[tuple[int, ...], list[str]] = {}
    for topic, partitions in sorted(by_topic.items()):
        alike.setdefault(tuple(sorted(partitions)), []).append(topic)
    return "; ".join(
        f"{list(partitions)} of {', '.join(topics[:3])}{' ...' if len(topics) > 3 else ''}"  # noqa: PLR2004
        for partitions, topics in alike.items()
    )


def _numbers(tps: Iterable[TopicPartition]) -> list[int]:
    return sorted(tp.partition for tp in tps)


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
