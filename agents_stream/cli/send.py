"""`send`: publish one event, or JSON lines of them from standard input."""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from agents_stream.cli.options import CONNECTION, takes
from agents_stream.cli.output import note, print_json, progress_bar, say
from agents_stream.settings import Settings

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help stays quick

MAX_INPUT_BYTES: Final = 256 * 1024 * 1024
"""All lines are judged before the first is sent, so they are held in memory."""

MAX_EVENT_BYTES: Final = 4 * 1024 * 1024
AT_ONCE: Final = 500


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("send")(send)


@takes(*CONNECTION)
def send(
    settings: Settings,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="The event, such as agent/customer.message."),
    ] = None,
    *,
    data: Annotated[
        str,
        typer.Option(
            metavar="JSON|@FILE|-",
            help="Its data, or an envelope; -: JSON lines of envelopes from standard input.",
        ),
    ],
    event_id: Annotated[
        str | None, typer.Option("--id", help="By which repetitions are recognised.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Publish one event, or JSON lines of envelopes from -."""
    if data == "-":
        if event_id is not None:
            raise typer.BadParameter("--id is for one event: write an id into each envelope")
        envelopes = read_lines(name, sys.stdin.buffer.read(MAX_INPUT_BYTES + 1))
    else:
        envelopes = [read_one(name, _bytes_of(data), event_id)]
    asyncio.run(_send(settings, envelopes, as_json=json))


def read_one(name: str | None, raw: bytes, event_id: str | None) -> dict[str, Any]:
    """The envelope of one event.

    Raises:
        InvalidEvent: it would not be accepted.
        typer.BadParameter: nothing says which event it is.

    """
    from agents_stream.core.envelope import is_envelope
    from agents_stream.core.strict_json import parse_object

    value = parse_object(raw)
    if name is None and not is_envelope(value):
        raise typer.BadParameter("give the event's NAME, or an envelope with `name` and `data`")
    envelope = _enveloped(name, value)
    if name is not None and envelope["name"] != name:
        raise typer.BadParameter(f"NAME is {name}, but the envelope says {envelope['name']}")
    return envelope if event_id is None else {**envelope, "id": event_id}


def read_lines(name: str | None, raw: bytes) -> list[dict[str, Any]]:
    """The envelopes of JSON lines; with a NAME a line may be that event's bare data.

    Raises:
        InvalidEvent: a line would not be accepted; the detail says which.
        TerminalError: this is more than fits into memory.

    """
    from agents_stream.core.errors import InvalidEvent, TerminalError
    from agents_stream.core.strict_json import parse_object

    if len(raw) > MAX_INPUT_BYTES:
        raise TerminalError(
            f"more than {MAX_INPUT_BYTES >> 20} MiB on standard input: nothing was sent. Send it"
            " in parts"
        )
    envelopes = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            envelope = _enveloped(name, parse_object(line))
            _judge(envelope)
        except InvalidEvent as error:
            raise InvalidEvent(
                error.reason, f"line {number}: {error.detail}. Nothing was sent"
            ) from error
        envelopes.append(envelope)
    return envelopes


def _bytes_of(data: str) -> bytes:
    if not data.startswith("@"):
        return data.encode(errors="surrogateescape")
    try:
        with Path(data[1:]).open("rb") as file:
            return file.read(MAX_EVENT_BYTES)
    except OSError as error:
        raise typer.BadParameter(f"{data[1:]} cannot be read: {error.strerror}") from None


def _enveloped(name: str | None, value: dict[str, Any]) -> dict[str, Any]:
    """An envelope as it is; bare data of `name` in one."""
    from agents_stream.core.envelope import is_envelope

    if name is None or is_envelope(value):
        return value
    return {"name": name, "data": value, "ts": time.time_ns() // 1_000_000}


def _judge(envelope: dict[str, Any]) -> None:
    """Refuse what ingress would put into the dead letters.

    Raises:
        InvalidEvent: with the reason; for an unknown name with those that there are.

    """
    from agents_stream.core.envelope import accept_event
    from agents_stream.core.errors import InvalidEvent
    from agents_stream.core.events import EVENTS

    try:
        accept_event(None, envelope)
    except InvalidEvent as error:
        if error.reason != "unknown_event":
            raise
        known = ", ".join(EVENTS)
        raise InvalidEvent(error.reason, f"{error.detail}; there are {known}") from error


async def _send(settings: Settings, envelopes: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    from agents_stream.cli.cluster import as_in_cluster
    from agents_stream.client import AgentsStream, Sent
    from agents_stream.core.session import iso
    from agents_stream.kafka.topics import load_topics

    for envelope in envelopes:
        _judge(envelope)
    topics = load_topics().events
    used = {topics[envelope["name"]].name for envelope in envelopes}
    if not used:
        return
    await as_in_cluster(settings, *sorted(used))

    def show(sent: Sent) -> None:
        if as_json:
            place = {"topic": sent.topic, "partition": sent.partition, "offset": sent.offset}
            print_json({**place, "timestamp": sent.timestamp, "id": sent.id})
        else:
            place_text = f"{sent.topic}/{sent.partition}/{sent.offset}"
            say(f"{place_text} at {iso(sent.timestamp)} id {sent.id}")

    async with AgentsStream.from_settings(settings) as stream:
        with progress_bar("publishing") as progress:
            for start in range(0, len(envelopes), AT_ONCE):
                some = envelopes[start : start + AT_ONCE]
                for sent in await stream.send_many(some):
                    show(sent)
                progress(start + len(some), len(envelopes))
    if len(envelopes) > 1:
        note(f"{len(envelopes)} events published")
