"""What happens in a world: drawn from a seed as plain data, so that a failing one can be cut down.

A plan is a shape (how many of what, how small the limits, how far the clocks are apart), the steps
of each session's customer and engine, and the accidents. The network's luck is drawn from the seed
as well, while the world runs.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

FAULTS_UNTIL_S: Final = 30.0
FAULTS: Final = (
    "kill",
    "kill",
    "pause",
    "pause",
    "sleep",
    "stop",
    "cut",
    "outage",
    "storm",
    "slow",
    "join",
    "lead",
)
SHORT_MEMORY: Final = 2  # ids of a session, so that what comes twice comes after they are forgotten
TRAPPED: Final = (
    "produce session.journal",
    "produce session.journal",
    "produce agents-stream-sessions-changelog",
    "produce agents-stream-sessions-changelog",
    "produce session.actions",
    "produce session.deadlines",
    "produce tool.results",
    "produce tool.gateway.memory",
    "produce tool.gateway.memory",
    "produce tool.gateway.memory",
    "produce tool.whatsapp.message.send",
    "produce tool.crm.order.create",
    "produce agent.outcomes",
    "produce agent.promos.offered",
    "produce agent.promos.offered",
    "commit agents-stream",
    "commit agents-stream-gateway",
    "offsets",
    "committed",
    "heartbeat agents-stream",
    "sync agents-stream",
)
OFTEN: Final = ("collect", "message", "message", "offer", "send", "captured", "complete")
SOMETIMES: Final = ("message", "started", "again", "updated", "keyless", "bad", "stranger")
FLOODED: Final = ("captured", "send", "updated")
FLOOD_MS: Final = -1  # right after the step before, without a wait for its ack
RARELY: Final = (
    "close",
    "reopen",
    "pause",
    "resume",
    "fire",
    "cancel",
    "retry",
    "conflict",
    "poison",
    "giant",
    "aborted",
)

Moment = Literal["before", "stuck", "after"]
"""When a trap springs: before a request is sent, after it has waited a while, after its effect."""
Ending = Literal["settled", "asleep", "rolled"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a world and its limits."""

    partitions: int
    workers: int
    gateways: int
    sessions: int
    store: Literal["memory", "rocksdb"]
    skews_ms: tuple[int, ...]
    data_reply_ms: int
    promos_delay_ms: int
    promos_reply_ms: int
    retry_backoff_ms: int
    batch_records: int
    backlog_bytes: int
    taken_records: int
    round_lines: int
    pass_entries: int
    fetch_records: int
    fetch_late: float
    loss: float
    slow: float
    tool_trouble: float
    clears_queues: bool
    remembered_ids: int
    ending: Ending

    @property
    def spread_ms(self) -> int:
        """How far the brokers' clocks are apart."""
        return max(self.skews_ms) - min(self.skews_ms)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens in a session: after a while, or around its next due time."""

    session: int
    what: str
    wait_ms: int
    near_due_ms: int | None
    number: int


@dataclass(frozen=True, slots=True)
class Fault:
    """An accident: at a time, or when its victim sends a certain request."""

    at_ms: int
    kind: str
    victim: int
    gateway: bool
    span_ms: int
    trap: str | None = None
    moment: Moment = "before"
    count: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """A world to be run."""

    seed: int
    shape: Shape
    steps: tuple[Step, ...]
    faults: tuple[Fault, ...]


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    rng = random.Random(f"plan {seed}")
    shape = _shape(rng)
    steps = tuple(_steps(rng, shape, rng.randint(8, 40)))
    faults = tuple(_fault(rng, shape) for _ in range(rng.choice((0, 3, 4, 5, 6, 8, 9))))
    return Plan(seed, shape, _opened(rng, shape) + steps, tuple(sorted(faults, key=_at)))


def _at(fault: Fault) -> int:
    return fault.at_ms


def _shape(rng: random.Random) -> Shape:
    apart = rng.choice((0, 0, 0, 5, 300))
    return Shape(
        partitions=rng.choice((1, 2, 2, 3)),
        workers=rng.choice((1, 2, 2, 3)),
        gateways=rng.choice((1, 2, 2)),
        sessions=rng.randint(1, 5),
        store=rng.choice(("memory", "rocksdb")),
        skews_ms=tuple(rng.randint(-apart, apart) for _ in range(3)),
        data_reply_ms=rng.choice((400, 2_000, 5_000)),
        promos_delay_ms=rng.choice((100, 1_000, 3_000)),
        promos_reply_ms=rng.choice((500, 2_000, 6_000)),
        retry_backoff_ms=rng.choice((50, 300, 1_500)),
        batch_records=rng.choice((1, 2, 1_000)),
        backlog_bytes=rng.choice((700, 2_500, 8 << 20)),
        taken_records=rng.choice((1, 5, 2_000)),
        round_lines=rng.choice((1, 3, 1_000)),
        pass_entries=rng.choice((1, 2, 1_000)),
        fetch_records=rng.choice((1, 3, 500)),
        fetch_late=rng.choice((0.0, 0.1, 0.3)),
        loss=rng.choice((0.0, 0.0, 0.01, 0.05)),
        slow=rng.choice((0.0, 0.0, 0.05, 0.2)),
        tool_trouble=rng.choice((0.0, 0.2, 0.5)),
        clears_queues=rng.random() < 0.5,
        remembered_ids=rng.choice((256, SHORT_MEMORY)),
        ending=rng.choice(("settled", "settled", "settled", "asleep", "rolled")),
    )


def _opened(rng: random.Random, shape: Shape) -> tuple[Step, ...]:
    """Most sessions begin as they should."""
    return tuple(
        Step(session, "started", rng.randint(0, 2_000), None, 1_000 + session)
        for session in range(shape.sessions)
        if rng.random() < 0.8
    )


def _steps(rng: random.Random, shape: Shape, count: int) -> Iterator[Step]:
    """Single steps, and floods: some of a kind, one right after the other."""
    number = 0
    while number < count:
        first = _step(rng, shape, number)
        yield first
        number += 1
        if first.what == "collect" and rng.random() < 0.5:  # the way to the packs and an order
            for what in ("complete", "message"):
                yield Step(first.session, what, rng.randint(1, 300), None, number)
                number += 1
            # Events right after our own offer, by which its copy is forgotten before it comes.
            wait = shape.promos_delay_ms + rng.randint(20, 200)
            for what, wait_ms in (("captured", wait), ("captured", 1), ("send", 1), ("echo", 50)):
                yield Step(first.session, what, wait_ms, None, number)
                number += 1
        if first.what in FLOODED and rng.random() < 0.25:
            for _ in range(rng.randint(2, 5)):
                yield Step(first.session, first.what, FLOOD_MS, None, number)
                number += 1


def _step(rng: random.Random, shape: Shape, number: int) -> Step:
    what = rng.choice(rng.choices((OFTEN, SOMETIMES, RARELY), (12, 4, 2))[0])
    near: int | None = None
    wait = rng.choice((0, rng.randint(1, 30), rng.randint(100, 3_000)))
    if what in {"message", "keyless", "again", "collect", "offer", "pause"} and rng.random() < 0.5:
        near = rng.choice((-200, -20, -5, -3, -2, -1, -1, 0, 0, 1, 1, 2, 3, 5, 20, 200))
    return Step(rng.randrange(shape.sessions), what, wait, near, number)


def _fault(rng: random.Random, shape: Shape) -> Fault:
    gateway = rng.random() < 0.3
    count = shape.gateways if gateway else shape.workers
    at = rng.randint(500, int(FAULTS_UNTIL_S * 1_000))
    span = rng.choice(
        (rng.randint(50, 1_000), rng.randint(1_000, 6_000), rng.randint(6_000, 14_000))
    )
    victim = rng.randrange(count)
    if rng.random() < 0.55:
        kind = rng.choice(("kill", "kill", "pause", "pause", "sleep", "sleep", "expire", "expire"))
        ours = [one for one in TRAPPED if ("gateway" in one or "results" in one) == gateway]
        trap, nth = rng.choice(ours), rng.choice((1, 1, 2, 5))
        moment: Moment = rng.choice(("before", "stuck", "after"))
        if kind == "expire" and not trap.startswith("produce"):
            kind = "pause"
        if gateway and kind == "sleep":  # long enough for another to take over
            span = rng.randint(6_000, 14_000)
        laid_at = at // 3  # it lies in wait: the earlier, the surer it springs
        return Fault(laid_at, kind, victim, gateway, span, trap, moment, nth)
    return Fault(at, rng.choice(FAULTS), victim, gateway, span)
