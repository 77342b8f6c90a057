"""`python -m tests.simulation --seeds 10000`: many worlds, over all processors."""

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation.runs import REQUIRED, Run, collect_seldom, run_seed, shrink, told

ENOUGH_SEEDS = 250


def say(text: str) -> None:
    """Write a line, for whoever waits for it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the worlds; 1 if one of them breaks a guarantee, or if they were too tame."""
    asked = _asked()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets are walked in the order of hashes: only with fixed ones a seed is one history.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])  # noqa: S606 - ourselves
    seen: Counter[str] = Counter()
    began, worlds = time.monotonic(), 0
    console = Console()
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=asked.seeds)
        for one in _runs(range(asked.first, asked.first + asked.seeds), asked.jobs):
            worlds += 1
            seen += one.seen
            bar.update(task, advance=1)
            if one.faults:
                bar.stop()
                say(told(one, shrink(one)))
                return 1
            if asked.minutes and time.monotonic() - began > asked.minutes * 60:
                break
    say(f"{worlds} worlds in {time.monotonic() - began:.0f} s, and every guarantee held.")
    for what, count in sorted(seen.items()):
        say(f"{count:>9}  {what}")
    missing = [what for what in REQUIRED if not seen[what]]
    if missing and worlds >= ENOUGH_SEEDS:
        say(f"These never happened, so the worlds are too tame: {', '.join(missing)}")
        return 1
    return 0


def _runs(seeds: range, jobs: int) -> Iterator[Run]:
    """Every seed's run, as they come."""
    if jobs == 1:
        collect_seldom()
        yield from map(run_seed, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, collect_seldom) as pool:
        yield from pool.imap_unordered(run_seed, seeds, chunksize=4)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many worlds")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so long")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
