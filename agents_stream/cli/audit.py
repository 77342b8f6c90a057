"""`audit`: prove G3, G7 and G8 on what the log holds."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agents_stream.cli.options import CONNECTION, takes
from agents_stream.cli.output import print_json, print_table, progress_bar, say, visible
from agents_stream.settings import Settings

if TYPE_CHECKING:
    from agents_stream.replay import Report

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help stays quick

EXIT_FAILED: Final = 1
MAX_SHOWN: Final = 50


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("audit")(audit)


@takes(*CONNECTION)
def audit(
    settings: Settings,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove G3, G7 and G8 on what the log holds: exit code 1 where they do not hold."""
    report = asyncio.run(_audit(settings))
    if json:
        print_json(report.to_json())
    else:
        _show(report)
    if report.violation_count:
        raise typer.Exit(EXIT_FAILED)


async def _audit(settings: Settings) -> "Report":
    from agents_stream.audit import audit as prove
    from agents_stream.cli.cluster import as_in_cluster
    from agents_stream.kafka.topics import ACTIONS, JOURNAL, PROMOS_OFFERED, SESSIONS_CHANGELOG
    from agents_stream.published import OUTWARD

    read = (JOURNAL, SESSIONS_CHANGELOG, ACTIONS, PROMOS_OFFERED, *OUTWARD)
    settings = await as_in_cluster(settings, *read)
    with progress_bar("replaying") as progress:
        return await prove(settings, progress)


def _show(report: "Report") -> None:
    say(f"{report.sessions} sessions replayed from {report.entries} journal entries")
    ends = f"{report.fired} fired, {report.cancelled} cancelled, {report.replaced} replaced"
    say(f"{report.armed} deadlines armed: {ends}, {report.standing} stand")
    ends = f"{report.commands_ended} ended, {report.commands_pending} pending"
    say(f"{report.commands} commands: {ends}; {report.order_messages} messages about orders")
    say(f"{report.published} commands, outcomes and dead letters compared with their topics")
    if report.not_provable:
        say(f"{report.not_provable} sessions cannot be proved: their first entries are gone")
    if not report.violation_count:
        say("G3, G7 and G8 hold, and so do G1 and G6 for what was decided")
        return
    say(f"{report.violation_count} VIOLATIONS")
    shown = report.violations[:MAX_SHOWN]
    rows = [
        (item.guarantee, item.session_id, f"{item.partition}/{item.offset}", item.detail)
        for item in shown
    ]
    print_table(("breaks", "session", "partition/offset", "what"), rows)
    for item in shown:
        for one in item.differences:
            name = f"{item.session_id} {one.field}"
            say(f"{visible(name)}: stands {visible(one.stands)}, replayed {one.replayed}")
    if report.violation_count > len(shown):
        say(f"and {report.violation_count - len(shown)} more: --json shows up to 1000")
