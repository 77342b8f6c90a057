"""The gateway on a real broker, with tools that fail in every way they can."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from agents_stream.core.errors import TerminalError
from agents_stream.kafka import embedded
from agents_stream.kafka.topics import (
    CRM_ORDER_CREATE,
    DEAD_LETTERS,
    GATEWAY_MEMORY,
    TOOL_RESULTS,
    WHATSAPP_MESSAGE_SEND,
    partition_for,
)
from agents_stream.settings import Settings
from agents_stream.stages.gateway import run_gateway
from agents_stream.stages.gateway.consuming import OrderedConsumer
from agents_stream.stages.gateway.memory import marker_of
from tests.conftest import free_port
from tests.kafka.gateway_world import (
    CRM,
    WHATSAPP,
    Call,
    World,
    gateway,
    says_yes,
    world_of,
)


@pytest.fixture
async def world(kafka_settings: Settings) -> AsyncIterator[World]:
    """Give a world with both tools, impatient ones."""
    limits = {"tool_connect_timeout": 500, "tool_read_timeout": 800}
    async with world_of(kafka_settings, **limits) as one:
        yield one


async def test_every_attempt_gets_its_result(world: World) -> None:
    """One POST and one result per attempt, keyed by the session, where Java would put it."""

    async def answer(call: Call) -> web.StreamResponse:
        status = int(call.key.split("-")[1])
        if status == 0:
            await asyncio.sleep(5)
        headers = {"Retry-After": "2"} if status == 429 else {}
        return web.json_response({"id": "o1"}, status=status or 200, headers=headers)

    world.answer = answer
    statuses = {200: "succeeded", 400: "failed", 429: "failed", 503: "failed", 0: "unknown"}
    async with gateway(world.settings):
        for status in statuses:
            await world.command(f"w-{status}", f"session-{status}")
        await world.command("c-0", "session-c", CRM)
        await world.until(lambda: len(world.results) == len(statuses) + 1)
    for status, expected in statuses.items():
        (result,) = world.results_of(f"w-{status}")
        assert result["status"] == expected
        assert result["retryable"] is (status in {429, 503})
        assert result["retryAfterMs"] == (2_000 if status == 429 else None)
        (call,) = world.calls_of(f"w-{status}")
        assert (call.path, call.body["message"]) == ("/whatsapp", "Hola")
    (order,) = world.results_of("c-0")
    assert (order["status"], order["retryable"], order["tool"]) == ("failed", True, CRM)
    for record in world.records[world.topic(TOOL_RESULTS)]:
        session = orjson.loads(record.value)["sessionId"].encode()
        assert record.key == session
        assert record.partition == partition_for(session, world.settings.partitions)


@pytest.mark.parametrize("tool", [WHATSAPP, CRM])
async def test_a_repeated_attempt_publishes_its_stored_result_and_calls_nobody(
    world: World, tool: str
) -> None:
    """A redelivered command is performed once, also by the next run; a new attempt is new (G6)."""
    async with gateway(world.settings):
        await world.command("a", tool=tool)
        await world.command("a", tool=tool)
        await world.until(lambda: len(world.results_of("a")) == 2)
    async with gateway(world.settings):
        await world.command("a", tool=tool)
        await world.until(lambda: len(world.results_of("a")) == 3)
        first, *others = world.results_of("a")
        assert others == [first, first]
        assert len(world.calls_of("a")) == 1
        await world.command("a", tool=tool, attempt=2)
        await world.until(lambda: len(world.calls_of("a")) == 2)
        await world.until(lambda: world.results[-1]["attempt"] == 2)


async def test_a_session_has_its_order_and_sessions_run_beside_each_other(world: World) -> None:
    """Commands of a session one after another, across both tools; others do not wait for them."""
    spans: dict[str, list[Call]] = defaultdict(list)

    async def answer(call: Call) -> web.StreamResponse:
        spans[call.body["session"]].append(call)
        await asyncio.sleep(random.uniform(0.0, 0.08))
        return await says_yes(call)

    world.answer = answer
    async with gateway(world.settings):
        for number in range(12):
            tool = (WHATSAPP, CRM)[number % 3 == 0]
            for session in range(6):
                await world.command(f"{number:02}", f"session-{session}", tool)
        await world.until(lambda: len(world.results) == 72)
    overlaps = 0
    for calls in spans.values():
        assert all(one.ended_at <= two.began_at for one, two in pairwise(calls))
        for path in ("/whatsapp", "/crm"):
            keys = [call.key for call in calls if call.path == path]
            assert keys == sorted(keys)
        others = [call for one in spans.values() if one is not calls for call in one]
        overlaps += sum(
            one.began_at < two.began_at < one.ended_at for one in calls for two in others
        )
    assert overlaps > 20


async def test_a_stop_ends_and_records_the_calls_under_way(world: World) -> None:
    """A clean stop leaves no `unknown`: it waits for the answer and writes it down."""

    async def slow(call: Call) -> web.StreamResponse:
        await asyncio.sleep(0.6)
        return await says_yes(call)

    world.answer = slow
    async with gateway(world.settings) as stop:
        await world.command("under-way", "s1")
        await world.command("waiting", "s1")
        await world.until(lambda: world.calls)
        stop.set()
    await world.until(lambda: world.results_of("under-way"))
    assert world.results_of("under-way")[0]["status"] == "succeeded"
    assert not world.calls_of("waiting")
    async with gateway(world.settings):
        await world.until(lambda: world.results_of("waiting"))
    assert [len(world.calls_of(name)) for name in ("under-way", "waiting")] == [1, 1]
    assert len(world.results) == 2


async def test_gateways_share_the_work_and_a_rebalance_repeats_nothing(world: World) -> None:
    """Two gateways come and go while commands flow: one call and one kind of result each (G6)."""

    async def slow(call: Call) -> web.StreamResponse:
        await asyncio.sleep(random.uniform(0.0, 0.2))
        return await says_yes(call)

    async def flow() -> None:
        for number in range(150):
            tool = (WHATSAPP, CRM)[number % 2]
            await world.command(f"{number:03}", f"session-{number % 17}", tool)
            await asyncio.sleep(0.03)

    world.answer = slow
    async with gateway(world.settings):
        flowing = asyncio.create_task(flow())
        await asyncio.sleep(1)
        async with gateway(world.settings):
            await asyncio.sleep(2)
        await asyncio.sleep(0.5)
        async with gateway(world.settings):
            await flowing
            names = [f"{number:03}" for number in range(150)]
            await world.until(lambda: all(world.results_of(name) for name in names))
    for name in names:
        assert len(world.calls_of(name)) == 1, name
        assert {one["status"] for one in world.results_of(name)} == {"succeeded"}, name


async def test_a_broker_that_restarts_delays_and_loses_nothing(tmp_path: Path) -> None:
    """Commands before, during and after the outage are performed once each (G11)."""
    settings = Settings(
        bootstrap_servers=f"127.0.0.1:{free_port()}", data_dir=tmp_path / "data", partitions=2
    )

    async def slow(call: Call) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        return await says_yes(call)

    await asyncio.to_thread(embedded.start, settings)
    try:
        async with world_of(settings) as world, gateway(world.settings):
            world.answer = slow
            for number in range(30):
                await world.command(f"a{number}", f"session-{number % 3}")
            await world.until(lambda: len(world.results) >= 3)
            await asyncio.to_thread(embedded.stop, settings)
            await asyncio.sleep(1)
            await asyncio.to_thread(embedded.start, settings)
            for number in range(10):
                await world.command(f"b{number}", f"session-{number % 3}")
            names = [*(f"a{number}" for number in range(30)), *(f"b{n}" for n in range(10))]
            await world.until(lambda: all(world.results_of(name) for name in names))
        assert all(len(world.calls_of(name)) == 1 for name in names)
        assert {one["status"] for one in world.results} == {"succeeded"}
    finally:
        await asyncio.to_thread(embedded.stop, settings)


async def test_what_is_no_command_is_buried_and_stops_nothing(world: World) -> None:
    """Others may write to the tools' topics: their records go to the dead letters (G10)."""
    bad = [b"{", b"[]", None, b'{"id": "x"}', b"\xff\xfe"]
    for value in bad:
        await world.publish(WHATSAPP_MESSAGE_SEND, value, "s1")
    await world.publish(CRM_ORDER_CREATE, b'{"id":"x","tool":"whatsapp.message.send"}', None)
    await world.command("good", "s1")
    async with gateway(world.settings):
        await world.until(lambda: world.results_of("good"))
        await world.until(lambda: len(world.seen(DEAD_LETTERS)) == len(bad) + 1)
    letters = world.seen(DEAD_LETTERS)
    assert sorted(one["reason"] for one in letters) == ["invalid_json"] * 3 + ["invalid_schema"] * 3
    assert {one["source"]["topic"] for one in letters} == {
        world.topic(WHATSAPP_MESSAGE_SEND),
        world.topic(CRM_ORDER_CREATE),
    }


