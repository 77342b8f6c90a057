"""A world: brokers, machines, customers and tools, run from a plan until all has settled."""

import asyncio
import random
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from agents_stream.kafka.topics import load_topics
from agents_stream.settings import Settings
from tests.simulation.brokers import Cluster
from tests.simulation.checkers import check
from tests.simulation.customers import Customers
from tests.simulation.groups import Group
from tests.simulation.history import History
from tests.simulation.hosting import Host
from tests.simulation.loop import Machine, Process, SimLoop, Stuck
from tests.simulation.network import Network, Trap, Weather
from tests.simulation.patching import patched
from tests.simulation.plan import Fault, Plan
from tests.simulation.tools import Tools

SETTLE_S: Final = 150.0
CALM_S: Final = 6.0
BACK_S: Final = 3.0  # what was paused has said by then what it still had to say
ASLEEP_S: Final = 700.0
SLOW_S: Final = 0.4


@cache
def _settings() -> Settings:
    """The defaults: reading them takes longer than all that a world changes of them."""
    return Settings()


class World:
    """Everything there is, for one plan."""

    def __init__(self, plan: Plan, *, tell: bool = False) -> None:
        self.plan, self._tell = plan, tell
        self.loop = SimLoop()
        self._luck = random.Random(f"luck {plan.seed}")
        shape = plan.shape
        self.cluster = Cluster(
            self.loop, shape.partitions, shape.skews_ms, lambda: self._luck.random() < 0.3
        )
        self.seen = self.cluster.seen
        self.network = Network(self.loop, random.Random(f"network {plan.seed}"), self.seen)
        self.network.weather = Weather(shape.loss, shape.slow, SLOW_S)
        self.story: list[str] = []
        self.faults: list[str] = []
        self.folder = Path(tempfile.mkdtemp(prefix="simulation-"))
        self.history: History | None = None
        self._producer_ids = 0
        self.calm_since = self.drained_ms = 0.0
        self._settings = self._settings_of_all()
        groups = ("agents-stream", "agents-stream-gateway")
        self.groups = {
            name: Group(self.loop, name, shape.partitions, self._luck, self.seen) for name in groups
        }
        self.tools = Tools(self, random.Random(f"tools {plan.seed}"))
        self.customers = Customers(self, random.Random(f"customers {plan.seed}"))
        self.workers = [self._host(f"worker-{n}", gateway=False) for n in range(shape.workers + 1)]
        self.gateways = [self._host(f"gateway-{n}", gateway=True) for n in range(shape.gateways)]

    def _host(self, name: str, *, gateway: bool) -> Host:
        rng = random.Random(f"{name} {self.plan.seed}")
        return Host(self, name, gateway=gateway, rng=rng)

    # -- what the parts ask of the world ------------------------------------------------------

    def note(self, text: str) -> None:
        """Remember what happened, for whoever reads a failure."""
        self.story.append(f"{self.loop.time():9.3f}  {text}")
        if self._tell:
            sys.stdout.write(f"{self.story[-1]}\n")

    def fault(self, text: str) -> None:
        """A promise is broken."""
        self.note(f"FAULT {text}")
        self.faults.append(text)

    def new_producer_id(self) -> int:
        """An idempotent producer's id, never given twice."""
        self._producer_ids += 1
        return self._producer_ids

    def fetch_is_late(self) -> bool:
        """Whether a topic comes later than the others this time."""
        return self._luck.random() < self.plan.shape.fetch_late

    def late_by_s(self) -> float:
        """By how much."""
        return self._luck.choice((0.003, 0.03, 0.03, 0.4)) * self._luck.random()

    def fetch_limit(self) -> int:
        """How many records of a partition a fetch brings."""
        return self._luck.randint(1, self.plan.shape.fetch_records)

    def settings_of(self, machine: Machine) -> Settings:
        """What a process is told."""
        return self._settings.model_copy(update={"data_dir": self.folder / machine.name})

    def _settings_of_all(self) -> Settings:
        shape = self.plan.shape
        told = {
            "partitions": shape.partitions,
            "store": shape.store,
            "data_reply_timeout": shape.data_reply_ms,
            "promos_delay": shape.promos_delay_ms,
            "promos_reply_timeout": shape.promos_reply_ms,
            "retry_backoff": shape.retry_backoff_ms,
            "whatsapp_url": "http://whatsapp.example/",
            "crm_url": "http://crm.example/",
        }
        return _settings().model_copy(update=told)

    # -- the run ----------------------------------------------------------------------------

    def run(self) -> None:
        """Run the plan to its end; `faults` says what went wrong on the way."""
        try:
            with patched(self):
                asyncio.set_event_loop(self.loop)
                self.loop.run_until_complete(self._live())
                self.history = History.of(self)
                self.faults += check(self.history)
        except Stuck as error:
            self.fault(f"G11: the world does not end: {error}")
        finally:
            self._close()
        self.faults += [f"unexpected: {text}" for text in self.loop.failures]

    def _close(self) -> None:
        asyncio.set_event_loop(None)
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _live(self) -> None:
        for host in [*self.workers[: self.plan.shape.workers], *self.gateways]:
            host.start()
        accidents = [self.loop.create_task(self._accident(one)) for one in self.plan.faults]
        await self.customers.play()
        await asyncio.gather(*accidents)
        await self._settle()
        if self.plan.shape.ending != "settled":
            await self._sleep_long()
        self.drained_ms = self.loop.now_ms
        for host in [*self.workers, *self.gateways]:
            await host.stop_cleanly()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _settle(self) -> None:
        """No more faults; everybody is back; then all must drain in bounded time (G11)."""
        self.network.traps.clear()
        self.network.weather.loss = self.network.weather.slow = self.tools.trouble = 0.0
        for host in [*self.workers, *self.gateways]:
            if host.process is not None:
                host.process.cut_until = 0.0
                host.process.resume()
        self.calm_since = self.loop.time()
        self.note("all faults are over")
        await self.customers.resume_all()
        await asyncio.sleep(BACK_S)
        while not self.drained():
            await asyncio.sleep(0.5)
            if self.loop.time() > self.calm_since + SETTLE_S:
                self.fault(f"G11: not drained after {SETTLE_S:g} s of calm: {self.undrained()}")
                return

    async def _sleep_long(self) -> None:
        """Everything stops for longer than compaction waits, the cleaner runs, all start again."""
        if self.plan.shape.ending == "rolled":
            for host in self.workers:
                if host.wanted:
                    await host.stop_cleanly()
                    host.start()
        hosts = [host for host in [*self.workers, *self.gateways] if host.wanted]
        for host in hosts:
            host.wanted = False
            host.kill("the lights go out")
        await asyncio.sleep(ASLEEP_S)
        self.cluster.compact()
        self.note("all were asleep, and the cleaner has run")
        for host in hosts:
            host.start()
        self.seen["long sleeps"] += 1
        self.calm_since = self.loop.time()
        await asyncio.sleep(CALM_S)
        while not self.drained():
            await asyncio.sleep(0.5)
            if self.loop.time() > self.calm_since + SETTLE_S:
                self.fault(f"G11: not drained {SETTLE_S:g} s after a sleep: {self.undrained()}")
                return

    # -- accidents --------------------------------------------------------------------------

    async def _accident(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_ms / 1_000)
        hosts = self.gateways if fault.gateway else self.workers
        host = hosts[fault.victim % len(hosts)]
        if fault.trap is not None:
            self._lay_trap(fault, host)
            return
        self.note(f"{fault.kind} {host.name} for {fault.span_ms} ms")
        self.seen[f"fault: {fault.kind}"] += 1
        span_s = fault.span_ms / 1_000
        match fault.kind:
            case "outage":
                self.network.weather.outage_until = self.loop.time() + span_s
            case "storm":
                self.network.weather.loss = 0.3
                await asyncio.sleep(span_s)
                self.network.weather.loss = self.plan.shape.loss
            case "slow":
                self.network.weather.slow, self.network.weather.slow_s = 0.1, span_s / 4
                await asyncio.sleep(span_s)
                self.network.weather.slow = self.plan.shape.slow
                self.network.weather.slow_s = SLOW_S
            case "join":
                await self._join(span_s)
            case "lead":
                log = self._luck.choice(list(self.cluster.logs.values()))
                log.lead(self._luck.randrange(len(self.cluster.skews_ms)))
            case "stop":
                await host.stop_cleanly()
                await asyncio.sleep(span_s / 4)
                host.start()
            case _:
                if host.process is not None:
                    self._strike(fault.kind, host.process, fault.span_ms)

    async def _join(self, span_s: float) -> None:
        """One more worker comes, and goes again."""
        extra = self.workers[-1]
        if not extra.wanted:
            extra.start()
            await asyncio.sleep(span_s)
            await extra.stop_cleanly()

    def _lay_trap(self, fault: Fault, host: Host) -> None:
        assert fault.trap is not None

        def spring(process: Process) -> None:
            self.note(f"{fault.kind} {host.name} {fault.moment} {fault.trap}")
            self.seen[f"fault: {fault.kind} {fault.moment} a request"] += 1
            self._strike(fault.kind, process, fault.span_ms)

        expires = fault.kind == "expire"
        trap = Trap(host.name, fault.trap, fault.moment, fault.count, spring, expires)
        self.network.traps.append(trap)

    def _strike(self, kind: str, process: Process, span_ms: int) -> None:
        match kind:
            case "kill":
                process.end("killed")
            case "pause" | "sleep":
                process.pause()
                self.loop.in_world(span_ms / 1_000, self._wake, process, kind, span_ms)
            case "cut":
                process.cut_until = self.loop.time() + span_ms / 1_000

    def _wake(self, process: Process, kind: str, span_ms: int) -> None:
        if kind == "sleep":
            process.machine.slept_ms += span_ms
        if process.alive and process.paused:
            self.note(f"{process.name} goes on")
            process.resume()

    # -- progress ---------------------------------------------------------------------------

    def drained(self) -> bool:
        """Whether nothing is left to be done."""
        return not self.undrained()

    def undrained(self) -> list[str]:
        """What is left to be done."""
        left = []
        for (topic, number), log in self.cluster.logs.items():
            role = load_topics()[topic].role
            worker = role == "input" or topic in {"session.journal", "session.actions"}
            if not worker and not topic.startswith(("tool.whatsapp", "tool.crm")):
                continue
            group = self.groups["agents-stream" if worker else "agents-stream-gateway"]
            done, _ = group.offsets.get((topic, number), (0, ""))
            if done < log.end:
                left.append(f"{topic}/{number} at {done} of {log.end}")
        if not left:
            sessions = {step.session for step in self.plan.steps}
            names = [f"s{session}" for session in sorted(sessions)]
            left += [f"a deadline of {one}" for one in names if self.customers.stands(one)]
        return left
