"""`python -m tests.simulation.mutate`: break the protocol, and see each fault caught.

Every mutant gets a copy of the tree and worlds from seed 0 on until one of them breaks a guarantee.
Exit code 1 if one survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from tests.simulation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent.parent
COPIED = ("agents_stream", "tests", "topics.yaml", "pyproject.toml")
ONE_WORLD = """
import sys
from tests.simulation.runs import run_seed
for seed in range(int(sys.argv[1])):
    if faults := run_seed(seed).faults:
        print(seed + 1, faults[0][:150].replace(chr(10), " "), sep=chr(9))
        sys.exit(1)
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What caught a mutant, if anything."""

    mutant: Mutant
    caught_by: str | None
    seconds: float
    seeds: int | None = None


def tried(mutant: Mutant, max_seeds: int) -> Verdict:
    """Run worlds, then the test that is named, over a broken copy of the tree."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            whole = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            whole(ROOT / name, copy / name)
        broken = mutant.applied_to(ROOT)
        (copy / mutant.path).write_text(broken, "utf-8")
        words = ["-c", ONE_WORLD, str(max_seeds)]
        if mutant.test is not None:
            words = [
                "-m",
                "pytest",
                "-q",
                "-x",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:schemathesis",
                mutant.test,
            ]
        done = subprocess.run(
            [sys.executable, *words],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy), "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
    seconds = time.monotonic() - began
    if mutant.test is not None:
        return Verdict(mutant, mutant.test if done.returncode == 1 else None, seconds)
    if done.returncode == 0:
        return Verdict(mutant, None, seconds)
    seeds, _, fault = done.stdout.strip().rpartition("\n")[2].partition("\t")
    if not seeds.isdigit():
        raise RuntimeError(f"{mutant.name}: the worlds did not run: {done.stderr[-2_000:]}")
    return Verdict(mutant, fault, seconds, int(seeds))


def say(text: str) -> None:
    """Write a line, for whoever waits for it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Try every mutant."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_500, help="worlds that each is given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="those whose name holds this")
    asked = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if asked.only in mutant.name]
    console = Console()
    verdicts: list[Verdict] = []
    columns = (TextColumn("breaking"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        ThreadPoolExecutor(asked.jobs) as pool,
    ):
        task = bar.add_task("", total=len(chosen))
        for verdict in pool.map(lambda mutant: tried(mutant, asked.seeds), chosen):
            verdicts.append(verdict)
            bar.update(task, advance=1)
            if bar.disable:
                say(row(verdict))
    if not bar.disable:
        say("\n".join(row(verdict) for verdict in verdicts))
    survivors = [verdict.mutant.name for verdict in verdicts if verdict.caught_by is None]
    say(f"{len(verdicts) - len(survivors)} of {len(verdicts)} mutants were caught")
    if survivors:
        say(f"survivors, which are defects of the tests: {', '.join(survivors)}")
    return 1 if survivors else 0


def row(verdict: Verdict) -> str:
    """A line of the table in docs/simulation.md."""
    caught = verdict.caught_by
    if caught is None:
        by = "**survived**"
    elif verdict.seeds is None:
        by = f"`{caught}`"
    else:
        by = f"{caught[:3].strip(': ')} after {verdict.seeds} seeds"
    return f"| {verdict.mutant.name} | {by} | {verdict.seconds:.0f} s |"


if __name__ == "__main__":
    sys.exit(main())