async def test_a_tool_without_url_is_left_to_others(world: World) -> None:
    """A team may perform a tool itself: without its URL the gateway says nothing about it."""
    settings = world.settings.model_copy(update={"crm_url": None})
    async with gateway(settings):
        await world.command("order", "s1", CRM)
        await world.command("message", "s1")
        await world.until(lambda: world.results_of("message"))
    assert world.results_of("order") == []


async def test_a_group_that_lost_its_offsets_refuses_to_start(world: World) -> None:
    """Begun before, no offsets, and records waiting: a person must say where to go on (§4)."""
    await world.command("old", "s1")
    number = partition_for(b"s1", world.settings.partitions)
    key, value = marker_of(world.settings.gateway_group_id)
    await world.producer.send_and_wait(
        world.topic(GATEWAY_MEMORY), value, key=key.encode(), partition=number
    )
    with pytest.raises(TerminalError, match="AGENTS_STREAM_START_FROM=earliest"):
        await run_gateway(world.settings, asyncio.Event())
    async with gateway(world.settings.model_copy(update={"start_from": "latest"})):
        await asyncio.sleep(1.5)
        await world.command("new", "s1")
        await world.until(lambda: world.results_of("new"))
    async with gateway(world.settings):
        await world.command("newer", "s1")
        await world.until(lambda: world.results_of("newer"))
    assert not world.calls_of("old")


