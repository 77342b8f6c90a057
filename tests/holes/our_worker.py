"""Our worker with a bug or an accident planted: `python -m tests.holes.our_worker ACCIDENT`.

The same situations that a plain Faust program meets in `plain_faust.py`.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from agents_stream.cli import main as command_line
from agents_stream.kafka.consumer import Batch
from agents_stream.stages.sessions import Sessions
from agents_stream.stages.timers import Timers

log = structlog.get_logger()


def _named(batches: Sequence[Batch], text: bytes) -> bool:
    return any(text in (record.key or b"") for batch in batches for record in batch.records)


def raising() -> None:
    """The reducer has a bug that sessions named `bad` meet."""
    work = Sessions.work

    async def broken(self: Sessions, batches: Sequence[Batch]) -> None:
        if _named(batches, b"bad"):
            raise ZeroDivisionError("a bug")
        await work(self, batches)

    Sessions.work = broken  # type: ignore[method-assign]


def slow() -> None:
    """The reducer never finishes with a session named `by_name`."""
    work = Sessions.work

    async def hanging(self: Sessions, batches: Sequence[Batch]) -> None:
        if _named(batches, b"slow"):
            log.info("slow begun")
            await asyncio.sleep(3_600)
        await work(self, batches)

    Sessions.work = hanging  # type: ignore[method-assign]


def rebuilding() -> None:
    """The wheel cannot be built from the rows."""

    async def broken(self: Timers, partition: int, rows: Any) -> None:
        raise ValueError("a bug in the rebuilding")

    Timers.rebuild = broken  # type: ignore[method-assign]


ACCIDENTS: dict[str, Callable[[], None]] = {
    accident.__name__: accident for accident in (raising, slow, rebuilding)
}


def main() -> None:
    """Run the worker until it ends."""
    if len(sys.argv) > 1:
        ACCIDENTS[sys.argv[1]]()
    command_line(["worker"])


if __name__ == "__main__":
    main()
