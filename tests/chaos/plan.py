"""The fault plan: what goes wrong, where and when. A pure function of the seed and the length.

Faults come in decks: every kind is in each deck, in an order of the seed's, one every few seconds.
The broker faults of a deck lie apart, so that the time between them shows a recovery.
"""

import random
from dataclasses import dataclass
from typing import Final, Literal

FaultKind = Literal[
    "worker_kill",
    "worker_crash",
    "worker_term",
    "worker_pause",
    "worker_join",
    "worker_leave",
    "gateway_kill",
    "gateway_crash",
    "gateway_term",
    "gateway_pause",
    "broker_kill",
    "broker_stop",
    "broker_pause",
    "tool_fail",
    "tool_slow",
    "tool_429",
    "tool_drop",
    "tool_act_then_drop",
]
OF_PROCESSES: Final[tuple[FaultKind, ...]] = (
    "worker_kill",
    "worker_crash",
    "worker_crash",
    "worker_term",
    "worker_pause",
    "worker_join",
    "worker_leave",
    "gateway_kill",
    "gateway_crash",
    "gateway_term",
    "gateway_pause",
)
OF_TOOLS: Final[tuple[FaultKind, ...]] = (
    "tool_fail",
    "tool_slow",
    "tool_429",
    "tool_drop",
    "tool_act_then_drop",
)
OF_BROKER: Final[tuple[FaultKind, ...]] = ("broker_kill", "broker_stop", "broker_pause")
KINDS: Final = tuple(dict.fromkeys((*OF_PROCESSES, *OF_TOOLS, *OF_BROKER)))

SESSION_TIMEOUT_S: Final = 6.0
FIRST_AT_S: Final = 6.0
GAP_S: Final = (2.5, 6.0)
CALM_S: Final = 12.0
TOOLS: Final = ("whatsapp.message.send", "crm.order.create")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `at_s` after the start, for `for_s`, on the `pick`-th of what can be hit.

    For a tool `pick` chooses it, and `delay_ms` is what `slow` waits, or 429 asks for.
    """

    at_s: float
    kind: FaultKind
    pick: int
    for_s: float
    delay_ms: int = 0


def make_plan(seed: int, seconds: float) -> list[Fault]:
    """Every fault of a run of this length; the last seconds are left calm."""
    chance = random.Random(f"faults/{seed}")
    plan: list[Fault] = []
    at_s = FIRST_AT_S
    while True:
        for kind in _deck(chance):
            if at_s > seconds - CALM_S:
                return plan
            plan.append(_fault(chance, at_s, kind))
            at_s += chance.uniform(*GAP_S)


def _deck(chance: random.Random) -> list[FaultKind]:
    """Every kind, shuffled; a broker fault in each third."""
    deck = [*OF_PROCESSES, *OF_TOOLS]
    chance.shuffle(deck)
    third = len(deck) // len(OF_BROKER)
    for place, kind in reversed(list(enumerate(chance.sample(OF_BROKER, len(OF_BROKER))))):
        deck.insert(third * place + third // 2, kind)
    return deck


def _fault(chance: random.Random, at_s: float, kind: FaultKind) -> Fault:
    delay_ms = 0
    if kind == "tool_slow":
        # Some are slower than the gateway waits.
        delay_ms = chance.choice((300, 1_500, 6_000))
    elif kind == "tool_429":
        delay_ms = chance.choice((1_000, 2_000))
    return Fault(at_s, kind, chance.randrange(1_000), _length_s(chance, kind), delay_ms)


def _length_s(chance: random.Random, kind: FaultKind) -> float:
    """How long a fault stands, or how long what was ended stays away."""
    if kind in {"worker_pause", "gateway_pause"}:
        # Twice the session timeout, or just about it, where the fence must hold.
        near = chance.uniform(SESSION_TIMEOUT_S - 1.5, SESSION_TIMEOUT_S + 1.5)
        twice = 2 * SESSION_TIMEOUT_S + chance.uniform(0.2, 3.0)
        return chance.choice((near, twice, twice))
    if kind == "broker_pause":
        return chance.uniform(2.0, 2 * SESSION_TIMEOUT_S)
    if kind in OF_BROKER:
        return chance.choice((0.0, 0.5, 2.0, 6.0))
    if kind in OF_TOOLS:
        return chance.uniform(2, 8)
    return chance.choice((0.0, 0.3, 1.0, 4.0, 8.0))
