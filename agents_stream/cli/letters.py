"""`dead-letters list|show|redrive`: straight from Kafka, so that they work without a worker too."""

import asyncio
import heapq
import sys
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from agents_stream.cli.letter_choice import (
    Choice,
    Json,
    Reasons,
    Session,
    Since,
    Topics,
    Until,
    letter_id,
)
from agents_stream.cli.letter_show import show
from agents_stream.cli.options import CONNECTION, takes
from agents_stream.cli.output import note, print_json, print_table, progress_bar, say
from agents_stream.settings import Settings

if TYPE_CHECKING:
    from agents_stream.redrive import Plan, Redriven
    from agents_stream.views.reads import Letter, LetterPlace

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help stays quick

DEFAULT_LIMIT: Final = 100
MAX_SHOWN: Final = 50
EXIT_REFUSED: Final = 1


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    letters = typer.Typer(help="What could not be accepted or performed.")
    letters.command("list")(list_letters)
    letters.command("show")(show)
    letters.command("redrive")(redrive)
    app.add_typer(letters, name="dead-letters", no_args_is_help=True)


@takes(*CONNECTION)
def list_letters(
    settings: Settings,
    *,
    reason: Reasons = None,
    topic: Topics = None,
    session: Session = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = DEFAULT_LIMIT,
    cursor: Annotated[
        str | None, typer.Option(help="Go on where a page ended: its nextCursor.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    json: Json = False,
) -> None:
    """List dead letters, the newest first."""
    choice = Choice(reason, topic, session, since, until, prefix=settings.topic_prefix)
    asyncio.run(_list(settings, choice, None if every else limit, _place(cursor), as_json=json))


async def _list(
    settings: Settings,
    choice: Choice,
    limit: int | None,
    before: "LetterPlace | None",
    *,
    as_json: bool,
) -> None:
    from agents_stream.views.forms import letter_json
    from agents_stream.views.queries import letters_cursor

    found = await _newest(settings, choice, limit, before)
    shown = found if limit is None else found[:limit]
    following = letters_cursor(shown[-1].place) if len(found) > len(shown) else None
    items = [letter_json(letter) for letter in shown]
    if as_json:
        print_json({"items": items, "nextCursor": following})
        return
    print_table(("at", "reason", "source", "key", "detail"), [_row(item) for item in items])
    if following is not None:
        say(f"(there are older ones: --all shows them, --cursor {following} goes on)")


async def _newest(
    settings: Settings, choice: Choice, limit: int | None, before: "LetterPlace | None"
) -> "list[Letter]":
    """The letters asked for and one more, the newest first."""
    from agents_stream.cli.cluster import as_in_cluster
    from agents_stream.core.errors import TerminalError
    from agents_stream.dead_letters import MAX_LETTERS, letter_lines, read_letter
    from agents_stream.kafka.topics import DEAD_LETTERS
    from agents_stream.views.reads import Letter

    settings = await as_in_cluster(settings, DEAD_LETTERS)
    room = MAX_LETTERS if limit is None else limit + 1
    newest: list[tuple[LetterPlace, Letter]] = []
    async with aclosing(letter_lines(settings, choice.since_ms)) as lines:
        async for line in lines:
            letter = Letter(line.partition, line.offset, line.timestamp, line.key, line.value)
            if before is not None and letter.place >= before:
                continue
            if not choice.is_in_time(line.timestamp):
                continue
            buried = read_letter(line) if choice.reads_letters else None
            if choice.reads_letters and (buried is None or not choice.wants(buried)):
                continue
            heapq.heappush(newest, (letter.place, letter))
            if len(newest) > room:
                if limit is None:
                    raise TerminalError(
                        f"more than {MAX_LETTERS} letters: use --since, --until or --limit"
                    )
                heapq.heappop(newest)
    return [letter for _, letter in sorted(newest, reverse=True)]


def _place(cursor: str | None) -> "LetterPlace | None":
    if cursor is None:
        return None
    from agents_stream.views.http import Rejection
    from agents_stream.views.queries import letters_query

    try:
        return letters_query({"cursor": cursor}).before
    except Rejection as error:
        raise typer.BadParameter(str(error)) from None


def _row(item: dict[str, Any]) -> tuple[object, ...]:
    source = item.get("source") or {}
    place = "/".join(str(source.get(name)) for name in ("topic", "partition", "offset"))
    shown = place if source else None
    return item["at"], item["reason"], shown, item.get("key"), item.get("detail")


@takes(*CONNECTION)
def redrive(
    settings: Settings,
    places: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TOPIC/PARTITION/OFFSET]...", help="The sources of the letters."),
    ] = None,
    *,
    reason: Reasons = None,
    topic: Topics = None,
    session: Session = None,
    since: Since = None,
    until: Until = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Send also what would become a dead letter again.")
    ] = False,
    json: Json = False,
) -> None:
    """Send dead letters in again, once their cause is repaired."""
    if bool(places) == bool(every or reason or topic or session or since or until):
        raise typer.BadParameter(
            "say which: TOPIC/PARTITION/OFFSET, or --reason, --topic, --session, --since, --until"
            " or --all"
        )
    choice = Choice(reason, topic, session, since, until, prefix=settings.topic_prefix)
    choice.places = frozenset(letter_id(place) for place in places or ())
    asyncio.run(_redrive(settings, choice, dry_run=dry_run, asks=not yes, force=force, json=json))


