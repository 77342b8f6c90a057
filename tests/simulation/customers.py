"""Customers, engines and operators: whoever publishes events, with every way of doing it wrong."""

import asyncio
import random
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from agents_stream.core.actions import OWN_EVENT_PREFIX
from agents_stream.core.session import REQUIRED_DATA
from agents_stream.kafka.topics import SESSIONS_CHANGELOG, load_topics, partition_for
from tests.simulation.brokers import Draft
from tests.simulation.plan import FLOOD_MS, SHORT_MEMORY, Step

if TYPE_CHECKING:
    from tests.simulation.world import World

POISON: Final = "poison"
BAD: Final = (
    b"\xff\xfe",
    b"{",
    b"[]",
    b'{"sessionId": 7}',
    b'{"a": NaN}',
    b'{"name": "agent/nothing.known", "data": {"sessionId": "s"}}',
    b'{"a": 1, "a": 2}',
    None,
)


@dataclass(slots=True)
class Told:
    """An event that was sent: what the checkers know of it without asking the system."""

    step: Step
    session: str
    topic: str
    value: bytes | None
    sent_ms: float
    acked_ms: float | None = None
    offsets: list[tuple[int, int]] = field(default_factory=list)


class Customers:
    """All sessions' scripts."""

    def __init__(self, world: "World", rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.told: list[Told] = []
        self._by_session: dict[int, list[Told]] = {}
        self._topics = {spec.event: spec.name for spec in load_topics().inputs if spec.event}

    async def play(self) -> None:
        """Everything that is planned, each session's steps one after the other."""
        sessions = sorted({step.session for step in self.world.plan.steps})
        await asyncio.gather(*(self._script(session) for session in sessions))

    async def _script(self, session: int) -> None:
        steps = [step for step in self.world.plan.steps if step.session == session]
        sent: list[asyncio.Task[None]] = []
        long = self.world.plan.shape.remembered_ids > SHORT_MEMORY  # for a retry within a flood
        for step in steps:
            if step.wait_ms != FLOOD_MS or not long:
                await asyncio.gather(*sent)
                sent.clear()
                await self._wait(step)
            sent.append(self.world.loop.create_task(self._send(step)))
        await asyncio.gather(*sent)

    async def _wait(self, step: Step) -> None:
        due_ms = None if step.near_due_ms is None else self.next_due_ms(name_of(step.session))
        wait_ms = float(step.wait_ms)
        if due_ms is not None and step.near_due_ms is not None:
            wait_ms = due_ms + step.near_due_ms - self.world.loop.now_ms + self.rng.random()
        await asyncio.sleep(max(0.0, min(wait_ms, 10_000)) / 1_000)

    def next_due_ms(self, session: str) -> int | None:
        """The earliest due time of a session that is still to come, as its record has it."""
        now_ms = self.world.loop.now_ms
        deadlines = self._record(session).get("deadlines", {}).values()
        return min((d["due_at_ms"] for d in deadlines if d["due_at_ms"] > now_ms), default=None)

    def stands(self, session: str) -> bool:
        """Whether a session has any deadline, as the last of its records has it."""
        return bool(self._record(session).get("deadlines"))

    def _record(self, session: str) -> dict[str, Any]:
        key = session.encode()
        log = self.world.cluster.logs[SESSIONS_CHANGELOG, self._home(key)]
        rows = (record.value for record in reversed(log.records) if record.key == key)
        found: dict[str, Any] = orjson.loads(next(rows, None) or b"{}")
        return found

    def _home(self, key: bytes) -> int:
        return partition_for(key, self.world.plan.shape.partitions)

    async def _send(self, step: Step) -> None:
        topic, value = self._event(step)
        key: bytes | None = name_of(step.session).encode()
        partition = self._partition(step, key or b"")
        if step.what == "keyless":
            key, partition = None, self.rng.randrange(self.world.plan.shape.partitions)
        told = Told(step, name_of(step.session), topic, value, self.world.loop.now_ms)
        self.told.append(told)
        self._by_session.setdefault(step.session, []).append(told)
        draft = Draft(key, value, (), hidden=step.what == "aborted")
        await self._publish(told, partition, draft)

    def _partition(self, step: Step, key: bytes) -> int:
        """Java's partitioner or librdkafka's: one of them for all of a session's events."""
        count = self.world.plan.shape.partitions
        return self._home(key) if step.session % 2 == 0 else zlib.crc32(key) % count

    async def _publish(self, told: Told, partition: int, draft: Draft) -> None:
        """Append, and again where the ack is lost: a producer that is not idempotent."""
        log = self.world.cluster.logs[told.topic, partition]
        while True:
            await asyncio.sleep(self.world.network.latency())
            if self.world.loop.time() < self.world.network.weather.outage_until:
                await asyncio.sleep(0.5)
                continue
            acked = log.append([draft], "customer")
            told.offsets.append((partition, acked.offset))
            told.acked_ms = told.acked_ms or self.world.loop.now_ms
            await asyncio.sleep(self.world.network.latency())
            if self.rng.random() >= self.world.plan.shape.loss:
                return
            self.world.cluster.seen["events published twice by a retry"] += 1

    def _event(self, step: Step) -> tuple[str, bytes | None]:
        """The topic and value of a step."""
        session, number = name_of(step.session), step.number
        if step.what == "again" and (earlier := self._by_session.get(step.session)):
            long = self.world.plan.shape.remembered_ids > SHORT_MEMORY
            same = self.rng.choice(earlier if long else earlier[-1:])
            return same.topic, same.value
        if step.what == "echo" and (copy := self._own_offer(session)) is not None:
            return self._topics["agent/promos.offered"], copy
        if step.what == "bad":
            return self.rng.choice(list(self._topics.values())), self.rng.choice(BAD)
        if step.what == "stranger":
            result = {"commandId": f"c{number}", "sessionId": session, "attempt": 1}
            return "tool.results", orjson.dumps({**result, "status": "succeeded"})
        name, data = self._data(step)
        envelope = {"name": name, "data": {"sessionId": session, **data}}
        if name != "agent/customer.message" or number % 3 == 0:
            envelope["id"] = f"e{number}"
        return self._topics[name], orjson.dumps(envelope)

    def _own_offer(self, session: str) -> bytes | None:
        """The last event that we published for a session; somebody sends it in again."""
        for record in reversed(self.world.cluster.records("agent.promos.offered")):
            if record.key == session.encode() and OWN_EVENT_PREFIX.encode() in (
                record.value or b""
            ):
                return record.value
        return None

    def _data(  # noqa: C901, PLR0911, PLR0912 - one case each
        self, step: Step
    ) -> tuple[str, dict[str, Any]]:
        number = step.number
        ids = {"conversationId": f"c{step.session}", "workspaceId": "w"}
        match step.what:
            case "started" | "reopen":
                more = {"agentId": "a", "contactId": f"k{step.session}", "mode": "intro"}
                return "agent/session.started", {**ids, **more}
            case "collect":
                return "agent/collecting_data.started", ids
            case "offer":
                return "agent/promos.offered", {**ids, "packOptions": ["1x"]}
            case "send":
                more = {"messageType": "reminder", "content": f"hola {number}"}
                return "agent/proactive.send", {**ids, **more}
            case "poison":
                return "agent/proactive.send", {**ids, "messageType": "reminder", "content": POISON}
            case "captured":
                return "agent/data.captured", {"data": {f"f{number}": str(number), "nombre": "n"}}
            case "complete":
                return "agent/data.captured", {"data": dict.fromkeys(REQUIRED_DATA, f"v{number}")}
            case "updated":
                return "agent/session.updated", {"state": {f"u{number}": number}}
            case "conflict":
                return "agent/session.updated", {"expectedVersion": 10_000 + number, "mode": "x"}
            case "giant":
                return "agent/data.captured", {"data": {f"g{number}": "x" * 270_000}}
            case "close":
                return "agent/session.close", {"reason": "completed"}
            case "pause" | "resume" | "fire" | "cancel" | "retry":
                return "agent/operator.action", self._order(step)
            case _:
                more = {"messageId": f"m{number}", "content": "hola"}
                return "agent/customer.message", {"conversationId": f"c{step.session}", **more}

    def _order(self, step: Step) -> dict[str, Any]:
        """What an operator asks for, with a look at the session's record."""
        what = {"fire": "fire_timer", "cancel": "cancel_timer", "retry": "retry_command"}
        order: dict[str, Any] = {"action": what.get(step.what, step.what), "by": "op"}
        record = self._record(name_of(step.session))
        if step.what in {"fire", "cancel"}:
            order["name"] = next(iter(record.get("deadlines", {})), "promos.reply")
        if step.what == "retry":
            failed = [c for c, one in record.get("pending", {}).items() if one["state"] == "failed"]
            order["commandId"] = next(iter(failed), "none")
        return order

    async def resume_all(self) -> None:
        """After the faults: no session stays paused, or its deadlines would wait for ever."""
        for step in sorted({one.session: one for one in self.world.plan.steps}.values(), key=_who):
            if any(
                one.what == "pause" and one.session == step.session for one in self.world.plan.steps
            ):
                await self._send(Step(step.session, "resume", 0, None, 5_000 + step.session))


def _who(step: Step) -> int:
    return step.session


def name_of(session: int) -> str:
    """A session's id."""
    return f"s{session}"
