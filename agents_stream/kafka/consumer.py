"""Faust's consumer, hardened: in the worker's own loop, by batch, committing only what is done.

Faust delivers record by record through a second thread and commits what its books say. Here
(FAUST.md names each hole):

- The aiokafka consumer lives in the worker's event loop: no hop between threads per fetch.
- A fetch is handed on whole, one `Batch` per partition, without a task or callback per record.
- Whatever was fetched is taken at once, so that no partition is left out of the next long poll
  (a partition left out waits for up to the whole fetch wait: the "1.5 s stall").
- A commit is our own done-offset per partition and nothing else (H3, H6), forgotten at a revoke.
- A revoke waits for the stages with a limit, and every batch carries its epoch, so that nothing
  fetched before a rebalance is worked on after it.
- Records of aborted transactions are never delivered (`read_committed`).
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiokafka
import structlog
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata, TopicPartition
from faust.transport.drivers.aiokafka import Consumer, Transport
from faust.types import TP

from agents_stream.kafka.backlog import Backlog
from agents_stream.kafka.fail_stop import exit_code_of, fail_stop
from agents_stream.kafka.ground import Finding
from agents_stream.kafka.in_loop_thread import InLoopThread
from agents_stream.kafka.starting import Starts
from agents_stream.kafka.topics import JOURNAL, SESSIONS_CHANGELOG
from agents_stream.kafka.unpacking import weight

if TYPE_CHECKING:
    from agents_stream.kafka.engine import Engine

log = structlog.get_logger()

POLL_S: Final = 0.1
REVOKE_LIMIT_S: Final = 15.0
COMMIT_LIMIT_S: Final = 3.0  # of a revoke: within the rebalance timeout, after the stages' limit
MAX_SLICE_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Batch:
    """What one fetch brought for one partition.

    `position` is the consumer's next offset: beyond the last record where transaction markers or
    deleted heads follow, so a batch may have no records at all.
    """

    topic: str
    partition: int
    records: tuple[ConsumerRecord, ...]
    position: int
    epoch: int


class BatchConsumer(Consumer):
    """Faust's consumer as described at the top of this module."""

    _thread: InLoopThread

    def __init__(self, transport: "BatchTransport", *args: Any, **kwargs: Any) -> None:
        self.engine: Engine = transport.engine
        self.epoch = 0
        self.polled_at = time.monotonic()
        self._done: dict[TP, int] = {}
        self._committed: dict[TP, int] = {}
        self._positions: dict[TP, int] = {}
        self._backlogs: dict[TP, Backlog] = {}
        self._committing_since: float | None = None
        super().__init__(transport, *args, **kwargs)

    def _new_consumer_thread(self) -> InLoopThread:
        return InLoopThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def kafka(self) -> aiokafka.AIOKafkaConsumer:
        """The aiokafka consumer underneath."""
        return self._thread._ensure_consumer()  # noqa: SLF001 - Faust has no public way

    def done(self, topic: str, partition: int, offset: int) -> None:
        """Everything below `offset` is done: it may be committed, and its memory is free."""
        tp = TP(topic, partition)
        self._done[tp] = offset
        if (backlog := self._backlogs.get(tp)) is None:
            return
        backlog.done(offset)
        if backlog.paused and backlog.size < self.engine.max_backlog_bytes // 2:
            backlog.paused = False
            self.kafka.resume(_aiokafka(tp))

    def stalled_s(self) -> float:
        """How long nothing has been polled although the flow is open, in seconds."""
        # Faust calls the flow active from the start, long before anything is to be polled.
        flows = self.flow_active and self.app.flow_control.is_active()
        return time.monotonic() - self.polled_at if flows else 0.0

    def resume_flow(self) -> None:
        """From now on something is polled."""
        self.polled_at = time.monotonic()
        super().resume_flow()

    def committing_s(self) -> float:
        """How long Kafka has not answered a commit, in seconds."""
        since = self._committing_since
        return 0.0 if since is None else time.monotonic() - since

    def reading(self) -> dict[tuple[str, int], int]:
        """The positions of the partitions that should be read now: none while the flow rests."""
        if not self.flow_active:
            return {}
        return {
            (tp.topic, tp.partition): position
            for tp, position in self._positions.items()
            if position >= 0 and not self._rests(tp)
        }

    def _rests(self, tp: TP) -> bool:
        backlog = self._backlogs.get(tp)
        return backlog is not None and backlog.paused

    def in_hand(self) -> dict[tuple[str, int], float]:
        """Where something is fetched and not done, and when there was progress, monotonic."""
        backlogs = list(self._backlogs.items())
        return {(tp.topic, tp.partition): one.moved_at for tp, one in backlogs if one.fetched}

    # -- fetching ---------------------------------------------------------------------------

    async def _drain_messages(self, fetcher: Any) -> None:
        """Take whatever has been fetched, at once, and hand it to the stages' queues."""
        try:
            while not (self.should_stop or fetcher.should_stop):
                self.polled_at = time.monotonic()
                if not self.flow_active:
                    await asyncio.sleep(POLL_S)
                    continue
                fetched = await self.kafka.getmany(timeout_ms=int(POLL_S * 1_000))
                self._take(fetched)
                if time.monotonic() - self.polled_at > MAX_SLICE_S:
                    await asyncio.sleep(0)  # where much is left to unpack, nothing else lets go
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - Faust would go on without input
            if not self.should_stop:
                words = f"consuming failed: {type(error).__name__}: {error}"
                fail_stop(words, error, exit_code_of(error))

    def _take(self, fetched: Mapping[TopicPartition, list[ConsumerRecord]]) -> None:
        """Hand on what was fetched, unless the flow was stopped meanwhile: then read it again."""
        if self.flow_active:
            self._deliver(fetched)
            return
        for tp, records in fetched.items():
            if tp in self.kafka.assignment():
                self.kafka.seek(tp, records[0].offset)

    def _deliver(self, fetched: Mapping[TopicPartition, list[ConsumerRecord]]) -> None:
        """One batch per partition that brought records or whose position moved."""
        assignment = self.kafka._subscription.subscription.assignment  # noqa: SLF001
        for tp in assignment.tps:
            state = assignment.state_value(tp)
            if tp not in self._positions or not state.has_valid_position:
                continue
            records = fetched.get(tp, [])
            position = state.position
            if not records and position == self._positions[tp]:
                continue
            self._positions[tp] = position
            self._account(TP(*tp), records, position)
            batch = Batch(tp.topic, tp.partition, tuple(records), position, self.epoch)
            for channel in self.app.topics._tp_index[tp]:  # type: ignore[attr-defined] # noqa: SLF001
                # Never full: what may wait is bounded by bytes, in `_account`.
                channel.queue.force_put_nowait(batch)

    def _account(self, tp: TP, records: list[ConsumerRecord], position: int) -> None:
        size = 100
        for record in records:
            size += weight(record)
            if record.timestamp_type == 1:
                self.engine.clock.observe(record.timestamp)
        backlog = self._backlogs.setdefault(tp, Backlog())
        backlog.add(position, size)
        if backlog.size > self.engine.max_backlog_bytes and not backlog.paused:
            backlog.paused = True
            self.kafka.pause(_aiokafka(tp))

    # -- positions --------------------------------------------------------------------------

    async def examine_changelog(self, partitions: Iterable[int]) -> dict[int, Finding]:
        """What has become of the table's changelog since the group last committed on it."""
        changelog = self.engine.topic(SESSIONS_CHANGELOG)
        # Asked with the others: their marks tell which changelog it was.
        tps = [_aiokafka(tp) for tp in self.assignment()]
        wanted = {TopicPartition(changelog, partition) for partition in partitions}
        findings = await self.engine.ground.find(self.kafka, wanted.union(tps))
        return {tp.partition: findings[tp] for tp in wanted}

    async def perform_seek(self, partitions: Collection[int] | None = None) -> None:
        """Go to the committed offsets; where there are none, to the beginning, and commit that.

        From the first assignment on every partition has a committed offset. One without on a
        topic that is not empty has lost it (Kafka forgets a group that was away for a week).
        What else may have changed under the group, and what then: `starting.py`.
        """
        epoch = self.epoch
        ground = self.engine.ground
        wanted = {_aiokafka(tp) for tp in self.inputs_of(partitions)}
        # All are asked: what one mark remembers may be of use to another partition.
        found = await ground.find(self.kafka, map(_aiokafka, self.inputs_of(None)))
        if self.epoch != epoch:
            return  # revoked meanwhile: these positions are nobody's
        findings = {tp: one for tp, one in found.items() if tp in wanted}
        starts = Starts(self.engine, findings)
        starts.decide()
        await starts.rewind_sources(self.kafka)
        for partition in sorted(starts.owing):
            await self.engine.publish_owed(partition)
        if self.epoch != epoch:
            return
        ground.begin(starts.verdicts)
        for tp, verdict in starts.verdicts.items():
            self.kafka.seek(tp, verdict.start)
            self._positions[TP(*tp)] = -1
            self._done[TP(*tp)] = verdict.start
            self._backlogs.pop(TP(*tp), None)
            self._committed.pop(TP(*tp), None)
            self.engine.journal_again.pop(tp.partition, None)
        # What was committed with another mark is committed again, so that all marks agree.
        self._committed |= {
            TP(*tp): finding.found.committed
            for tp, finding in findings.items()
            if finding.found.committed is not None
            and ground.is_current(finding.found.mark, tp.topic)
        }
        await self.commit()

    def inputs_of(self, partitions: Collection[int] | None) -> set[TP]:
        """What is consumed of some partition numbers (or of all): all but the changelog."""
        return {
            tp
            for tp in self.assignment()
            if not self._is_changelog_tp(tp) and (partitions is None or tp.partition in partitions)
        }

    def pause_partitions(self, tps: Any) -> None:
        """Stop fetching; at aiokafka's level too, so that nothing piles up."""
        super().pause_partitions(tps)
        assigned = self.kafka.assignment()
        self.kafka.pause(*(_aiokafka(tp) for tp in tps if tp in assigned))

    def resume_partitions(self, tps: Any) -> None:
        """Fetch again."""
        super().resume_partitions(tps)
        assigned = self.kafka.assignment()
        self.kafka.resume(*(_aiokafka(tp) for tp in tps if tp in assigned))

    # -- commits ----------------------------------------------------------------------------

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002, FBT001, FBT002 - Faust's signature
        """Commit what is done, never more; what Kafka refuses is done again by the next owner."""
        assigned = self.kafka.assignment()
        news = {
            _aiokafka(tp): OffsetAndMetadata(
                offset, self.engine.ground.mark((tp.topic, tp.partition), offset)
            )
            for tp, offset in {**self._done, **self._changelog_ends()}.items()
            if self._committed.get(tp) != offset and tp in assigned
        }
        if not news:
            return False
        self._committing_since = self._committing_since or time.monotonic()
        try:
            await self.kafka.commit(news)
        except (CommitFailedError, IllegalStateError) as error:
            log.info("commit refused, the partitions have moved", error=str(error))
            return False
        except KafkaError as error:
            if not error.retriable:
                fail_stop(f"committing offsets failed: {error}", error)
            log.warning("commit failed, it is tried again", error=str(error))
            return False
        finally:
            self._committing_since = None
        self._committed.update({TP(*tp): meta.offset for tp, meta in news.items()})
        return True

    def _changelog_ends(self) -> dict[TP, int]:
        """How far the changelog has been acknowledged, so that a lost tail is found (G9's rows).

        Only once the journal's place is decided: both are committed in one request, so what the
        table says was written never runs ahead of what will be read again.
        """
        journal = self.engine.topic(JOURNAL)
        changelog = self.engine.topic(SESSIONS_CHANGELOG)
        return {
            TP(changelog, partition): offset
            for table in self.app.tables.values()
            for partition, offset in getattr(table, "changelog_offsets", {}).items()
            if TP(journal, partition) in self._done
        }

    async def wait_empty(self) -> None:
        """At a revoke and at the end: let every stage finish its batch, commit, forget."""
        stages = self.engine.stages
        try:
            async with asyncio.timeout(REVOKE_LIMIT_S):
                for stage in stages:
                    await stage.lock.acquire()
        except TimeoutError:
            fail_stop(f"a stage did not finish its batch within {REVOKE_LIMIT_S:g} s of a revoke")
        try:
            if self._thread._consumer is not None:  # noqa: SLF001
                await self._commit_in_time()
            self.epoch += 1
            self._done.clear()
            self._committed.clear()
            self._positions.clear()
            self._backlogs.clear()
            self.engine.on_revoked()
        finally:
            for stage in stages:
                stage.lock.release()

    async def _commit_in_time(self) -> None:
        """The last commit of a generation: the group waits for it, so not for ever."""
        try:
            async with asyncio.timeout(COMMIT_LIMIT_S):
                await self.commit()
        except TimeoutError:
            log.warning("no commit at the revoke: what was done since the last is done again")

    async def verify_all_partitions_active(self) -> None:
        """Faust's detector reads Faust's books, which we do not keep: see `input_watch.py`."""


class BatchTransport(Transport):
    """Faust's transport with the consumer above."""

    Consumer = BatchConsumer
    engine: "Engine"


def _aiokafka(tp: Any) -> TopicPartition:
    return TopicPartition(tp[0], tp[1])
