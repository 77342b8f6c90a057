"""`dead-letters show`: one letter in full, its original bytes in a form that harms no terminal."""

import asyncio
import sys
from base64 import b64encode
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from agents_stream.cli.letter_choice import Json, letter_id
from agents_stream.cli.options import CONNECTION, takes
from agents_stream.cli.output import print_json, print_table, say
from agents_stream.settings import Settings

if TYPE_CHECKING:
    from agents_stream.dead_letters import Buried
    from agents_stream.views.reads import Letter

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help stays quick

MAX_SHOWN_CHARS: Final = 64 * 1024


@takes(*CONNECTION)
def show(
    settings: Settings,
    place: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="The letter's source as `list` shows it, TOPIC/PARTITION/OFFSET."
        ),
    ],
    *,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the original value, byte for byte: for a file.")
    ] = False,
    json: Json = False,
) -> None:
    """Show one dead letter: why it is there, and what it holds."""
    if raw and json:
        raise typer.BadParameter("--raw and --json exclude each other")
    if raw and sys.stdout.isatty():
        raise typer.BadParameter("--raw writes bytes as they are: send them to a file or a pipe")
    found = asyncio.run(_find(settings, letter_id(place)))
    letter, buried = found[0]
    if raw:
        sys.stdout.buffer.write(buried.value or b"")
        sys.stdout.buffer.flush()
        return
    from agents_stream.views.forms import letter_json

    item = letter_json(letter)
    if json:
        print_json(item)
        return
    print_table(("field", "value"), _rows(item, buried, len(found)))
    _say_value(buried)


async def _find(settings: Settings, wanted: str) -> "list[tuple[Letter, Buried]]":
    """The letters about a source, the first one first: a crash may have written one twice."""
    from agents_stream.cli.cluster import as_in_cluster
    from agents_stream.core.errors import TerminalError
    from agents_stream.dead_letters import letter_lines, read_letter
    from agents_stream.kafka.topics import DEAD_LETTERS
    from agents_stream.views.reads import Letter

    settings = await as_in_cluster(settings, DEAD_LETTERS)
    found: list[tuple[Letter, Buried]] = []
    async with aclosing(letter_lines(settings)) as lines:
        async for line in lines:
            buried = read_letter(line)
            if buried is not None and buried.id == wanted:
                letter = Letter(line.partition, line.offset, line.timestamp, line.key, line.value)
                found.append((letter, buried))
    if not found:
        raise TerminalError(
            f"no dead letter has the source {wanted.removeprefix('dl:')}; `agents-stream"
            " dead-letters list` shows those that there are"
        )
    return sorted(found, key=lambda pair: pair[0].place)


def _rows(item: dict[str, Any], buried: "Buried", times: int) -> list[tuple[str, object]]:
    """What is known of a letter, without its value."""
    from agents_stream.core.session import iso
    from agents_stream.dead_letters import session_of

    place = "/".join(str(part) for part in buried.source)
    rows: list[tuple[str, object]] = [
        ("source", place),
        ("its time", iso(buried.source_timestamp)),
        ("buried at", item["at"]),
        ("reason", buried.reason),
        ("detail", buried.detail),
        ("session", session_of(buried)),
        ("key", None if buried.key is None else " as ".join(_readable(buried.key))),
        ("written", f"{times} times" if times > 1 else "once"),
        ("redriven as", buried.id),
    ]
    kept = ("truncated", "size", "sha256")
    return [*rows, *((name, item[name]) for name in kept if name in item)]


def _say_value(buried: "Buried") -> None:
    """The value below the table: text with its control characters escaped, or base64."""
    if buried.value is None:
        say("the value is null")
        return
    text, form = _readable(buried.value)
    kept = ", of which only the beginning was kept" if buried.is_cut else ""
    say(f"value, {len(buried.value)} bytes{kept}, as {form}:")
    say(text[:MAX_SHOWN_CHARS])
    if len(text) > MAX_SHOWN_CHARS:
        say("(and so on: --raw writes all of it)")


def _readable(raw: bytes) -> tuple[str, str]:
    """Bytes for people, and in which form: as text where they are text, else as base64."""
    try:
        return raw.decode(), "text"
    except UnicodeDecodeError:
        return b64encode(raw).decode(), "base64"
