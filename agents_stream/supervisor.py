"""`agents-stream up`: everything on one machine, watched, and started again when it dies.

    broker (detached) ─┐
    sandbox ───────────┼─ topics ─┬─ worker ──┐
                                  └─ gateway ─┴─ ready ─ live feed, demo

What is started is stopped in the opposite order, the broker last; its data and every pending timer
are there again at the next `up`. Nothing of a session lives in this process.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx
import structlog

from agents_stream.core.errors import TerminalError
from agents_stream.demo import run as demo_run
from agents_stream.kafka import topic_admin
from agents_stream.live_feed import TOPICS, LiveFeed, starts_of
from agents_stream.settings import Settings
from agents_stream.up.broker import Broker
from agents_stream.up.children import Child, ChildSpec
from agents_stream.up.environment import (
    LOCALHOST,
    Plan,
    claim,
    environment_of,
    plan_up,
    require_free_port,
)
from agents_stream.up.narration import Narrator
from agents_stream.up.screen import Screen
from agents_stream.up.tail import Seen, follow

EXIT_DONE: Final = 0
EXIT_REFUSED: Final = 1
READY_LIMIT_S: Final = 90.0
GATEWAY_LIMIT_S: Final = 15.0
PROBE_S: Final = 0.1
PROBE_LIMIT_S: Final = 2.0
LOOK_EVERY_S: Final = 0.25
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

WORKER: Final = "worker"
GATEWAY: Final = "gateway"
SANDBOX: Final = "sandbox"

Watch = Callable[[list[Seen]], None]


def run_up(
    settings: Settings,
    *,
    demo: bool = False,
    sandbox_port: int | None = None,
    conversations: Path | None = None,
    quiet: bool = False,
) -> int:
    """Run everything until Ctrl-C or SIGTERM (or the demo's end); give the exit code.

    Args:
        settings: what the user has set.
        demo: play the recorded conversations, 60 times faster, and compare.
        sandbox_port: where the sandbox listens; the web port plus one if not given.
        conversations: what the demo plays, instead of examples/conversations.jsonl.
        quiet: no live feed.

    Raises:
        TerminalError: it cannot be started, or something died too often. The message says what.
        BrokerUnreachable: the broker runs and does not answer.

    """
    screen = Screen(sys.stdout)
    _be_silent()
    if demo:
        script = demo_run.read_script(conversations)
        plan = demo_run.plan_demo(settings, sandbox_port, screen.plain)
        with claim(plan.settings.data_dir) as lock:
            demo_run.empty(plan.settings)
            site = Site(plan, screen, lock)
            return asyncio.run(_run(site, lambda: demo_run.play(site, script)))
    plan = plan_up(settings, sandbox_port)
    with claim(plan.settings.data_dir) as lock:
        site = Site(plan, screen, lock)
        return asyncio.run(_run(site, lambda: _show(site, quiet=quiet)))


def _be_silent() -> None:
    """This process speaks through its screen; what its libraries log would only repeat it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    for name in ("aiokafka", "httpx", "kafka"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Site:
    """Everything that one `up` runs."""

    def __init__(self, plan: Plan, screen: Screen, lock: int) -> None:
        self.plan = plan
        self.screen = screen
        self.settings = plan.settings
        self.logs = plan.settings.data_dir / "logs"
        self.broker = Broker(plan.settings, screen.reporter(), screen.say)
        environment = environment_of(plan.settings)
        specs = [
            ChildSpec(WORKER, ("worker",)),
            ChildSpec(GATEWAY, ("gateway",), ready_event="partitions_held"),
        ]
        if plan.sandbox_port is not None:
            arguments = ("sandbox", "--port", str(plan.sandbox_port))
            specs.append(ChildSpec(SANDBOX, arguments))
        self.children = {
            spec.name: Child(spec, environment, self.logs, lock, screen.say) for spec in specs
        }
        self._keepers: list[asyncio.Task[None]] = []
        token = plan.settings.auth_token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self.worker_http = httpx.AsyncClient(
            base_url=plan.settings.listen_url, headers=headers, timeout=PROBE_LIMIT_S
        )

    async def start(self) -> float:
        """Start everything; give the seconds until it was ready.

        Raises:
            TerminalError: a port is taken, or something does not start.

        """
        began = time.monotonic()
        self._require_ports()
        if SANDBOX in self.children:
            self._keep(self.children[SANDBOX].keep())
        self._keep(self._look_at_logs())
        await self.broker.start()
        self._keep(self.broker.keep())
        created = await topic_admin.apply(self.settings)
        if created:
            self.screen.say(f"created {len(created)} topics")
        for name in (WORKER, GATEWAY):
            self._keep(self.children[name].keep())
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
                if self.plan.sandbox_url is not None:
                    await _until(lambda: self.answers(f"{self.plan.sandbox_url}/healthz"))
        except TimeoutError:
            words = self.children[WORKER].log.last_lines()
            said = "\n  ".join(words) or "(nothing)"
            raise TerminalError(
                f"the worker was not ready within {READY_LIMIT_S:g} s. Its last words"
                f" ({self.children[WORKER].log.path}):\n  {said}"
            ) from None
        with suppress(TimeoutError):
            await asyncio.wait_for(self.children[GATEWAY].ready.wait(), GATEWAY_LIMIT_S)

    async def until_worker_ready(self) -> None:
        """Wait until the worker owns its partitions and has recovered."""
        await _until(lambda: self.answers("/readyz"))

    async def answers(self, url: str) -> bool:
        """Say whether an address answers 200."""
        try:
            answer = await self.worker_http.get(url)
        except httpx.HTTPError:
            return False
        return answer.status_code == HTTPStatus.OK

    async def pending_timers(self) -> int | None:
        """Count the timers that run now, up to the largest page; None if nobody answers."""
        try:
            answer = await self.worker_http.get("/api/timers", params={"limit": 1_000})
            return len(answer.json()["items"])
        except (httpx.HTTPError, ValueError, KeyError):
            return None

    def kill_worker(self) -> bool:
        """End the worker with a kill -9, as the demo does; whether there was one."""
        return self.children[WORKER].signal(signal.SIGKILL)

    async def watch(self, feed: LiveFeed, watch: Watch) -> None:
        """Show what happens, and show it to `watch` as soon as it is read; for ever."""
        async for records in follow(self.settings, TOPICS, self.starts):
            watch(records)
            feed.take(records)
            for line in feed.due():
                self.screen.show(line)

    async def prepare_feed(self, narrator: Narrator) -> None:
        """Note where the log ends, so that nothing that comes from now on is missed."""
        self.starts = await starts_of(self.settings, narrator)

    async def failure(self) -> None:
        """Wait until a part of it fails for good.

        Raises:
            TerminalError: what it died of.

        """
        done, _ = await asyncio.wait(self._keepers, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Stop what was started: the children first, the broker last."""
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(self.children[name].stop() for name in (WORKER, GATEWAY)))
        if SANDBOX in self.children:
            await self.children[SANDBOX].stop()
        await self.worker_http.aclose()
        await self.broker.stop()

    def kill(self) -> None:
        """End everything at once."""
        for child in self.children.values():
            child.signal(signal.SIGKILL)
        self.broker.kill()

    def _keep(self, part: Any) -> None:
        self._keepers.append(asyncio.create_task(part))

    async def _look_at_logs(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for child in self.children.values():
                child.look()

    def introduce(self, ready_s: float) -> None:
        """Say where everything is."""
        settings, sandbox = self.settings, self.plan.sandbox_url
        self.screen.say(f"ready in {ready_s:.1f} s")
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


@dataclass(slots=True)
class _Stopping:
    """What the signals have asked for."""

    asked: asyncio.Event
    count: int = 0


@contextmanager
def _signals(site: Site) -> Iterator[_Stopping]:
    """Take the first signal as a wish, the second as an order."""
    stopping = _Stopping(asyncio.Event())
    loop = asyncio.get_running_loop()

    def take(number: signal.Signals) -> None:
        stopping.count += 1
        if stopping.count > 1:
            site.kill()
            os._exit(EXIT_REFUSED)
        site.screen.say(f"stopping ({number.name}); a second one ends everything at once")
        stopping.asked.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, take, number)
    try:
        yield stopping
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


async def _run(site: Site, work: Callable[[], Awaitable[int]]) -> int:
    """Start, work until the work ends or a signal comes, stop everything."""
    with _signals(site) as stopping:
        asked = asyncio.create_task(stopping.asked.wait())
        working = asyncio.create_task(_start_and(site, work))
        try:
            await asyncio.wait({asked, working}, return_when=asyncio.FIRST_COMPLETED)
            return await working if working.done() else EXIT_DONE
        finally:
            for task in (asked, working):
                task.cancel()
            await asyncio.gather(asked, working, return_exceptions=True)
            await site.stop()
            site.screen.say("stopped; its data stays, and its timers go on at the next start")


async def _start_and(site: Site, work: Callable[[], Awaitable[int]]) -> int:
    """Start the site, then work; what fails in the site ends the work."""
    starting = asyncio.create_task(site.start())
    await _first(starting, site)
    site.introduce(starting.result())
    doing = asyncio.ensure_future(work())
    await _first(doing, site)
    return doing.result()
