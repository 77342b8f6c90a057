"""Conversations of every flow, each with its own chance, and customers who answer at the deadline.

A conversation says nothing about how it should end: the verifier works that out from what stands
in the topics (`contract.py`).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from tests.chaos.engine import Engine, now_ms
from tests.chaos.history import Sent, Timing

MAX_AT_ONCE: Final = 400
BURST: Final = 20
FULL: Final = {"nombre": "Ana", "telefono": "300", "ciudad": "Cali", "direccion": "Calle 1"}
NEAR_MS: Final = 130
# What a timer and the way of a record cost: where a due time can only be guessed.
GUESSED_HOPS_MS: Final = 25
WORKSPACE: Final = "w-chaos"


class Talk:
    """One conversation: a session, its customer, and what both may do."""

    def __init__(self, engine: Engine, timing: Timing, session: str, chance: random.Random) -> None:
        self._engine = engine
        self.timing = timing
        self.session = session
        self.chance = chance
        self._life = 0

    @property
    def _ids(self) -> dict[str, str]:
        return {"conversationId": f"c-{self.session}", "workspaceId": WORKSPACE}

    async def open(self) -> int:
        """Start the session, or start it afresh; each life has a contact of its own."""
        self._life += 1
        return await self._engine.send(
            "session.started",
            self.session,
            agentId="a-1",
            contactId=f"p-{self.session}-{self._life}",
            mode="intro",
            **self._ids,
        )

    async def collect(self) -> int:
        """Ask for the customer's data."""
        return await self._engine.send("collecting_data.started", self.session, **self._ids)

    async def offer(self) -> int:
        """Offer the packs."""
        packs = ["1x", "2x", "3x"]
        return await self._engine.send(
            "promos.offered", self.session, packOptions=packs, **self._ids
        )

    async def capture(self, count: int = len(FULL)) -> int:
        """Take down some of the customer's data."""
        data = dict(list(FULL.items())[:count])
        return await self._engine.send("data.captured", self.session, data=data)

    async def message(self) -> int:
        """The customer writes."""
        return await self._engine.send(
            "customer.message", self.session, conversationId=f"c-{self.session}", content="hola"
        )

    async def near(self, due_ms: int) -> int:
        """The customer writes about when a deadline is due: just before, or just after."""
        return await self.message_at(due_ms + self.chance.randint(-NEAR_MS, NEAR_MS))

    async def message_at(self, at_ms: int) -> int:
        """The customer writes at a time."""
        await asyncio.sleep(max(0, at_ms - now_ms()) / 1_000)
        return await self.message()

    async def proactive(self) -> int:
        """Send something unasked."""
        kind = self.chance.choice(("reminder", "followup", "timeout_warning"))
        content = self.chance.choice(({}, {"content": ""}, {"content": f"Hola {self.session}"}))
        return await self._engine.send(
            "proactive.send", self.session, messageType=kind, **content, **self._ids
        )

    async def close(self) -> int:
        """The conversation is over."""
        reason = self.chance.choice(("timeout", "completed", "handoff", "cancelled"))
        return await self._engine.send("session.close", self.session, reason=reason)

    async def update(self, **data: Any) -> int:
        """The engine changes mode or state."""
        return await self._engine.send("session.updated", self.session, **data)

    async def broken(self) -> None:
        """Something that is no event, on purpose."""
        topic, value = self.chance.choice(
            (
                ("agent.customer.message", b"{ this is no JSON"),
                ("agent.customer.message", b'{"sessionId": "%s"}' % self.session.encode()),
                ("agent.promos.offered", b'{"name": "agent/unheard.of", "data": {}}'),
                ("agent.session.close", b'{"sessionId": "", "reason": "timeout"}'),
                ("agent.data.captured", b'"' + b"x" * 1_100_000 + b'"'),
            )
        )
        sent = Sent(self.session, topic, "broken", f"broken-{self.session}", broken=True)
        await self._engine.publish(sent, value)

    async def rest(self, low_s: float, high_s: float) -> None:
        """Nothing for a while."""
        await asyncio.sleep(self.chance.uniform(low_s, high_s))


async def silent(talk: Talk) -> None:
    """Asked for data, no answer, perhaps with some data known."""
    await talk.open()
    if talk.chance.random() < 0.5:
        await talk.capture(talk.chance.randint(1, 3))
    await talk.collect()


async def answered(talk: Talk) -> None:
    """Asked for data, answered at the deadline."""
    await talk.open()
    asked_ms = await talk.collect()
    if talk.chance.random() < 0.3:
        await talk.capture(talk.chance.randint(1, 3))
    await talk.near(asked_ms + talk.timing.data_reply_ms)


