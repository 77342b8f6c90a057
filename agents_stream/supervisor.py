"""`agents-stream up`: everything on one machine, watched, and started again when it dies.

What may live here: what comes after what, signals and exit codes. Who the processes are stands in
`up/site.py`. Nothing of a session lives in this process: its data and every pending timer are
there again at the next `up`.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from agents_stream.demo import plan_demo, play, prepare_folder
from agents_stream.demo.script import read_script
from agents_stream.live_feed import LiveFeed
from agents_stream.settings import Settings
from agents_stream.up.environment import Plan, claim, plan_up
from agents_stream.up.narration import Narrator
from agents_stream.up.screen import Screen
from agents_stream.up.site import Site

EXIT_DONE: Final = 0
EXIT_REFUSED: Final = 1
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Work = Callable[[Site], Awaitable[int]]
T = TypeVar("T")


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
    _be_silent()
    screen = Screen(sys.stdout)
    if not demo:
        plan = plan_up(settings, sandbox_port)
        return _run(plan, screen, lambda site: _show(site, quiet=quiet))
    script = read_script(conversations)
    plan = plan_demo(settings, sandbox_port, screen)
    return _run(plan, screen, lambda site: play(site, script))


def _be_silent() -> None:
    """Leave the talking to the screen: what the libraries log would only repeat it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    for name in ("aiokafka", "httpx"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _run(plan: Plan, screen: Screen, work: Work) -> int:
    with claim(plan.settings.data_dir) as lock:
        if plan.fresh:
            prepare_folder(plan.settings)
        return asyncio.run(_run_site(plan, screen, lock, work))


async def _run_site(plan: Plan, screen: Screen, lock: int, work: Work) -> int:
    """Start, work until the work ends or a signal comes, stop everything."""
    site = Site(plan, screen, lock)
    with _signals(site) as stopping:
        asked = asyncio.create_task(stopping.asked.wait())
        working = asyncio.create_task(_start_and_work(site, work))
        try:
            await asyncio.wait({asked, working}, return_when=asyncio.FIRST_COMPLETED)
            return await working if working.done() else site.exit_code
        finally:
            for task in (asked, working):
                task.cancel()
            await asyncio.gather(asked, working, return_exceptions=True)
            await site.stop()
            screen.say("everything is stopped")


async def _start_and_work(site: Site, work: Work) -> int:
    ready_s = await _unless_failed(site, site.start())
    site.introduce(ready_s)
    if timers := await site.pending_timers():
        site.screen.say(f"going on with {timers} pending timers")
    return await _unless_failed(site, work(site))


async def _unless_failed(site: Site, part: Awaitable[T]) -> T:
    """Await something; what fails in the site for good ends it.

    Raises:
        TerminalError: what a part of the site died of.

    """
    task = asyncio.ensure_future(part)
    try:
        parts: set[asyncio.Future[Any]] = {task, site.failed}
        await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            site.failed.result()
        return await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _show(site: Site, *, quiet: bool) -> int:
    """Show what happens until somebody stops it."""
    if quiet:
        await asyncio.Event().wait()
    narrator = Narrator(contents=False)
    feed = LiveFeed(narrator)
    async for records in site.follow(narrator):
        feed.take(records)
        for line in feed.due():
            site.screen.show(line)
    return EXIT_DONE


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