async def test_a_first_start_takes_what_is_there(world: World) -> None:
    """The worker may have run before the first gateway ever: nothing is skipped (G1)."""
    for number in range(5):
        await world.command(f"early-{number}", f"session-{number}")
    async with gateway(world.settings):
        await world.until(lambda: len(world.results) == 5)


async def test_what_cannot_work_is_said_at_once(kafka_settings: Settings) -> None:
    """Nothing to call, no topics: each ends with words that say what to do (G11)."""
    with pytest.raises(TerminalError, match="nothing to call"):
        await run_gateway(kafka_settings, asyncio.Event())
    url = "http://127.0.0.1:9/x"
    with pytest.raises(TerminalError, match="topics apply"):
        await run_gateway(kafka_settings.model_copy(update={"crm_url": url}), asyncio.Event())


async def test_a_part_that_ends_unasked_is_no_clean_stop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G11: exit code 0 is for who was asked to stop; whatever else ends a gateway is told."""

    async def end_quietly(_self: OrderedConsumer, _stop: asyncio.Event) -> None:
        return

    monkeypatch.setattr(OrderedConsumer, "run", end_quietly)
    with pytest.raises(TerminalError, match="nobody asked it to"):
        await asyncio.wait_for(run_gateway(world.settings, asyncio.Event()), 30)
