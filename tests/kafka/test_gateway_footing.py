"""The gateway on changed ground: nothing twice in silence, nothing skipped (G1, G6)."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from agents_stream.core.errors import TerminalError
from agents_stream.kafka.topics import GATEWAY_MEMORY, WHATSAPP_MESSAGE_SEND
from agents_stream.settings import Settings
from agents_stream.stages.gateway import run_gateway
from tests.kafka.gateway_world import World, gateway, world_of
from tests.kafka.ground_world import ForgetfulBroker, make_anew

pytestmark = pytest.mark.kafka


@pytest.fixture
async def world(ground: Settings) -> AsyncIterator[World]:
    """Both tools, and topics of one partition."""
    async with world_of(ground) as one:
        yield one


async def performed(world: World, *commands: str) -> None:
    """Publish commands and wait for their results; the gateway then commits."""
    for command in commands:
        await world.command(command)
        await world.until(lambda command=command: world.results_of(command))  # type: ignore[misc]
    await asyncio.sleep(1)


async def test_commands_after_a_lost_tail_are_performed(
    forgetful: ForgetfulBroker, world: World
) -> None:
    """G1: the new command has the offset of one that was performed, and that was lost."""
    commands = world.topic(WHATSAPP_MESSAGE_SEND)
    async with gateway(world.settings):
        await performed(world, "first")
        size = forgetful.size(commands)
        await performed(world, "second")
    await asyncio.to_thread(forgetful.crash, {(0, commands): size})
    await world.command("third")
    async with gateway(world.settings):
        await world.until(lambda: world.results_of("third"))
    assert [len(world.calls_of(one)) for one in ("first", "second", "third")] == [1, 1, 1]


async def test_a_tools_topic_made_anew_is_survived(world: World) -> None:
    """G1, G6: the gateway ends and says why; what the new topic holds is new, and performed."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(_until_it_ends(world))
        await performed(world, "first", "second")
        await make_anew(world.settings, WHATSAPP_MESSAGE_SEND)
        words = await asyncio.wait_for(running, 60)
    assert WHATSAPP_MESSAGE_SEND in words
    await world.command("third")
    async with gateway(world.settings):
        await world.until(lambda: world.results_of("third"))
    assert [len(world.calls_of(one)) for one in ("first", "second", "third")] == [1, 1, 1]


async def test_a_memory_made_anew_is_refused(world: World) -> None:
    """G6: without its memory the gateway would do again what it has in hand."""
    async with gateway(world.settings):
        await performed(world, "first")
    await make_anew(world.settings, GATEWAY_MEMORY)
    assert "no longer knows which commands" in await _until_it_ends(world)
    async with gateway(world.settings.model_copy(update={"start_from": "earliest"})):
        await performed(world, "second")
    async with gateway(world.settings):  # told once is told for good
        await performed(world, "third")
    assert [len(world.calls_of(one)) for one in ("first", "second", "third")] == [1, 1, 1]


async def _until_it_ends(world: World) -> str:
    """Run a gateway that ends by itself; what it says."""
    with pytest.raises(TerminalError) as caught:
        await run_gateway(world.settings, asyncio.Event())
    return str(caught.value)
