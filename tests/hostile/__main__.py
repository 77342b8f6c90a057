"""`python -m tests.hostile`: a million hostile records through a live worker, and a verdict."""

import argparse
import asyncio
import random
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agents_stream.kafka import embedded
from agents_stream.settings import Settings
from tests.conftest import free_port
from tests.hostile.siege import MAX_PEAK_MIB, Report, besiege

console = Console()


def main() -> int:
    """Run a siege; the exit code says whether every record was found."""
    parser = argparse.ArgumentParser(prog="hostile", description=__doc__)
    parser.add_argument("--records", type=_some, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    options = parser.parse_args()
    # A SIGTERM ends it as Ctrl-C does: the broker and the worker must not be left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console.print(f"{options.records} records, seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            bootstrap_servers=f"127.0.0.1:{free_port()}",
            data_dir=Path(folder),
            partitions=4,
            web_port=free_port(),
            data_reply_timeout=60_000,
            promos_reply_timeout=2_000,
        )
        embedded.start(settings)
        try:
            report = asyncio.run(besiege(settings, options.records, options.seed, _say))
        finally:
            embedded.stop(settings)
    _show(report)
    return 1 if report.faults else 0


def _some(text: str) -> int:
    """A number of records, at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of records, 1 or more")
    return int(text)


def _say(words: str) -> None:
    console.print(words, end="\r" if words.startswith("lag") else "\n")


def _show(report: Report) -> None:
    table = Table("kind", "records", "accepted", "in the dead letters")
    for kind, count in report.sent.kinds.items():
        reasons = {reason: n for (name, reason), n in report.buried.items() if name == kind}
        told = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items()))
        table.add_row(kind, str(count), str(report.accepted[kind]), told)
    console.print(table)
    for words, count in report.sent.refused.items():
        console.print(f"the broker refused {count} records: {words}")
    aborted = sum(len(offsets) for offsets in report.sent.aborted.values())
    console.print(
        f"{report.sent.count} records and {aborted} aborted ones in {report.seconds:.0f} s; "
        f"{report.canaries} canaries; the worker's peak {report.peak_mib} of {MAX_PEAK_MIB} MiB"
    )
    for fault in report.faults:
        console.print(f"[bold red]fault[/] {fault}")
    console.print(
        "[bold red]FAILED[/]" if report.faults else "[green]every record is accounted for[/]"
    )


if __name__ == "__main__":
    sys.exit(main())
