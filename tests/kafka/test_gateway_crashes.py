"""Gateways that are killed, or paused and come back, on a real broker (G6, G9)."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from agents_stream.settings import Settings
from tests.kafka.gateway_world import (
    CRM,
    WHATSAPP,
    Call,
    World,
    gateway,
    gateway_process,
    says_yes,
    world_of,
)


@pytest.fixture
async def world(kafka_settings: Settings) -> AsyncIterator[World]:
    """Give a world with both tools, impatient ones."""
    limits = {"tool_connect_timeout": 500, "tool_read_timeout": 800}
    async with world_of(kafka_settings, **limits) as one:
        yield one


# What is left after a crash at each step: calls of the message, its status, calls of the order.
CRASHES = {
    "started": (0, "unknown", 1),
    "answered": (1, "unknown", 2),
    "ended": (1, "succeeded", 1),
    "published": (1, "succeeded", 1),
}


async def test_every_crash_point_leaves_a_result_and_no_second_message(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    """The process ends after each step of an attempt; the next run does what is right (G6).

    A message whose start was written and whose end was not is `unknown` and not sent again; such
    an order is repeated with the same key; what had ended keeps its result.
    """

    async def crash_at(step: str, tool: str) -> None:
        prefix = f"{kafka_settings.topic_prefix}{step}.{tool[:3]}."
        settings = kafka_settings.model_copy(update={"topic_prefix": prefix, "partitions": 1})
        message_calls, message_status, order_calls = CRASHES[step]
        async with world_of(settings) as world:
            async with gateway_process(
                world.settings, tmp_path / prefix, f"crash at {step}"
            ) as process:
                await world.command("c", "s1", tool)
                assert await asyncio.wait_for(process.wait(), 30) == 9
            async with gateway(world.settings):
                expected = 2 if step == "published" else 1
                await world.until(lambda: len(world.results) >= expected)
                await asyncio.sleep(0.5)
            status = message_status if tool == WHATSAPP else "succeeded"
            assert [one["status"] for one in world.results] == [status] * expected, (step, tool)
            calls = message_calls if tool == WHATSAPP else order_calls
            assert len(world.calls_of("c")) == len(world.calls) == calls, (step, tool)
            assert all(one == world.results[0] for one in world.results)

    await asyncio.gather(*(crash_at(step, tool) for step in CRASHES for tool in (WHATSAPP, CRM)))


async def test_a_killed_gateway_loses_no_attempt_and_repeats_no_message(
    world: World, tmp_path: Path
) -> None:
    """After kill -9 in the middle of calls every attempt gets its one result (G6)."""
    settings = world.settings.model_copy(update={"tool_read_timeout": 10_000})

    async def stall(call: Call) -> web.StreamResponse:
        if call.key.startswith("slow"):
            await asyncio.sleep(5)
        return await says_yes(call)

    world.answer = stall
    async with gateway_process(settings, tmp_path / "log") as process:
        await world.command("slow-message", "s1")
        await world.command("slow-order", "s2", CRM)
        await world.command("quick", "s3")
        await world.command("waits-behind", "s1")
        await world.until(lambda: world.calls_of("slow-message") and world.calls_of("slow-order"))
        await world.until(lambda: world.results_of("quick"))
        process.send_signal(signal.SIGKILL)
        await process.wait()
    world.answer = says_yes
    names = ["slow-message", "slow-order", "quick", "waits-behind"]
    async with gateway(settings):
        await world.until(lambda: all(world.results_of(name) for name in names))
        await asyncio.sleep(0.5)
    statuses = {name: {one["status"] for one in world.results_of(name)} for name in names}
    assert statuses.pop("slow-message") == {"unknown"}
    assert all(one == {"succeeded"} for one in statuses.values())
    assert [len(world.calls_of(name)) for name in names] == [1, 2, 1, 1]
    first, again = world.calls_of("slow-order")
    assert first.body == again.body


async def test_a_paused_gateway_that_comes_back_sends_nothing_twice(
    world: World, tmp_path: Path
) -> None:
    """After SIGSTOP past the session timeout, with a backlog in hand, then SIGCONT (G6, G9).

    Its successor has performed the backlog, so the paused one must not.
    """

    async def slow(call: Call) -> web.StreamResponse:
        await asyncio.sleep(0.15)
        return await says_yes(call)

    world.answer = slow
    names = [f"{number:03}" for number in range(60)]
    async with gateway_process(world.settings, tmp_path / "log") as paused:
        for number, name in enumerate(names):
            await world.command(name, f"session-{number % 3}")
        await world.until(lambda: len(world.calls) >= 5)
        paused.send_signal(signal.SIGSTOP)
        async with gateway(world.settings):
            await world.until(lambda: all(world.results_of(name) for name in names))
            paused.send_signal(signal.SIGCONT)
            await asyncio.sleep(3)
            assert paused.returncode is None, (tmp_path / "log").read_text()
            await world.command("after", "session-after")
            await world.until(lambda: world.results_of("after"))
    for name in [*names, "after"]:
        assert len(world.calls_of(name)) == 1, name
        statuses = {one["status"] for one in world.results_of(name)}
        assert len(statuses) == 1, (name, statuses)
    unknown = {one["commandId"] for one in world.results if one["status"] == "unknown"}
    assert len(unknown) <= 3, "only what was under way in each session"


# A gateway pauses at a step, past the session timeout, and comes back when its successor is done:
# calls of the message and its status, calls of the order (which always succeeds).
PAUSES = {
    "before start": (1, "succeeded", 1),
    "started": (0, "unknown", 1),
    "before call": (1, "unknown", 2),
}


async def test_a_gateway_paused_in_the_middle_of_an_attempt_does_not_do_it_again(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    """The first start in the log has the right to call, the first end is the result (G6, G9).

    Only a pause between the last check and the first byte leaves a call behind: of a message that
    is told as `unknown`, or of an order with the same key.
    """

    async def pause_at(step: str, tool: str) -> None:
        prefix = f"{kafka_settings.topic_prefix}{step.replace(' ', '.')}.{tool[:3]}."
        settings = kafka_settings.model_copy(update={"topic_prefix": prefix, "partitions": 1})
        message_calls, message_status, order_calls = PAUSES[step]
        async with (
            world_of(settings) as world,
            gateway_process(world.settings, tmp_path / prefix, f"pause at {step}") as paused,
        ):
            await world.command("c", "s1", tool)
            await world.until(lambda: "halted at" in (tmp_path / prefix).read_text())
            async with gateway(world.settings):
                await world.until(lambda: world.results)
                paused.send_signal(signal.SIGCONT)
                await world.until(lambda: len(world.results) > 1)
                await asyncio.sleep(1)
                assert paused.returncode is None
        status = message_status if tool == WHATSAPP else "succeeded"
        assert {one["status"] for one in world.results} == {status}, (step, tool)
        calls = message_calls if tool == WHATSAPP else order_calls
        assert len(world.calls_of("c")) == len(world.calls) == calls, (step, tool)

    await asyncio.gather(*(pause_at(step, tool) for step in PAUSES for tool in (WHATSAPP, CRM)))
