"""WhatsApp and the CRM: they keep books, fail, are slow, and lose answers after having acted."""

import asyncio
import contextvars
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from agents_stream.stages.tools.http_call import Answer, NoAnswer, NotSent, Reply
from tests.simulation.loop import current

if TYPE_CHECKING:
    from tests.simulation.world import World

ATTEMPT: contextvars.ContextVar[Any] = contextvars.ContextVar("attempt")
TIMEOUT_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request that reached a tool. `acted`: the message went out, the order was made."""

    tool: str
    key: str
    attempt: int
    session: str
    inputs: Any
    at_ms: float
    acted: bool


class Tools:
    """Both tools' books."""

    def __init__(self, world: "World", rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.trouble = world.plan.shape.tool_trouble
        self.calls: list[Call] = []
        self.orders: dict[str, tuple[str, float]] = {}

    def take(self, attempt: Any, body: bytes, key: str, *, acts: bool) -> str:
        """A request has come in: act or not, and give the order's id."""
        now_ms = self.world.loop.now_ms
        self.calls.append(
            Call(
                attempt.tool,
                key,
                attempt.number,
                attempt.session_id,
                orjson.loads(body),
                now_ms,
                acts,
            )
        )
        if acts and attempt.tool == "crm.order.create":
            self.orders.setdefault(key, (f"order-{len(self.orders) + 1}", now_ms))
        return self.orders.get(key, (f"msg-{len(self.calls)}", 0.0))[0]


class SimCaller:
    """One gateway's way to a tool, in the place of `HttpCaller`."""

    def __init__(self, world: "World", *_: Any, **__: Any) -> None:
        self.world = world

    async def close(self) -> None:
        """Nothing is open."""

    async def post(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Call the tool, with its mood of the moment."""
        process = current()
        assert process is not None
        process.check()
        tools, rng = self.world.tools, self.world.tools.rng
        key, attempt = headers["Idempotency-Key"], ATTEMPT.get()
        mood = "fine" if rng.random() >= tools.trouble else rng.choice(MOODS)
        self.world.cluster.seen[f"tool calls: {mood}"] += 1
        if mood == "never sent":
            return NotSent("connection refused")
        acts = mood in ACTING
        told: asyncio.Future[str] = self.world.loop.create_future()

        def arrive() -> None:
            order = tools.take(attempt, body, key, acts=acts)
            delay_s = rng.uniform(0.5, TIMEOUT_S - 0.5) if mood == "slow" else 0.002
            self.world.loop.in_world(delay_s, _tell, told, order)

        self.world.loop.in_world(self.world.network.latency(), arrive)
        order = await told
        if mood in {"silent after acting", "silent"}:
            await asyncio.sleep(TIMEOUT_S)
            return NoAnswer("timed out")
        return _answer(mood, order)


ACTING: Final = {"fine", "slow", "fails after acting", "silent after acting", "without id", "cut"}
MOODS: Final = (
    "slow",
    "busy",
    "fails",
    "fails",
    "refuses",
    "fails after acting",
    "silent after acting",
    "silent",
    "never sent",
    "without id",
    "cut",
)


def _answer(mood: str, order: str) -> Answer:
    match mood:
        case "busy":
            return Answer(429, "Too Many Requests", b"", retry_after="1")
        case "fails" | "fails after acting":
            return Answer(503, "Service Unavailable", b"")
        case "refuses":
            return Answer(400, "Bad Request", b"no")
        case "without id":
            return Answer(200, "OK", b"{}")
        case "cut":
            return Answer(200, "OK", b'{"id": ', cut=True)
        case _:
            return Answer(200, "OK", orjson.dumps({"id": order}))


def _tell(told: "asyncio.Future[str]", order: str) -> None:
    if not told.done():
        told.set_result(order)
