"""Where the production code runs: machines that start workers and gateways, and start them again.

What stands in for Faust is told here in few lines, in the order of `faust/app/base.py`; the
consumer, the recovery, the table and the stages that it would drive are the production ones.
"""

import asyncio
import random
from collections import deque
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Self

from aiokafka.structs import TopicPartition
from faust.types import TP

from agents_stream import app as app_module
from agents_stream.core.errors import AgentsStreamError
from agents_stream.kafka.engine import COMMIT_INTERVAL_S, Engine, consumer_of
from agents_stream.kafka.topics import SESSIONS_CHANGELOG
from agents_stream.stages.gateway import worker as gateway_module
from tests.simulation.loop import Machine, Process, current

if TYPE_CHECKING:
    from tests.simulation.world import World

WATCH_S: Final = 5.0


class Queue:
    """A stage's queue of batches, and the stream over it."""

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()
        self._filled = asyncio.Event()
        self.channel = SimpleNamespace(queue=self)

    def force_put_nowait(self, batch: Any) -> None:
        """Take a batch in."""
        self._waiting.append(batch)
        self._filled.set()

    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def get_nowait(self) -> Any:
        """Take the next one."""
        return self._waiting.popleft()

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        return self._waiting.popleft()


class FaustPart:
    """What Faust does around our consumer and recovery: start, rebalance, commit, stop."""

    def __init__(self, world: "World", app: Any, engine: Engine) -> None:
        self.world, self.app, self.engine = world, app, engine
        self.queues: list[Queue] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._stopping = False
        app.start, app.stop = self.start, self.stop

        async def nothing() -> None:
            return None

        app.on_rebalance_complete = SimpleNamespace(send=nothing)
        self._flows = False
        app.flow_control = SimpleNamespace(is_active=lambda: self._flows, resume=self._resume)
        app._fetcher = SimpleNamespace(maybe_start=self._start_fetching)
        app.on_rebalance_end = lambda: None
        self._fetching: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        """Streams, recovery, the consumer, the commits."""
        app, loop = self.app, asyncio.get_running_loop()
        topics: dict[str, Queue] = {}
        for agent in app.agents.values():
            queue = Queue()
            self.queues.append(queue)
            topics |= dict.fromkeys(agent.channel.topics, queue)
            self._tasks.append(loop.create_task(agent.fun(queue)))
        names = [*topics, self.engine.topic(SESSIONS_CHANGELOG)]
        app.topics._topic_name_index = dict.fromkeys(names)
        app.topics._tp_index = {
            TopicPartition(topic, number): (queue.channel,)
            for topic, queue in topics.items()
            for number in range(self.engine.settings.partitions)
        }
        app.tables._changelogs = {names[-1]: next(iter(app.tables.values()))}
        await app.tables.recovery.start()
        thread = consumer_of(app)._thread
        client: Any = thread._create_worker_consumer(app.transport)
        thread._consumer = client
        self.engine.membership.watch(client)
        self.engine.ground.guard.watch(client)
        client.subscribe(names, self)
        await client.start()
        self._tasks.append(loop.create_task(self._commit_for_ever()))

    async def stop(self) -> None:
        """Leave the group."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await consumer_of(self.app)._thread.stop()

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        """`App._on_partitions_revoked`."""
        if self._stopping:
            return
        consumer = consumer_of(self.app)
        self.app.tables.recovery.on_partitions_revoked(revoked)
        if assignment := consumer.assignment():
            consumer.stop_flow()
            self._flows = False
            consumer.pause_partitions(assignment)
            if self.world.plan.shape.clears_queues:
                for queue in self.queues:
                    queue.clear()
            await consumer.wait_empty()

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """`App._on_partitions_assigned`."""
        if self._stopping:
            return
        consumer = consumer_of(self.app)
        tps = {TP(*tp) for tp in assigned}
        generation = consumer.kafka._coordinator.generation
        self.app.consumer_generation_id = generation
        await asyncio.sleep(0)
        consumer._set_active_tps(tps)
        consumer.pause_partitions(tps)
        await asyncio.sleep(0)
        await self.app.tables.recovery.on_rebalance(tps, set(), set(), generation)

    def _resume(self) -> None:
        """The streams' queues are emptied when Faust opens the flow."""
        self._flows = True
        for queue in self.queues:
            queue.clear()

    async def _start_fetching(self) -> None:
        if self._fetching is None:
            fetcher = SimpleNamespace(should_stop=False)
            work = consumer_of(self.app)._drain_messages(fetcher)
            self._fetching = asyncio.get_running_loop().create_task(work)
            self._tasks.append(self._fetching)

    async def _commit_for_ever(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_INTERVAL_S)
            await consumer_of(self.app).commit()


async def watch_for_ever(watchdog: Any, end: Any) -> None:
    """The watchdog's thread, as a task: who was himself paused is not to blame."""
    process = current()
    assert process is not None
    last = process.monotonic()
    while True:
        await asyncio.sleep(WATCH_S)
        now = process.monotonic()
        if now - last > 2 * WATCH_S:
            watchdog._resumed_at = now
        elif (what := watchdog.stalled()) is not None:
            end(f"watchdog: {what}")
        last = now


class Host:
    """A machine with one worker or gateway, which a supervisor starts again when it ends."""

    def __init__(self, world: "World", name: str, *, gateway: bool, rng: random.Random) -> None:
        self.world, self.name, self.gateway, self.rng = world, name, gateway, rng
        clock_ms, skew_ms = rng.uniform(1e6, 1e9), rng.randint(-90_000, 90_000)
        self.machine = Machine(name, clock_ms, skew_ms)
        self.process: Process | None = None
        self.stop = asyncio.Event()
        self.wanted = False
        self.ends: list[tuple[float, str]] = []

    def start(self) -> None:
        """Start it, and from now on again whenever it ends."""
        self.wanted = True
        self._launch()

    def kill(self, reason: str) -> None:
        """The process ends at once."""
        if self.process is not None:
            self.process.end(reason)

    async def stop_cleanly(self) -> None:
        """SIGTERM, and nobody starts it again; what does not stop is killed."""
        self.wanted = False
        if self.process is None:
            return
        process = self.process
        process.resume()
        self.stop.set()
        for _ in range(400):
            if not process.alive:
                return
            await asyncio.sleep(0.1)
        self.world.fault(f"G11: {self.name} did not stop")
        self.kill("killed: it did not stop")

    def _launch(self) -> None:
        if not self.wanted or self.process is not None:
            return
        self.stop = asyncio.Event()
        self.process = Process(self.name, self.machine, self.world.loop, on_end=self._ended)
        self.world.note(f"{self.name} starts")
        self.process.run(self._run(self.process, self.stop), self.name)

    def _ended(self, process: Process) -> None:
        self.world.note(f"{self.name} ends: {process.reason}")
        self.ends.append((self.world.loop.time(), process.reason))
        self.process = None
        if self.wanted:
            self.world.loop.in_world(self.rng.uniform(0.1, 2.0), self._launch)

    async def _run(self, process: Process, stop: asyncio.Event) -> None:
        settings = self.world.settings_of(self.machine)
        work = gateway_module.run_gateway if self.gateway else app_module.run_worker
        try:
            await work(settings, stop)
        except AgentsStreamError as error:
            process.end(f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - the process would end with a traceback
            process.end(f"crashed: {type(error).__name__}: {error}")
        else:
            process.end("stopped")