async def _redrive(
    settings: Settings, choice: Choice, *, dry_run: bool, asks: bool, force: bool, json: bool
) -> None:
    from agents_stream import redrive as redriving
    from agents_stream.cli.cluster import as_in_cluster
    from agents_stream.core.errors import TerminalError
    from agents_stream.dead_letters import find_letters
    from agents_stream.kafka.topics import DEAD_LETTERS, load_topics

    inputs = [spec.name for spec in load_topics().inputs]
    settings = await as_in_cluster(settings, DEAD_LETTERS, *inputs)
    letters = await find_letters(settings, choice.wants, choice.since_ms)
    unknown = choice.places - {letter.id for letter in letters}
    if unknown:
        missing = sorted(place.removeprefix("dl:") for place in unknown)
        raise TerminalError(
            f"no dead letter has the source {', '.join(missing[:MAX_SHOWN])}; `agents-stream"
            " dead-letters list` shows those that there are. Nothing was sent"
        )
    plan = await redriving.plan(settings, letters, force=force)
    if plan.sendings and asks and not dry_run and sys.stdin.isatty():
        _show_plan(plan)
        typer.confirm(f"Send {len(plan.sendings)} in again?", abort=True, err=True)
    sent: list[Redriven] = []
    if plan.sendings and not dry_run:
        with progress_bar("sending") as progress:
            total = len(plan.sendings)
            sent = await redriving.send(settings, plan.sendings, lambda n: progress(n, total))
    _tell(plan, sent, dry_run=dry_run, as_json=json)
    if plan.refused:
        raise typer.Exit(EXIT_REFUSED)


def _show_plan(plan: "Plan") -> None:
    rows = [
        (item.letter.id.removeprefix("dl:"), item.letter.reason, item.topic, item.key)
        for item in plan.sendings[:MAX_SHOWN]
    ]
    decoded = [(*row[:3], (row[3] or b"").decode(errors="replace")) for row in rows]
    print_table(("source", "reason", "goes to", "key"), decoded)
    if len(plan.sendings) > MAX_SHOWN:
        say(f"and {len(plan.sendings) - MAX_SHOWN} more")


def _tell(plan: "Plan", sent: "Sequence[Redriven]", *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "planned": [item.letter.id for item in plan.sendings],
                "redriven": [
                    {
                        "id": item.id,
                        "topic": item.topic,
                        "partition": item.partition,
                        "offset": item.offset,
                        "timestamp": item.timestamp,
                    }
                    for item in sent
                ],
                "before": [letter.id for letter in plan.before],
                "refused": [{"id": item.id, "why": why} for item, why in plan.refused],
            }
        )
    elif dry_run:
        _show_plan(plan)
        say(f"{len(plan.sendings)} would be sent, {len(plan.before)} were sent before")
    else:
        for item in sent[:MAX_SHOWN]:
            say(f"{item.id} sent as {item.topic}/{item.partition}/{item.offset}")
        say(f"{len(sent)} sent in again, {len(plan.before)} were sent before")
    for letter, why in plan.refused[:MAX_SHOWN]:
        note(f"agents-stream: {letter.id} is not sent: {why}")
    if len(plan.refused) > MAX_SHOWN:
        note(f"agents-stream: and {len(plan.refused) - MAX_SHOWN} more")
