"""The composition root of a worker: nothing else constructs its parts.

Engine ─ clock, membership, watchdog        what the parts share
Faust app ─ consumer, table, recovery       kafka/
agents: ingress, sessions, effects          stages/, each over its topics
timers                                      the wheels
web server                                  views/
"""

import asyncio
import math
from typing import Any, Final

import structlog
from aiokafka.errors import KafkaError

from agents_stream.client import AgentsStream
from agents_stream.core.errors import TerminalError
from agents_stream.kafka import metrics, topic_admin
from agents_stream.kafka.appender import Appender, Line, Pending
from agents_stream.kafka.connection import in_our_words
from agents_stream.kafka.engine import Engine, consumer_of, create_app
from agents_stream.kafka.fail_stop import (
    EXIT_DONE,
    end_now,
    exit_code_of,
    fail_stop,
    when_unreachable,
)
from agents_stream.kafka.input_watch import InputWatch
from agents_stream.kafka.letter_watch import LetterWatch
from agents_stream.kafka.members import refuse_other_members
from agents_stream.kafka.resumption import Resumption
from agents_stream.kafka.stage import BatchStage
from agents_stream.kafka.table import TABLE_NAME, SessionTable
from agents_stream.kafka.topics import ACTIONS, CLOCK, JOURNAL, SESSIONS_CHANGELOG, load_topics
from agents_stream.kafka.upkeep import Upkeep
from agents_stream.settings import Settings
from agents_stream.stages.effects import Effects
from agents_stream.stages.ingress import Ingress
from agents_stream.stages.sessions import Sessions
from agents_stream.stages.timers import Timers
from agents_stream.views.server import WebServer
from agents_stream.views.worker_reads import WorkerReads

log = structlog.get_logger()

STOP_LIMIT_S: Final = 25.0
LEAVE_LIMIT_S: Final = 2.0
CLOCK_PROBE_S: Final = 20.0
BROKER_LIMIT_S: Final = 20.0


