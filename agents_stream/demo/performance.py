"""The demo from its first event to the table.

All conversations run beside each other. It is over when nothing is pending and nothing has
happened for a while; then what the log, the books and the API say is compared with the script.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

import httpx
from aiokafka import AIOKafkaProducer

from agents_stream.client import AgentsStream
from agents_stream.core.actions import OWN_EVENT_PREFIX
from agents_stream.demo.player import Player
from agents_stream.demo.script import Conversation
from agents_stream.demo.verdict import Actual, Verdict, judge, show_table
from agents_stream.demo.witness import Witness
from agents_stream.kafka.connection import client_options
from agents_stream.live_feed import LiveFeed
from agents_stream.up.narration import Narrator
from agents_stream.up.site import Site

EXIT_DONE: Final = 0
EXIT_DIFFERENT: Final = 1
QUIET_S: Final = 1.5
QUIET_THOUGH_DIFFERENT_S: Final = 12.0
SETTLE_LIMIT_S: Final = 60.0
LOOK_EVERY_S: Final = 0.5

Json = dict[str, Any]


async def play(site: Site, script: Sequence[Conversation]) -> int:
    """Play the script and compare; on a terminal, stay up afterwards until somebody stops it.

    Returns:
        0 if everything came as expected, else 1.

    """
    site.exit_code = EXIT_DIFFERENT  # whoever stops the demo in its middle has proved nothing
    witness = Witness()
    watching = asyncio.create_task(_watch(site, witness))
    try:
        began = time.monotonic()
        site.screen.say(f"playing {len(script)} conversations; 10 minutes take 10 seconds here")
        performing = asyncio.create_task(_perform(site, script, witness))
        await asyncio.wait({performing, watching}, return_when=asyncio.FIRST_COMPLETED)
        verdicts = await performing if performing.done() else _never(watching)
        took_s = time.monotonic() - began
        site.exit_code = _conclude(site, verdicts, took_s)
        if _stays(site):
            site.screen.say("it stays up for you to play with; Ctrl-C ends it")
            site.show_places()
            await watching
        return site.exit_code
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _never(watching: asyncio.Task[None]) -> list[Verdict]:
    watching.result()
    raise AssertionError("watching goes on for ever")


async def _watch(site: Site, witness: Witness) -> None:
    narrator = Narrator(contents=True)
    feed = LiveFeed(narrator)
    async for records in site.follow(narrator):
        witness.take(records)
        feed.take(records)
        for line in feed.due():
            site.screen.show(line)


async def _perform(site: Site, script: Sequence[Conversation], witness: Witness) -> list[Verdict]:
    async with _raw_producer(site) as producer, AgentsStream(settings=site.settings) as stream:
        player = Player(site, stream, producer, witness)
        async with asyncio.TaskGroup() as group:
            for conversation in script:
                group.create_task(player.play(conversation))
        await player.finish()
    give_up_at = time.monotonic() + SETTLE_LIMIT_S
    while True:
        verdicts = await _judge_all(site, script, witness, player.problems)
        good = all(verdict.good for verdict in verdicts)
        enough_s = QUIET_S if good else QUIET_THOUGH_DIFFERENT_S
        if witness.quiet_s > enough_s or time.monotonic() > give_up_at:
            return verdicts
        await asyncio.sleep(LOOK_EVERY_S)


@asynccontextmanager
async def _raw_producer(site: Site) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(**client_options(site.settings), acks="all")
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def _judge_all(
    site: Site, script: Sequence[Conversation], witness: Witness, problems: dict[str, str]
) -> list[Verdict]:
    messages = await _listed(site.sandbox_http, "/books/messages")
    orders = await _listed(site.sandbox_http, "/books/orders")
    told = await _listed(site.sandbox_http, "/books?tool=webhook")
    verdicts = []
    for conversation in script:
        name = conversation.session
        testimony = witness[name]
        chats, contacts = conversation.named("conversationId"), conversation.named("contactId")
        attempts: dict[str, int] = {}
        for command in testimony.commands:
            attempts[command.tool] = attempts.get(command.tool, 0) + 1
        actual = Actual(
            outcomes=testimony.outcomes,
            messages=[one["message"] for one in messages if one["conversationId"] in chats],
            orders=sum(one["contact_id"] in contacts for one in orders),
            dead_letters=testimony.dead_letters,
            attempts=attempts,
            session=await _session(site.worker_http, name),
            told=_outcomes_told(told, name),
            problem=problems.get(name),
        )
        verdicts.append(judge(conversation, actual))
    return verdicts


async def _listed(http: httpx.AsyncClient, path: str) -> list[Json]:
    """Read a whole list of the sandbox; a demo fills one page of it."""
    answer = await http.get(path)
    answer.raise_for_status()
    items: list[Json] = answer.json()["items"]
    return items


async def _session(http: httpx.AsyncClient, session_id: str) -> Json | None:
    """Ask the API for a session; None if there is none, or nobody answers just now."""
    try:
        answer = await http.get(f"/api/sessions/{quote(session_id, safe='')}")
    except httpx.HTTPError:
        return None
    session: Json | None = answer.json() if answer.status_code == httpx.codes.OK else None
    return session


def _outcomes_told(told: list[Json], session_id: str) -> list[str]:
    """The ids of the outcomes of a session that the engine's webhook took, in their order."""
    return [
        one["key"]
        for one in told
        if one["performed"]
        and isinstance(one["inputs"], dict)
        and one["inputs"].get("sessionId") == session_id
        and not one["key"].startswith(OWN_EVENT_PREFIX)
    ]


def _conclude(site: Site, verdicts: list[Verdict], took_s: float) -> int:
    site.screen.plain()
    show_table(site.screen.console, verdicts)
    good = sum(verdict.good for verdict in verdicts)
    site.screen.say(f"{good} of {len(verdicts)} conversations went as expected, in {took_s:.0f} s")
    return EXIT_DONE if good == len(verdicts) else EXIT_DIFFERENT


def _stays(site: Site) -> bool:
    """Whether a person is there to play on."""
    return site.screen.is_terminal and os.environ.get("CI", "").lower() in {"", "0", "false"}
