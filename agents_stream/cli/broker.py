"""`kafka start|stop|status` and `topics apply|check`."""

import asyncio
from typing import Annotated

import typer

from agents_stream.cli.options import BROKER, CONNECTION, SHAPE, takes
from agents_stream.cli.output import note, print_json, print_table, say
from agents_stream.settings import Settings

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help stays quick

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

EXIT_DIFFERENT = 1
EXIT_UNREACHABLE = 3


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    kafka = typer.Typer(help="The embedded broker: Apache Kafka itself, on this machine.")
    kafka.command("start")(start)
    kafka.command("stop")(stop)
    kafka.command("status")(status)
    topics = typer.Typer(help="The topics: create them, compare them.")
    topics.command("apply")(apply)
    topics.command("check")(check)
    app.add_typer(kafka, name="kafka", no_args_is_help=True)
    app.add_typer(topics, name="topics", no_args_is_help=True)


@takes(*BROKER)
def start(settings: Settings) -> None:
    """Start it, wait until it answers, and leave it running by itself."""
    from agents_stream.kafka import embedded
    from agents_stream.kafka.progress import console_reporter

    info = embedded.start(settings, progress=console_reporter())
    how = "runs" if info.started else "ran already"
    say(f"Apache Kafka {how} at {info.bootstrap_servers} (process {info.pid}, {info.folder})")


@takes(*BROKER)
def stop(settings: Settings) -> None:
    """Stop it cleanly; its data stays."""
    from agents_stream.kafka import embedded

    stopped = embedded.stop(settings)
    say("stopped" if stopped else f"no embedded Kafka of {settings.data_dir} was running")


@takes(*BROKER)
def status(settings: Settings, *, json: Json = False) -> None:
    """Say whether it answers: exit code 0 or 3."""
    from agents_stream.kafka import embedded

    found = embedded.status(settings)
    if json:
        told = {"running": found.running, "answers": found.answers, "pid": found.pid}
        print_json({**told, "address": found.address})
    elif found.running and found.answers:
        say(f"Apache Kafka answers at {found.address} (process {found.pid})")
    elif found.running:
        say(f"Apache Kafka (process {found.pid}) does not answer at {found.address} (yet)")
    elif found.answers:
        say(f"a Kafka answers at {found.address}, but it is not the one of {settings.data_dir}")
    else:
        say(f"no Kafka answers at {found.address}: start it with `agents-stream kafka start`")
    if not found.answers:
        raise typer.Exit(EXIT_UNREACHABLE)


@takes(*CONNECTION, *SHAPE)
def apply(settings: Settings) -> None:
    """Create the topics that are missing; safe to run again."""
    asyncio.run(_apply(settings))


async def _apply(settings: Settings) -> None:
    from agents_stream.cli.cluster import BROKER_LIMIT_S
    from agents_stream.kafka import topic_admin
    from agents_stream.kafka.connection import require_broker

    await require_broker(settings, BROKER_LIMIT_S)
    created = await topic_admin.apply(settings)
    for name in created:
        say(f"created {name}")
    if not created:
        say("every topic is there")


@takes(*CONNECTION, *SHAPE)
def check(settings: Settings, *, json: Json = False) -> None:
    """Compare the topics with what they should be: exit code 1 where they differ."""
    asyncio.run(_check(settings, json=json))


async def _check(settings: Settings, *, json: bool) -> None:
    from agents_stream.cli.cluster import BROKER_LIMIT_S
    from agents_stream.kafka import topic_admin
    from agents_stream.kafka.connection import require_broker

    await require_broker(settings, BROKER_LIMIT_S)
    found = await topic_admin.check(settings)
    if json:
        items = [
            {
                "topic": item.topic,
                "setting": item.setting,
                "expected": item.expected,
                "actual": item.actual,
                "breaksGuarantee": item.breaks_guarantee,
            }
            for item in found
        ]
        print_json({"items": items, "nextCursor": None})
    elif found:
        rows = [
            (item.topic, item.setting, item.actual, item.expected, _refuses(item.breaks_guarantee))
            for item in found
        ]
        print_table(("topic", "setting", "is", "should be", "worker"), rows)
    else:
        say("every topic is as it should be")
    if any(item.setting == topic_admin.MISSING for item in found):
        note("`agents-stream topics apply` creates what is missing")
    if found:
        raise typer.Exit(EXIT_DIFFERENT)


def _refuses(breaks_guarantee: bool) -> str:
    return "refuses to start" if breaks_guarantee else "starts"
