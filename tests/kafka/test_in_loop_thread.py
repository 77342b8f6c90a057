"""The aiokafka consumer as Faust's: its options, and how it leaves."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tests.kafka.fakes import World
from tests.kafka.test_consumer import Consuming


def test_the_options_of_the_client_are_those_that_faust_md_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Aborted records are never seen, nothing commits by itself, a death is noticed in 6 s."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("aiokafka.AIOKafkaConsumer", lambda **kw: given.update(kw))

    async def create() -> None:
        consumer = Consuming(World.made(monkeypatch)).consumer
        consumer._thread._create_worker_consumer(None)  # type: ignore[arg-type]

    asyncio.run(create())
    assert given["isolation_level"] == "read_committed"
    assert given["enable_auto_commit"] is False
    assert given["auto_offset_reset"] == "earliest"
    assert (given["session_timeout_ms"], given["heartbeat_interval_ms"]) == (6_000, 300)
    assert 250 <= given["fetch_max_wait_ms"] <= 500
    assert given["rebalance_timeout_ms"] == 20_000


@pytest.mark.parametrize("joining", [True, False])
async def test_a_stop_does_not_wait_for_a_join(
    monkeypatch: pytest.MonkeyPatch,
    joining: bool,  # noqa: FBT001 - the parameter of a parametrized test
) -> None:
    """A join waits for every member; who leaves in the middle of one says so beside it."""
    one = Consuming(World.made(monkeypatch))
    done: list[str] = []

    async def leave() -> None:
        done.append("leave")

    async def stop() -> None:
        done.append("stop")

    membership = one.world.engine.membership
    membership._coordinator = SimpleNamespace(_performed_join_prepare=joining)
    monkeypatch.setattr(membership, "leave", leave)
    monkeypatch.setattr(one.client, "stop", stop, raising=False)
    await one.consumer._thread.stop()
    assert done == (["leave", "stop"] if joining else ["stop"])
