"""`python -m tests.chaos --minutes 10 --seed 1`: exit 0 if every promise was kept, else 1."""

import argparse
import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import structlog

from tests.chaos.report import as_text
from tests.chaos.run import Run, Wish

MAX_SHOWN: Final = 50
MAX_MINUTES: Final = 7 * 24 * 60


def main() -> int:
    """Run, print, and keep the data where something is wrong."""
    asked = _arguments()
    # aiokafka has much to say while the broker is away; what matters is in the report.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    # The run's settings are its own, not those of whoever runs it.
    for name in [name for name in os.environ if name.startswith("AGENTS_STREAM_")]:
        del os.environ[name]
    wish = Wish(asked.seed, asked.minutes * 60, asked.store, asked.rate)
    command = f"make chaos MINUTES={asked.minutes:g} SEED={wish.seed} STORE={wish.store}"
    say(f"seed {wish.seed}; to repeat: {command}")
    folder = asked.data or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        say(f"{folder} holds something: a run begins with an empty folder")
        return 2
    try:
        report = asyncio.run(_run(wish, folder))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say(f"stopped; everything is ended, the data lies in {folder}")
        return 1
    return _tell(report, folder, command, keep=asked.data is not None)


async def _run(wish: Wish, folder: Path) -> dict[str, Any]:
    task = asyncio.create_task(Run(wish, folder, say).whole())
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:  # a second signal must not interrupt the ending of the processes
            stopping = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return await task


def _tell(report: dict[str, Any], folder: Path, command: str, *, keep: bool) -> int:
    for line in as_text(report):
        say(line)
    say(f"to repeat: {command}")
    for violation in report["violations"][:MAX_SHOWN]:
        say(f"VIOLATION {violation}")
    if not report["ok"]:
        say(f"the data lies in {folder}: report.json, history.json, records.jsonl, */log.txt")
        return 1
    if keep:
        say(f"the report is {folder / 'report.json'}")
    else:
        shutil.rmtree(folder)
    return 0


def say(words: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {words}\n")
    sys.stdout.flush()


def _minutes(text: str) -> float:
    """A time to run, above zero."""
    minutes = float(text)
    if not 0 < minutes < MAX_MINUTES:
        raise argparse.ArgumentTypeError(f"{text} is no time to run: more than 0 minutes")
    return minutes


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--minutes", type=_minutes, default=10.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--store", choices=("mixed", "memory", "rocksdb"), default="mixed")
    parser.add_argument("--rate", type=float, default=4.0, help="new conversations per second")
    parser.add_argument(
        "--data", type=Path, help="where to keep logs and report, also if all is well"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
