"""Requests on their way: delayed, lost before the broker had them, or lost after it had acted.

Every request of a process is one step that may be its last. A *trap* waits for a request of a kind
and kills or pauses the process just before it is sent, after it has been stuck for a while (what
was acknowledged too early is committed by then), or just after the broker has acted on it. So each
gap between two steps of the protocol is hit, and not only by luck.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from aiokafka.errors import KafkaTimeoutError

from tests.simulation.loop import Process, SimLoop
from tests.simulation.plan import Moment

T = TypeVar("T")
_AGAIN_S: Final = 0.25


class _Lost(Exception):  # noqa: N818 - it says what became of an answer
    """No answer came."""


@dataclass(slots=True, eq=False)
class Trap:
    """At the `count`-th request of `kind`: what happens to the process that sends it."""

    process: str
    kind: str
    moment: Moment
    count: int
    spring: Callable[[Process], None]
    expires: bool = False  # instead: the client gives the request up without having sent it


@dataclass(slots=True)
class Weather:
    """How bad the network is just now."""

    loss: float = 0.0
    slow: float = 0.0
    slow_s: float = 0.0
    outage_until: float = 0.0


class Network:
    """Carries requests from processes to brokers, and answers back."""

    def __init__(self, loop: SimLoop, rng: random.Random, seen: Counter[str]) -> None:
        self.loop = loop
        self.rng = rng
        self.seen = seen
        self.weather = Weather()
        self.traps: list[Trap] = []

    async def ask(
        self, process: Process, kind: str, act: Callable[[], T], limit_s: float = 30.0
    ) -> T:
        """Have a broker do something, again and again until its answer is here.

        Raises:
            KafkaTimeoutError: there was no answer within the limit.
            KafkaError: what the broker answered.

        """
        deadline = self.loop.time() + limit_s
        while True:
            process.check()
            trap = self._trap(process, kind)
            if trap is not None and trap.expires:
                self.seen["batches given up unsent"] += 1
                raise KafkaTimeoutError
            if trap is not None and trap.moment == "stuck":
                await asyncio.sleep(self.rng.uniform(0.1, 0.9))
            if trap is not None and trap.moment != "after":
                trap.spring(process)
                await asyncio.sleep(0)
                process.check()
            try:
                return await self._once(process, act, trap)
            except _Lost:
                if self.loop.time() >= deadline:
                    raise KafkaTimeoutError from None
                await asyncio.sleep(_AGAIN_S)

    async def _once(self, process: Process, act: Callable[[], T], trap: Trap | None) -> T:
        answer: asyncio.Future[T] = self.loop.create_future()
        fate = self.rng.random()
        lost_before = fate < self.weather.loss / 2 or self._unreachable(process)
        lost_after = not lost_before and fate < self.weather.loss

        def arrive() -> None:
            if lost_before or self._unreachable(process):
                self.loop.in_world(self.latency(), _fail, answer, _Lost())
                return
            try:
                result: Any = act()
            except Exception as error:  # noqa: BLE001 - the broker's answer, whatever it is
                self.loop.in_world(self.latency(), _fail, answer, error)
                return
            if trap is not None and trap.moment == "after":
                trap.spring(process)
            if lost_after or self._unreachable(process):
                self.seen["acks lost"] += 1
                self.loop.in_world(self.latency(), _fail, answer, _Lost())
            else:
                self.loop.in_world(self.latency(), _succeed, answer, result)

        self.loop.in_world(self.latency(), arrive)
        return await answer

    def reaches(self, process: Process) -> bool:
        """Whether a process and the brokers reach each other just now."""
        return not self._unreachable(process)

    def loses(self, process: Process) -> bool:
        """Whether one answer to a process gets lost."""
        return self._unreachable(process) or self.rng.random() < self.weather.loss

    def _unreachable(self, process: Process) -> bool:
        now = self.loop.time()
        return now < process.cut_until or now < self.weather.outage_until

    def latency(self) -> float:
        """How long something is on its way, in seconds."""
        if self.weather.slow and self.rng.random() < self.weather.slow:
            return self.rng.random() * self.weather.slow_s
        return 0.000_2 + self.rng.random() * 0.002

    def _trap(self, process: Process, kind: str) -> Trap | None:
        for trap in self.traps:
            if trap.process == process.name and trap.kind == kind:
                trap.count -= 1
                if trap.count <= 0:
                    self.traps.remove(trap)
                    return trap
        return None


def _succeed(answer: "asyncio.Future[Any]", result: object) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: "asyncio.Future[Any]", error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