class Worker:
    """One worker of the cluster: built by the constructor, alive between `start` and `stop`."""

    def __init__(self, settings: Settings, resumption: Resumption | None = None) -> None:
        self.engine = Engine(settings)
        self._resumption = resumption or Resumption(allowed=False)
        self.faust = create_app(self.engine)
        self.table: SessionTable = self._declare_table()
        self.timers = Timers(self.engine)
        self.ingress = Ingress(self.engine, self.faust)
        self.sessions = Sessions(self.engine, self.faust, self.table, self.timers)
        self.effects = Effects(self.engine, self.faust)
        self.reads = WorkerReads(self.engine, self.faust, self.table, self.timers.sizes)
        self.producer = AgentsStream.from_settings(settings)
        self.web = WebServer(settings, self.reads, self.producer)
        self._prober = Appender(settings, self.engine.clock)
        self.letter_watch = LetterWatch(self.engine)
        self.upkeep = Upkeep(self.engine, self.faust, self.table, self.sessions.lock)
        self._tasks: list[asyncio.Task[None]] = []
        self.engine.assign_hooks.append(self._rebuild_wheel)
        metrics.SESSIONS.set_function(self.table.row_count)
        inputs = (spec.name for spec in load_topics().inputs)
        metrics.count_losses_of((*inputs, JOURNAL, ACTIONS))
        self.inputs = InputWatch(
            self.engine, lambda: consumer_of(self.faust), self._declare_agents()
        )

    def _declare_table(self) -> SessionTable:
        changelog = self.faust.topic(
            self.engine.topic(SESSIONS_CHANGELOG), key_type=bytes, value_type=bytes
        )
        table: Any = self.faust.Table(
            TABLE_NAME,
            key_type=bytes,
            value_type=bytes,
            partitions=self.engine.settings.partitions,
            changelog_topic=changelog,
        )
        assert isinstance(table, SessionTable)
        return table

    def _declare_agents(self) -> dict[str, BatchStage]:
        """One Faust agent per stage, over the topics that it consumes: which stage, by topic."""
        stages: dict[str, BatchStage] = {}
        for stage, topics in (
            (self.ingress, self.ingress.inputs),
            (self.sessions, (self.engine.topic(JOURNAL),)),
            (self.effects, (self.engine.topic(ACTIONS),)),
        ):
            channel = self.faust.topic(*topics, key_type=bytes, value_type=bytes)
            self.faust.agent(channel, name=stage.name)(stage.run)
            stages.update(dict.fromkeys(topics, stage))
        return stages

    async def _rebuild_wheel(self, partition: int) -> None:
        await self.timers.rebuild(partition, self.table.partitions_owned[partition])

    async def start(self) -> None:
        """Start everything; returns once the partitions are owned and recovered.

        Raises:
            BrokerUnreachable: Kafka does not answer.
            TerminalError: the topics would break a guarantee, or the port is in use.

        """
        settings = self.engine.settings
        settings.data_dir.mkdir(parents=True, exist_ok=True)  # Faust makes only what is below it
        await self.web.start()
        await asyncio.sleep(self._resumption.pause_s)
        await self._resumption.require_broker(settings, BROKER_LIMIT_S)
        await refuse_broken_topics(settings)
        await refuse_other_members(settings, self._subscribed())
        await self.engine.ground.start()
        self.engine.watchdog.start()
        await self.producer.start()
        await self._prober.start()
        while not self.engine.clock.known:  # the ack of a repeated batch tells no time
            await self._probe_clock()
        await self.letter_watch.start()
        for part in (self.ingress, self.sessions, self.effects, self.timers):
            await part.start()
        self._tasks.append(asyncio.create_task(self._probe_for_ever(), name="clock"))
        self._tasks.append(asyncio.create_task(self._watch_ground(), name="ground"))
        await self._watch()
        await self.faust.start()
        self.upkeep.start()
        self._resumption.ready()
        log.info("worker ready", url=settings.public_url, group=settings.group_id)

    async def _watch(self) -> None:
        """Let the watchdog see all that must move (docs/operations.md names each)."""
        watchdog, consumer = self.engine.watchdog, consumer_of(self.faust)
        tables: Any = self.faust.tables
        watchdog.gauge("polling", consumer.stalled_s)
        watchdog.gauge("committing offsets", consumer.committing_s)
        watchdog.gauge("the timers' task", self.timers.stalled_s)
        watchdog.gauge("faust", lambda: math.inf if self.faust.crashed else 0.0)
        watchdog.watch(tables.recovery.standing)
        await self.inputs.start()
        watchdog.watch(self.inputs.standing)

    async def leave(self) -> None:
        """Prepare for the end in the middle of starting: the group must not wait for a heartbeat.

        What a stage has in hand is finished, and nothing is begun: the locks are kept.
        """
        try:
            async with asyncio.timeout(LEAVE_LIMIT_S):
                for stage in self.engine.stages:
                    await stage.lock.acquire()
                await self.engine.membership.leave()
        except TimeoutError:
            log.warning("the group was not left in time, it will miss this worker")

    async def stop(self) -> None:
        """Finish the batches in hand, commit, leave the group, put the rows away."""
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await self.upkeep.stop()
                consumer = consumer_of(self.faust)
                consumer.stop_flow()
                await consumer.wait_empty()
                tables: Any = self.faust.tables
                await tables.recovery.stop()
                await self.timers.stop()
                for partition in list(self.table.partitions_owned):
                    self.table.close_partition(partition, complete=True)
                await self.faust.stop()
                for part in (self.ingress, self.sessions, self.effects):
                    await part.stop()
                await self._prober.stop()
                await self.letter_watch.stop()
                await self.engine.ground.stop()
                await self.inputs.stop()
                await self.web.stop()
                await self.producer.close()
        except TimeoutError:
            fail_stop(f"the worker did not stop within {STOP_LIMIT_S:g} s")
        self.engine.watchdog.stop()

    def _subscribed(self) -> set[str]:
        """The topics of the group, as every member of it must have them."""
        mine = {*self.ingress.inputs}
        return mine | {self.engine.topic(name) for name in (JOURNAL, ACTIONS, SESSIONS_CHANGELOG)}

    async def _watch_ground(self) -> None:
        """End the process when the ground changes; wait while no broker answers."""
        while True:
            try:
                await self.engine.ground.watch()
            except KafkaError as error:
                log.warning("the topics could not be looked at", error=str(error))

    async def _probe_clock(self) -> None:
        """Append to `session.clock`: the ack tells the broker's time."""
        probe = Pending()
        probe.add(self.engine.topic(CLOCK), 0, Line(None, b"{}"))
        await self._prober.append(probe)

    async def _probe_for_ever(self) -> None:
        """Keep the bound fresh where nothing else is appended."""
        while True:
            await asyncio.sleep(CLOCK_PROBE_S)
            if self.engine.clock.age_ms() > CLOCK_PROBE_S * 1_000:
                try:
                    await self._probe_clock()
                except Exception as error:  # noqa: BLE001 - any failure to append is the same
                    fail_stop(f"the clock probe failed: {error}", error, exit_code_of(error))


async def refuse_broken_topics(settings: Settings) -> None:
    """Refuse to work on topics that would break a guarantee.

    Raises:
        TerminalError: with every difference that matters.

    """
    broken = [item for item in await topic_admin.check(settings) if item.breaks_guarantee]
    if broken:
        words = "; ".join(item.sentence for item in broken[:10])
        raise TerminalError(
            f"the topics would break a guarantee: {words}. Run `agents-stream topics apply` for "
            "what is missing, and mend the rest by hand (`agents-stream topics check` lists it)"
        )


async def run_worker(
    settings: Settings, stop: asyncio.Event, resumption: Resumption | None = None
) -> None:
    """Run a worker until `stop` is set.

    Raises:
        BrokerUnreachable: Kafka stopped answering while the worker was starting.
        TerminalError: it cannot work as configured; the message says what to do.

    """
    resumption = resumption or Resumption(allowed=False)
    when_unreachable(resumption.begin_anew)
    worker = Worker(resumption.settings_of_this_life(settings), resumption)
    starting: asyncio.Task[Any] = asyncio.create_task(worker.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        await worker.leave()
        end_now(EXIT_DONE, "worker stopped while it was starting")
    try:
        await starting
    except KafkaError as error:
        words = in_our_words(settings, error)
        log.warning("Kafka was lost while the worker started", why=str(words))
        resumption.begin_anew()
        raise words from error
    await stopping
    await worker.stop()
