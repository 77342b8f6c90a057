"""Running many worlds, cutting a failing one down, and telling a person about it."""

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agents_stream.core.actions import OWN_EVENT_PREFIX
from agents_stream.core.reasons import Reason
from agents_stream.kafka.topics import GATEWAY_MEMORY
from tests.simulation.history import History
from tests.simulation.plan import Plan, draw
from tests.simulation.world import World

MAX_TRIES: Final = 120
_NEAR_MS: Final = (1, 3, 20)

REQUIRED: Final = (
    *(f"fault: {kind}" for kind in ("kill", "pause", "sleep", "stop", "cut", "outage", "storm")),
    *(f"fault: {kind}" for kind in ("slow", "join", "lead")),
    *(f"fault: kill {moment} a request" for moment in ("before", "stuck", "after")),
    *(f"fault: pause {moment} a request" for moment in ("before", "stuck", "after")),
    "acks lost",
    "attempts of two gateways",
    "batches given up unsent",
    "deadlines fired",
    "decisions that failed",
    "duplicates by an id or a place",
    "events published twice by a retry",
    "fenced writes refused",
    "generations of agents-stream",
    "generations of agents-stream-gateway",
    "journal entries written twice",
    "long sleeps",
    "messages about an order",
    "outcomes of a kind: closed",
    "own events that came late or twice",
    "records compacted",
    "repeated batches recognised",
    "rows found on disk after a clean stop",
    "session timeouts of agents-stream",
    "session timeouts of agents-stream-gateway",
    "stale deadlines",
    *(f"tool calls: {mood}" for mood in ("fails", "fails after acting", "silent after acting")),
    *(f"answers within {ms} ms before a deadline" for ms in _NEAR_MS),
    *(f"answers within {ms} ms after a deadline" for ms in _NEAR_MS),
)
"""What a few hundred worlds must have seen, or they have become tame."""


@dataclass(slots=True)
class Run:
    """What came of one plan."""

    plan: Plan
    faults: list[str]
    seen: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)


def run(plan: Plan) -> Run:
    """Run one world."""
    world = World(plan)
    world.run()
    seen = world.seen + (Counter() if world.history is None else counted(world.history))
    return Run(plan, world.faults, seen, world.story)


def run_seed(seed: int) -> Run:
    """Run the world of a seed; its story only where it failed."""
    one = run(draw(seed))
    return one if one.faults else replace(one, story=[])


def collect_seldom() -> None:
    """Worlds are full of cycles and short: looking for garbage all the time costs a sixth."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def counted(history: History) -> Counter[str]:
    """How often the hard cases really came about."""
    seen: Counter[str] = Counter()
    for session, entries in history.applied.items():
        places: Counter[Any] = Counter()
        seen["journal entries"] += len(entries)
        for one in entries:
            reasons = one.decision.reasons
            seen["duplicates by an id or a place"] += Reason.DUPLICATE in reasons
            seen["early deadlines"] += Reason.EARLY_DEADLINE in reasons
            seen["stale deadlines"] += Reason.STALE_DEADLINE in reasons
            ours = (one.entry.event_id or "").startswith(OWN_EVENT_PREFIX)
            seen["own events that came late or twice"] += ours and not one.first
            seen["decisions that failed"] += one.decision.crash is not None
            source = one.entry.source
            places[source.topic, source.partition, source.offset] += 1
            for end in one.decision.ended:
                seen[f"deadlines {end.end}"] += 1
        seen["journal entries written twice"] += sum(count - 1 for count in places.values())
        seen += _near(history, session)
    starts: dict[bytes | None, set[str]] = {}
    for log in history.world.cluster.topic(GATEWAY_MEMORY):
        for record in log.ever:
            starts.setdefault(record.key, set()).add(record.by)
    seen["attempts of two gateways"] += sum(len(by) > 1 for by in starts.values())
    for outcome in history.values("agent.outcomes"):
        seen[f"outcomes of a kind: {outcome['status']}"] += 1
        seen["messages about an order"] += "orderId" in outcome
    return seen


def _near(history: History, session: str) -> Counter[str]:
    """Answers around due times, by the brokers' stamps."""
    seen: Counter[str] = Counter()
    entries = history.applied[session]
    dues = {end.due_at_ms for one in entries for end in one.decision.ended}
    for one in entries:
        if one.entry.name != "agent/customer.message":
            continue
        for due in dues:
            apart = one.source.timestamp - due
            for ms in _NEAR_MS:
                seen[f"answers within {ms} ms before a deadline"] += -ms <= apart < 0
                seen[f"answers within {ms} ms after a deadline"] += 0 <= apart <= ms
    return seen


def shrink(failing: Run, runs: Callable[[Plan], Run] = run, tries: int = MAX_TRIES) -> Run:
    """Drop accidents and steps while the same guarantee is still broken."""
    broken = {fault[:3] for fault in failing.faults}
    best = failing
    for part in ("faults", "steps"):
        size = max(1, len(getattr(best.plan, part)) // 2)
        while size >= 1 and tries > 0:
            found, used = _without_some(best, part, size, broken, runs, tries)
            tries -= used
            size = size if found is not best else size // 2
            best = found
    return best


def _without_some(
    best: Run, part: str, size: int, broken: set[str], runs: Callable[[Plan], Run], tries: int
) -> tuple[Run, int]:
    """The first smaller plan that fails alike, and how many were tried."""
    items: Sequence[Any] = getattr(best.plan, part)
    for used, start in enumerate(range(0, len(items), size), 1):
        if used > tries:
            return best, used
        less = (*items[:start], *items[start + size :])
        changes: dict[str, Any] = {part: less}
        one = runs(replace(best.plan, **changes))
        if broken & {fault[:3] for fault in one.faults}:
            return one, used
    return best, max(1, -(-len(items) // size))


def told(failing: Run, found: Run) -> str:
    """A failure, for a person: what broke, the shortest history found, how to see it again."""
    plan = found.plan
    lines = [
        f"seed {plan.seed} breaks a guarantee:",
        *(f"  {fault}" for fault in failing.faults[:10]),
        "",
        f"Of {len(failing.plan.steps)} steps the shortest history found has {len(plan.steps)},",
        f"and of {len(failing.plan.faults)} accidents {len(plan.faults)}:",
        f"  {plan.shape}",
        *(f"  {step}" for step in plan.steps),
        *(f"  {fault}" for fault in plan.faults),
        "It went so:",
        *(f"  {line}" for line in found.story),
        *(f"  {fault}" for fault in found.faults[:10]),
        "",
        f"Again: python -m tests.simulation --from {plan.seed} --seeds 1",
    ]
    return "\n".join(lines)
