"""The commands that run until they are stopped: `up`, `worker`, `gateway`, `sandbox`."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Final

import structlog
import typer

from agents_stream.cli.options import BROKER, CONNECTION, FLOWS, TOOLS, WEB, WORKER, takes
from agents_stream.leash import hold_parent
from agents_stream.settings import Settings

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help stays quick

Run = Callable[[asyncio.Event], Awaitable[None]]

SANDBOX_PORT: Final = 6067
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("up")(up)
    app.command("worker")(worker)
    app.command("gateway")(gateway)
    app.command("sandbox")(sandbox)


class StopSignals:
    """Takes SIGTERM and SIGINT from its making on; a second one ends the process at once.

    It is made before anything slow is imported: who stops a worker that is still starting gets
    exit code 0 too. A process that `up` started ends with it, as at a SIGTERM.
    """

    def __init__(self) -> None:
        self.leashed = hold_parent()
        self._caught = False
        self._before = {number: signal.signal(number, self._note) for number in _STOPPING}
        # A process that began anew in place has kept what came in between (resumption.py).
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._caught = True
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, run: Run) -> None:
        """Run something until it ends by itself or a signal sets its event."""
        asyncio.run(self._run(run))

    async def _run(self, run: Run) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stop_once() -> None:
            for number in _STOPPING:
                loop.remove_signal_handler(number)
            self._give_back()
            stop.set()

        if self._caught:
            return
        for number in _STOPPING:
            loop.add_signal_handler(number, stop_once)
        await run(stop)


@takes(*dict.fromkeys((*BROKER, *WORKER, *TOOLS)), log_level="info")
def up(
    settings: Settings,
    *,
    demo: Annotated[
        bool, typer.Option("--demo", help="Play recorded conversations, 60 times faster.")
    ] = False,
    conversations: Annotated[
        Path | None, typer.Option(help="With --demo: the conversations to play.")
    ] = None,
    sandbox_port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="The port of the sandbox.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no live feed.")] = False,
) -> None:
    """Run everything on this machine: Kafka, topics, worker, gateway, sandbox, console."""
    if conversations is not None and not demo:
        raise typer.BadParameter("--conversations is for --demo")
    from agents_stream.supervisor import run_up

    raise typer.Exit(
        run_up(
            settings,
            demo=demo,
            sandbox_port=sandbox_port,
            conversations=conversations,
            quiet=quiet,
        )
    )


@takes(*WORKER, log_level="info")
def worker(settings: Settings) -> None:
    """Run one worker of the cluster until it is stopped."""
    signals = StopSignals()
    from agents_stream.app import run_worker
    from agents_stream.kafka.resumption import Resumption

    resumption = Resumption(allowed=not signals.leashed)
    signals.run(lambda stop: run_worker(settings, stop, resumption))


@takes(*CONNECTION, "partitions", *TOOLS, "start_from", log_level="info")
def gateway(settings: Settings) -> None:
    """Perform tool commands over HTTP until it is stopped."""
    signals = StopSignals()
    from agents_stream.core.errors import BrokerUnreachable
    from agents_stream.kafka.resumption import Resumption
    from agents_stream.stages.gateway import run_gateway

    resumption = Resumption(allowed=not signals.leashed)
    try:
        signals.run(lambda stop: run_gateway(settings, stop, resumption))
    except BrokerUnreachable as error:
        structlog.get_logger().critical("gateway ends itself", reason=str(error))
        resumption.begin_anew()
        raise


@takes(*WEB, *FLOWS, log_level="info")
def sandbox(
    settings: Settings,
    *,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="The port.")] = SANDBOX_PORT,
) -> None:
    """Run the sandbox alone: a WhatsApp and a CRM to play with."""
    signals = StopSignals()
    from agents_stream.sandbox import run_sandbox

    # It takes the same signals itself, once it runs.
    signals.run(lambda _stop: run_sandbox(settings, port, host))
