"""Everything that one `up` runs, from `start` to `stop`.

    broker (detached) ─┐
    sandbox ───────────┼─ topics ─┬─ worker ──┐
                                  └─ gateway ─┴─ ready

What is started is stopped in the opposite order, the broker last.
"""

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

import httpx

from agents_stream.core.errors import TerminalError
from agents_stream.kafka import topic_admin
from agents_stream.live_feed import TOPICS, Beginning, mark_beginning, tell_rows
from agents_stream.up.broker import Broker
from agents_stream.up.children import Child, ChildSpec
from agents_stream.up.environment import LOCALHOST, Plan, environment_of, require_free_port
from agents_stream.up.narration import Narrator
from agents_stream.up.screen import Screen
from agents_stream.up.tail import Seen, follow, wake_coordinator

READY_LIMIT_S: Final = 120.0
GATEWAY_LIMIT_S: Final = 15.0
PROBE_S: Final = 0.15
PROBE_LIMIT_S: Final = 2.0
LOOK_EVERY_S: Final = 0.25
MAX_TIMERS: Final = 1_000

WORKER: Final = "worker"
GATEWAY: Final = "gateway"
SANDBOX: Final = "sandbox"


class Site:
    """The processes of one machine.

    Args:
        plan: what to run.
        screen: where everything is told.
        lock: the descriptor of the data directory's lock, which the children inherit.

    `exit_code` is what `up` ends with when somebody stops it; `failed` gets the error of a part
    that has failed for good.

    """

    def __init__(self, plan: Plan, screen: Screen, lock: int) -> None:
        self.plan = plan
        self.screen = screen
        self.settings = plan.settings
        self.logs = plan.settings.data_dir / "logs"
        self.exit_code = 0
        self._beginning: Beginning | None = None
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._broker = Broker(plan.settings, screen.reporter(), screen.say)
        self._children = self._make_children(lock)
        self._keepers: list[asyncio.Task[None]] = []
        token = plan.settings.auth_token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self.worker_http = httpx.AsyncClient(
            base_url=plan.settings.listen_url, headers=headers, timeout=PROBE_LIMIT_S
        )
        self.sandbox_http = httpx.AsyncClient(
            base_url=plan.sandbox_url or "", timeout=PROBE_LIMIT_S
        )

    def _make_children(self, lock: int) -> dict[str, Child]:
        environment = environment_of(self.settings)
        specs = [
            ChildSpec(WORKER, ("worker",), "agents_stream.app"),
            ChildSpec(GATEWAY, ("gateway",), "agents_stream.stages.gateway", "partitions_held"),
        ]
        if (port := self.plan.sandbox_port) is not None:
            arguments = ("sandbox", "--port", str(port))
            specs.append(ChildSpec(SANDBOX, arguments, "agents_stream.sandbox"))
        return {
            spec.name: Child(spec, environment, self.logs, lock, self.screen.say) for spec in specs
        }

    async def start(self) -> float:
        """Start everything; give the seconds until it was ready.

        Raises:
            TerminalError: a port is taken, or something does not start.
            RetryableError: the broker stopped to answer meanwhile.

        """
        began = time.monotonic()
        self._require_ports()
        self._keep(self._look_at_logs())
        for child in self._children.values():
            self._keep(child.keep())
        if SANDBOX in self._children:
            self._children[SANDBOX].release()
        await self._broker.start()
        self._keep(self._broker.keep())
        created, _ = await asyncio.gather(
            topic_admin.apply(self.settings), wake_coordinator(self.settings)
        )
        if created:
            self.screen.say(f"created {len(created)} topics")
        self._beginning = await mark_beginning(self.settings)
        for name in (WORKER, GATEWAY):
            self._children[name].release()
        await self._until_ready()
        return time.monotonic() - began

    def _require_ports(self) -> None:
        settings, port = self.settings, self.plan.sandbox_port
        require_free_port(
            settings.web_host, settings.web_port, "the worker", "AGENTS_STREAM_WEB_PORT"
        )
        if port is not None:
            require_free_port(LOCALHOST, port, "the sandbox", "--sandbox-port")

    async def _until_ready(self) -> None:
        try:
            async with asyncio.timeout(READY_LIMIT_S):
                await self.until_worker_ready()
                if SANDBOX in self._children:
                    await _until(lambda: _answers(self.sandbox_http, "/healthz"))
        except TimeoutError:
            log = self._children[WORKER].log
            said = "\n  ".join(log.last_lines()) or "(nothing)"
            raise TerminalError(
                f"the worker was not ready within {READY_LIMIT_S:g} s. Its last words"
                f" ({log.path}):\n  {said}"
            ) from None
        with suppress(TimeoutError):
            await asyncio.wait_for(self._children[GATEWAY].ready.wait(), GATEWAY_LIMIT_S)

    async def until_worker_ready(self) -> None:
        """Wait until the worker owns its partitions and has recovered."""
        await _until(lambda: _answers(self.worker_http, "/readyz"))

    async def pending_timers(self) -> int | None:
        """Count the timers that run now, at most MAX_TIMERS; None if nobody answers."""
        try:
            answer = await self.worker_http.get("/api/timers", params={"limit": MAX_TIMERS})
            return len(answer.json()["items"])
        except (httpx.HTTPError, ValueError, KeyError):
            return None

    def kill_worker(self) -> bool:
        """End the worker with a kill -9, as the demo does; whether there was one."""
        return self._children[WORKER].signal(signal.SIGKILL)

    async def follow(self, narrator: Narrator) -> AsyncGenerator[list[Seen], None]:
        """Give what has happened since the start of the worker, and goes on to happen, for ever.

        The narrator is told first what the sessions were at that time.

        Raises:
            RetryableError: Kafka cannot be read.

        """
        assert self._beginning is not None, "started"
        await tell_rows(self.settings, self._beginning, narrator)
        async for records in follow(self.settings, TOPICS, self._beginning.starts):
            yield records

    async def stop(self) -> None:
        """Stop what was started: the children first, the broker last."""
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if not self.failed.cancel():
            self.failed.exception()  # somebody has heard of it, or nobody is left to hear
        await asyncio.gather(*(self._children[name].stop() for name in (WORKER, GATEWAY)))
        if SANDBOX in self._children:
            await self._children[SANDBOX].stop()
        await self.worker_http.aclose()
        await self.sandbox_http.aclose()
        await self._broker.stop()

    def kill(self) -> None:
        """End everything at once."""
        for child in self._children.values():
            child.signal(signal.SIGKILL)
        self._broker.kill()

    def introduce(self, ready_s: float) -> None:
        """Say where everything is."""
        self.screen.say(f"ready in {ready_s:.1f} s")
        self.show_places()

    def show_places(self) -> None:
        """List the addresses."""
        settings, sandbox = self.settings, self.plan.sandbox_url
        places = [("console", f"{settings.listen_url}/", "sessions, timers, timelines")]
        if sandbox is not None:
            places += [
                ("chat", f"{sandbox}/chat", "be the customer"),
                ("books", f"{sandbox}/books", "what the tools were asked to do"),
            ]
        places += [
            ("Kafka", settings.bootstrap_servers, "the embedded broker"),
            ("logs", str(self.logs), "one file for each process"),
        ]
        for name, place, what in places:
            self.screen.plain(f"  {name:<8} {place:<34} {what}")

    def _keep(self, part: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(part)
        task.add_done_callback(self._note_end)
        self._keepers.append(task)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self.failed.done():
            return
        error = task.exception() or AssertionError("what runs for ever has ended")
        self.failed.set_exception(error)

    async def _look_at_logs(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for child in self._children.values():
                child.look()


async def _answers(http: httpx.AsyncClient, path: str) -> bool:
    try:
        answer = await http.get(path)
    except httpx.HTTPError:
        return False
    return answer.status_code == HTTPStatus.OK


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask until the answer is yes; whoever calls has a limit."""
    while not await condition():  # noqa: ASYNC110 - other processes set no event of ours
        await asyncio.sleep(PROBE_S)
