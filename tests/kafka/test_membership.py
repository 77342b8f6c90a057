"""When a worker was last known to be a member: what the fence is made of (G9)."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agents_stream.kafka import membership as membership_module
from agents_stream.kafka.clock import BrokerClock
from agents_stream.kafka.membership import Membership


class Coordinator:
    """aiokafka's coordinator, as far as heartbeats go."""

    def __init__(self) -> None:
        self.generation = 1
        self.good = True
        self.sent = 0
        self._rejoin_needed_fut: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.during: Any = lambda: None

    async def _do_heartbeat(self) -> bool:
        self.sent += 1
        self.during()
        return self.good

    def rejoin(self) -> None:
        """A rebalance has begun."""
        if not self._rejoin_needed_fut.done():
            self._rejoin_needed_fut.set_result(None)

    def joined(self) -> None:
        """The next generation has begun."""
        self.generation += 1
        self._rejoin_needed_fut = asyncio.get_running_loop().create_future()


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The local clock."""
    clock = SimpleNamespace(ms=1_000.0)
    monkeypatch.setattr(membership_module, "monotonic_ms", lambda: clock.ms)
    monkeypatch.setattr(membership_module, "_AGAIN_S", 0.001)
    return clock


def watched(clock: BrokerClock | None = None) -> tuple[Membership, Coordinator]:
    """A membership over a coordinator."""
    one, coordinator = Membership(clock), Coordinator()
    one.watch(SimpleNamespace(_coordinator=coordinator))
    return one, coordinator


async def test_a_good_heartbeat_proves_the_moment_at_which_it_was_sent(
    local: SimpleNamespace,
) -> None:
    """Not the moment of its answer: the coordinator's session timer may have begun before it."""
    one, coordinator = watched()

    def travel() -> None:
        local.ms += 700

    coordinator.during = travel
    assert await coordinator._do_heartbeat()
    assert one.proven_at_ms == 1_000


async def test_a_machine_that_slept_has_no_younger_proof(local: SimpleNamespace) -> None:
    """G9: the monotonic clock stood still meanwhile; the first stamp seen afterwards shows that.

    Worked out only then, the bound of the old heartbeat would be the present, and no fence at all.
    """
    clock = BrokerClock(lambda: local.ms)
    one, coordinator = watched(clock)
    await coordinator._do_heartbeat()
    assert one.proven_at_ms is None, "sent at a time that nobody could tell"
    clock.observe(500_000)
    await coordinator._do_heartbeat()
    assert one.proven_stamp_ms == 500_000
    clock.observe(560_000)  # a minute of sleep, of which the local clock knows nothing
    assert one.proven_stamp_ms == 500_000
    one.forget()
    assert one.proven_stamp_ms is None


async def test_what_is_no_proof(local: SimpleNamespace) -> None:
    """A bad answer, one during a rebalance, one that spans a change of the generation."""
    del local
    one, coordinator = watched()
    coordinator.good = False
    await coordinator._do_heartbeat()
    assert one.proven_at_ms is None
    coordinator.good = True
    coordinator.during = coordinator.rejoin  # aiokafka says True for "rebalance in progress"
    await coordinator._do_heartbeat()
    assert one.proven_at_ms is None
    coordinator.during = coordinator.joined
    await coordinator._do_heartbeat()
    assert one.proven_at_ms is None


async def test_what_is_forgotten_must_be_proven_anew(local: SimpleNamespace) -> None:
    """After a revoke the old proof is worth nothing."""
    one, coordinator = watched()
    await one.prove()
    one.forget()
    local.ms = 5_000
    coordinator.good = False
    proving = asyncio.create_task(one.prove())
    await asyncio.sleep(0.02)
    assert not proving.done()
    coordinator.good = True
    await proving
    assert one.proven_at_ms == 5_000


async def test_nothing_is_asked_while_the_worker_rejoins(local: SimpleNamespace) -> None:
    """A heartbeat of the old generation, answered late, would throw the new one away."""
    del local
    one, coordinator = watched()
    coordinator.rejoin()
    proving = asyncio.create_task(one.prove())
    await asyncio.sleep(0.02)
    assert coordinator.sent == 0
    coordinator.joined()
    await proving
    assert coordinator.sent == 1