async def complete(talk: Talk) -> None:
    """All data, then the packs, then an answer at that deadline, or none: the whole way."""
    await talk.open()
    asked_ms = await talk.collect()
    await talk.capture()
    answered_ms = asked_ms + talk.timing.data_reply_ms
    if talk.chance.random() < 0.7:
        answered_ms = await talk.message()
    if talk.chance.random() < 0.6:
        timing = talk.timing
        await talk.near(
            answered_ms + timing.promos_delay_ms + timing.promos_reply_ms + GUESSED_HOPS_MS
        )


async def ordered(talk: Talk) -> None:
    """The packs are offered and nobody answers; perhaps the offer is repeated."""
    await talk.open()
    await talk.offer()
    if talk.chance.random() < 0.2:
        await talk.rest(0.2, 1.0)
        await talk.offer()


async def chosen(talk: Talk) -> None:
    """The packs are offered, the customer chooses at the deadline."""
    await talk.open()
    offered_ms = await talk.offer()
    await talk.near(offered_ms + talk.timing.promos_reply_ms)


async def nudged(talk: Talk) -> None:
    """Messages without being asked, some beside a flow."""
    await talk.open()
    for _ in range(talk.chance.randint(1, 3)):
        await talk.proactive()
        await talk.rest(0.0, 0.5)
    if talk.chance.random() < 0.3:
        await talk.collect()


async def closed(talk: Talk) -> None:
    """Closed in the middle of something, about when its deadline is due; then opened afresh."""
    await talk.open()
    due_ms = await talk.offer() + talk.timing.promos_reply_ms
    if talk.chance.random() < 0.5:
        due_ms = await talk.collect() + talk.timing.data_reply_ms
    at_ms = due_ms + talk.chance.choice((-1_000, -50, 0, 30, 60, 300))
    await asyncio.sleep(max(0, at_ms - now_ms()) / 1_000)
    await talk.close()
    if talk.chance.random() < 0.3:
        await talk.message()
    if talk.chance.random() < 0.6:
        await talk.rest(0.0, 2.0)
        await talk.open()
        await talk.offer()


async def restarted(talk: Talk) -> None:
    """Asked twice: the first run ends, the second goes on."""
    await talk.open()
    await talk.collect()
    await talk.rest(0.1, talk.timing.data_reply_ms / 1_000 + 0.1)
    asked_ms = await talk.collect()
    if talk.chance.random() < 0.5:
        await talk.near(asked_ms + talk.timing.data_reply_ms)


async def updated(talk: Talk) -> None:
    """The engine writes state, some of it with a version that is no more."""
    await talk.open()
    await talk.update(mode="qualifying", state={"score": talk.chance.randint(1, 9)})
    await talk.update(expectedVersion=talk.chance.choice((1, 2)), state={"checked": True})
    await talk.broken()
    await talk.proactive()


Script = Callable[[Talk], Awaitable[None]]
SCRIPTS: Final[Mapping[Script, int]] = {
    silent: 2,
    answered: 4,
    complete: 4,
    ordered: 3,
    chosen: 4,
    nudged: 2,
    closed: 3,
    restarted: 1,
    updated: 1,
}


class Crowd:
    """Begins conversations at a rate until it is told to stop; then lets them end."""

    def __init__(self, engine: Engine, timing: Timing, seed: int, per_second: float) -> None:
        self._engine = engine
        self._timing = timing
        self._seed = seed
        self._per_second = per_second
        self._talks: set[asyncio.Task[None]] = set()
        self.begun = 0
        self.failures: list[BaseException] = []

    async def run(self, seconds: float) -> None:
        """Begin conversations for this long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        chance = random.Random(f"arrivals/{self._seed}")
        while loop.time() < end:
            await asyncio.sleep(chance.expovariate(self._per_second))
            if len(self._talks) < MAX_AT_ONCE:
                self._begin()

    def burst(self) -> None:
        """Begin many at once: what is killed now is in the middle of something."""
        for _ in range(min(BURST, MAX_AT_ONCE - len(self._talks))):
            self._begin()

    def _begin(self) -> None:
        self.begun += 1
        chance = random.Random(f"talk/{self._seed}/{self.begun}")
        talk = Talk(self._engine, self._timing, f"s{self.begun:05d}-{self._seed}", chance)
        [script] = chance.choices(list(SCRIPTS), list(SCRIPTS.values()))
        task = asyncio.create_task(_whole(script, talk))
        self._talks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._talks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)

    @property
    def talking(self) -> int:
        """How many conversations go on."""
        return len(self._talks)

    async def end(self, limit_s: float) -> None:
        """Wait for the conversations' last words.

        Raises:
            TimeoutError: some do not end.

        """
        async with asyncio.timeout(limit_s):
            await asyncio.gather(*self._talks)

    async def cut(self) -> None:
        """End all conversations now."""
        for task in list(self._talks):
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)


async def _whole(script: Script, talk: Talk) -> None:
    await script(talk)
