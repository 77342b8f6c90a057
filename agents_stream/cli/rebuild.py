"""`timers rebuild`: repair the table from the journal, while no worker runs."""

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agents_stream.cli.options import CONNECTION, takes
from agents_stream.cli.output import note, print_json, print_table, progress_bar, say
from agents_stream.settings import Settings

if TYPE_CHECKING:
    from agents_stream.rebuild import Plan

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help stays quick

EXIT_REFUSED: Final = 1
MAX_SHOWN: Final = 50


@takes(*CONNECTION)
def rebuild(
    settings: Settings,
    *,
    session: Annotated[str | None, typer.Option("--session", help="Only this session.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write without asking.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Repair sessions' records, and so their timers, from the journal. Stop the workers first."""
    asyncio.run(_rebuild(settings, session, dry_run=dry_run, yes=yes, json=json))


async def _rebuild(
    settings: Settings, session: str | None, *, dry_run: bool, yes: bool, json: bool
) -> None:
    from agents_stream import rebuild as rebuilding
    from agents_stream.cli.cluster import as_in_cluster
    from agents_stream.kafka.topics import CLOCK, JOURNAL, SESSIONS_CHANGELOG

    settings = await as_in_cluster(settings, JOURNAL, SESSIONS_CHANGELOG, CLOCK)
    if not dry_run:
        await rebuilding.require_no_workers(settings)
    with progress_bar("replaying") as progress:
        made = await rebuilding.plan(settings, progress, session)
    if not json:
        _show(made)
    wanted = bool(made.repairs) and not dry_run
    if wanted and not yes and sys.stdin.isatty():
        yes = typer.confirm(f"Write {len(made.repairs)} records anew?", abort=True, err=True)
    writes = wanted and yes
    if writes:
        with progress_bar("writing") as progress:
            await rebuilding.write(settings, made, progress)
    if json:
        print_json(made.to_json(written=writes))
    elif writes:
        say(f"{len(made.repairs)} records are written anew: start the workers")
    if wanted and not writes:
        note("agents-stream: nothing was written: --yes writes, --dry-run only shows")
    if made.untouched or (wanted and not writes):
        raise typer.Exit(EXIT_REFUSED)


def _show(made: "Plan") -> None:
    say(f"{made.sessions} sessions replayed from {made.entries} journal entries")
    if made.not_provable:
        say(f"{made.not_provable} sessions cannot be proved: their first entries are gone")
    if made.repairs:
        rows = [
            (item.session_id, item.partition, item.journal_offset, item.why)
            for item in made.repairs[:MAX_SHOWN]
        ]
        print_table(("session", "partition", "up to offset", "why"), rows)
    if len(made.repairs) > MAX_SHOWN:
        say(f"and {len(made.repairs) - MAX_SHOWN} more: --json shows all")
    say(f"{len(made.repairs)} records to be written anew")
    for item in made.untouched[:MAX_SHOWN]:
        note(f"agents-stream: {item.session_id} is not touched: {item.why}")
    if len(made.untouched) > MAX_SHOWN:
        note(f"agents-stream: and {len(made.untouched) - MAX_SHOWN} more")
