"""The engine's webhook on a real broker."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from aiohttp import web
from pydantic import SecretStr

from agents_stream.core.actions import OWN_EVENT_PREFIX
from agents_stream.core.errors import TerminalError
from agents_stream.kafka.topics import DEAD_LETTERS, GATEWAY_MEMORY, OUTCOMES, PROMOS_OFFERED
from agents_stream.settings import Settings
from agents_stream.stages.gateway import run_gateway
from agents_stream.stages.gateway.memory import marker_of
from tests.kafka.gateway_world import Call, World, gateway, world_of

SECRET = "whsec-1"  # noqa: S105 - of this test only


@pytest.fixture
async def world(kafka_settings: Settings) -> AsyncIterator[World]:
    """Give a world whose engine wants to be told."""
    limits = {"tool_connect_timeout": 500, "tool_read_timeout": 500}
    secret = SecretStr(SECRET)
    async with world_of(kafka_settings, engine=True, engine_webhook_secret=secret, **limits) as one:
        yield one


async def outcome(world: World, number: int, session: str = "s1") -> bytes:
    """Publish an outcome as the effects do."""
    value = orjson.dumps({"id": f"o-{session}-{number}", "sessionId": session, "flow": "promos"})
    await world.publish(OUTCOMES, value, session)
    return value


def envelope(event_id: str | None, **more: Any) -> bytes:
    """Give an offer of promos."""
    data = {"sessionId": "s1", "conversationId": "c", "workspaceId": "w", "packOptions": ["1x"]}
    return orjson.dumps({"name": "agent/promos.offered", "data": data, "id": event_id, **more})


def told(world: World) -> list[str]:
    """Give the ids that the engine was told of, in order."""
    return [call.key for call in world.calls if call.path == "/engine"]


async def test_outcomes_and_our_own_offers_are_posted_and_signed(world: World) -> None:
    """The body is the record as it stands; who has the secret can check it and its age."""
    raw = await outcome(world, 1)
    own = envelope(f"{OWN_EVENT_PREFIX}1")
    for value in (b"{", b"[]", envelope("theirs"), envelope(None), envelope(""), own):
        await world.publish(PROMOS_OFFERED, value, "s1")
    bare = {"sessionId": "s1", "conversationId": "c", "workspaceId": "w", "packOptions": ["1x"]}
    await world.publish(PROMOS_OFFERED, orjson.dumps(bare), "s1")
    async with gateway(world.settings):
        await world.until(lambda: len(told(world)) == 2)
        await asyncio.sleep(0.3)
    assert sorted(told(world)) == [f"{OWN_EVENT_PREFIX}1", "o-s1-1"]
    by_event = {call.headers["x-agents-stream-event"]: call for call in world.calls}
    assert by_event["agent.outcomes"].raw == raw
    assert by_event["agent/promos.offered"].raw == own
    for call in world.calls:
        stamp, signature = call.headers["x-agents-stream-signature"].split(",")
        at_s = stamp.removeprefix("t=")
        digest = hmac.new(SECRET.encode(), f"{at_s}.".encode() + call.raw, hashlib.sha256)
        assert signature == f"v1={digest.hexdigest()}"
        assert abs(time.time() - int(at_s)) < 30


async def test_failures_are_retried_in_the_order_of_the_session(world: World) -> None:
    """An engine that is away for a moment loses nothing; other sessions do not wait (G11)."""
    failures = iter([500, 429, 503])

    async def unsteady(call: Call) -> web.StreamResponse:
        status = next(failures, 200) if call.key == "o-s1-1" else 200
        return web.Response(status=status)

    world.answer = unsteady
    for number in (1, 2, 3):
        await outcome(world, number)
    await outcome(world, 1, "other")
    async with gateway(world.settings):
        await world.until(lambda: "o-s1-3" in told(world))
    sequence = [key for key in told(world) if key.startswith("o-s1-")]
    assert sequence == ["o-s1-1"] * 4 + ["o-s1-2", "o-s1-3"]
    assert told(world).index("o-other-1") < told(world).index("o-s1-2")
    assert not world.seen(DEAD_LETTERS)


@pytest.mark.parametrize("status, attempts", [(500, 4), (400, 1), (302, 1), (0, 4)])
async def test_what_the_engine_never_takes_is_buried_and_the_session_goes_on(
    world: World, status: int, attempts: int
) -> None:
    """After the last attempt, or a final refusal: dead letter, then the next record (G10)."""

    async def refuses(call: Call) -> web.StreamResponse:
        if call.key != "o-s1-1":
            return web.Response()
        if status == 0:
            await asyncio.sleep(1)
        return web.Response(status=status or 200)

    world.answer = refuses
    raw = await outcome(world, 1)
    await outcome(world, 2)
    async with gateway(world.settings):
        await world.until(lambda: "o-s1-2" in told(world))
        await world.until(lambda: world.seen(DEAD_LETTERS))
    assert told(world) == ["o-s1-1"] * attempts + ["o-s1-2"]
    (letter,) = world.seen(DEAD_LETTERS)
    assert letter["reason"] == "webhook_failed"
    assert letter["value"] == raw.decode()
    assert letter["source"]["topic"] == world.topic(OUTCOMES)
    assert letter["key"] == "s1"


async def test_a_dead_engine_delays_no_command(world: World) -> None:
    """The webhook has a group and slots of its own (G11)."""

    async def hangs(call: Call) -> web.StreamResponse:
        if call.path == "/engine":
            await asyncio.sleep(0.6)
        return web.json_response({"id": "x"})

    world.answer = hangs
    for number in range(300):
        await outcome(world, number, f"s{number % 50}")
    async with gateway(world.settings):
        await world.until(lambda: len(told(world)) >= 32)
        began = time.monotonic()
        await world.command("c1", "s1")
        await world.until(lambda: world.results_of("c1"))
        assert time.monotonic() - began < 2


async def test_what_is_no_outcome_is_buried(world: World) -> None:
    """Foreign records on our topic stop nothing (G10)."""
    await world.publish(OUTCOMES, b"{", "s1")
    await world.publish(OUTCOMES, b'{"id": "x\\n", "sessionId": "s1"}', "s1")
    await outcome(world, 1)
    async with gateway(world.settings):
        await world.until(lambda: told(world) == ["o-s1-1"])
        await world.until(lambda: len(world.seen(DEAD_LETTERS)) == 2)
    assert {one["reason"] for one in world.seen(DEAD_LETTERS)} == {"invalid_schema"}


async def test_a_webhook_alone_leaves_the_commands_to_others(world: World) -> None:
    """Without a tool's URL the commands are a team's own business: no result is made up."""
    settings = world.settings.model_copy(update={"whatsapp_url": None, "crm_url": None})
    async with gateway(settings):
        await world.command("c1", "s1")
        await outcome(world, 1)
        await world.until(lambda: told(world) == ["o-s1-1"])
        await asyncio.sleep(0.5)
    assert not world.results


async def test_a_webhook_that_lost_its_offsets_refuses_to_start(world: World) -> None:
    """It would tell the engine of a month's outcomes again (DESIGN §4)."""
    for number in range(8):
        await outcome(world, number, f"s{number}")
    group = f"{world.settings.gateway_group_id}-webhook"
    for partition in range(world.settings.partitions):
        key, value = marker_of(group)
        await world.producer.send_and_wait(
            world.topic(GATEWAY_MEMORY), value, key=key.encode(), partition=partition
        )
    with pytest.raises(TerminalError, match=group):
        await run_gateway(world.settings, asyncio.Event())
