"""Plays the conversations: each step at its time, all conversations beside each other."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final, assert_never

import httpx
import orjson
from aiokafka import AIOKafkaProducer

from agents_stream.client import AgentsStream
from agents_stream.core.errors import TerminalError
from agents_stream.demo.script import (
    Conversation,
    EventStep,
    FaultStep,
    RawStep,
    Step,
    WorldStep,
)
from agents_stream.demo.witness import Witness
from agents_stream.kafka.topics import load_topics
from agents_stream.up.site import Site

AFTER_LIMIT_S: Final = 60.0
LAST_COMMAND: Final = "$lastCommand"
_DYING_S: Final = 0.2


class Player:
    """Sends what is recorded.

    Args:
        site: the system that is played on.
        stream: the client that an engine would use.
        producer: for the records that no such client would send.
        witness: knows what has happened so far.

    `problems` names the steps that could not be taken, by session.

    """

    def __init__(
        self, site: Site, stream: AgentsStream, producer: AIOKafkaProducer, witness: Witness
    ) -> None:
        self._site = site
        self._stream = stream
        self._producer = producer
        self._witness = witness
        self._began = time.monotonic()
        self._returning: set[asyncio.Task[None]] = set()
        self.problems: dict[str, str] = {}

    async def play(self, conversation: Conversation) -> None:
        """Play one conversation to its last step."""
        for number, step in enumerate(conversation.steps, 1):
            try:
                await self._wait(conversation, step)
                await self._take(conversation, step)
            except TimeoutError:
                problem = f"step {number} waited in vain for what was to come before it"
            except (TerminalError, httpx.HTTPError) as error:
                problem = f"step {number}: {error!r}"
            else:
                continue
            self.problems[conversation.session] = problem
            return

    async def finish(self) -> None:
        """Wait until the worker is back, if it was killed."""
        await asyncio.gather(*self._returning)

    async def _wait(self, conversation: Conversation, step: Step) -> None:
        since = self._began
        if step.after is not None:
            async with asyncio.timeout(AFTER_LIMIT_S):
                await self._witness.until(conversation.session, step.after)
            since = time.monotonic()
        await asyncio.sleep(since + step.at / 1000 - time.monotonic())

    async def _take(self, conversation: Conversation, step: Step) -> None:
        match step:
            case EventStep():
                await self._stream.send_envelope(self._envelope(conversation, step))
            case RawStep():
                await self._send_raw(conversation, step)
            case FaultStep():
                answer = await self._site.sandbox_http.post("/faults", json=step.fault)
                answer.raise_for_status()
            case WorldStep():
                await self._kill_worker()
            case _:
                assert_never(step)

    def _envelope(self, conversation: Conversation, step: EventStep) -> Mapping[str, Any]:
        data = {"sessionId": conversation.session, **step.data}
        if LAST_COMMAND in data.values():
            last = self._witness[conversation.session].commands[-1].id
            data = {key: last if value == LAST_COMMAND else value for key, value in data.items()}
        identity = {} if step.id is None else {"id": step.id}
        return {"name": step.event, "data": data, **identity}

    async def _send_raw(self, conversation: Conversation, step: RawStep) -> None:
        raw = step.raw
        value = raw.value if isinstance(raw.value, str) else orjson.dumps(raw.value).decode()
        await self._producer.send_and_wait(
            load_topics().name(raw.topic, self._site.settings.topic_prefix),
            value=value.encode(),
            key=(raw.key or conversation.session).encode(),
        )

    async def _kill_worker(self) -> None:
        timers = await self._site.pending_timers()
        if not self._site.kill_worker():
            raise TerminalError("there was no worker to kill")
        self._site.screen.say(f"kill -9: the worker is gone, while {timers} timers are pending")
        self._returning.add(asyncio.create_task(self._welcome_back()))

    async def _welcome_back(self) -> None:
        began = time.monotonic()
        await asyncio.sleep(_DYING_S)
        await self._site.until_worker_ready()
        self._site.screen.say(
            f"the worker is back after {time.monotonic() - began:.1f} s and forgot nothing: what"
            " was due meanwhile fires now, after the answers that came before it"
        )
