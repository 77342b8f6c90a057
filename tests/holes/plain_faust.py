"""Faust as it comes: `python -m tests.holes.plain_faust STORY`, one program per hole.

A plain `faust.App` with a plain `Table` and plain agents. Its settings are Faust's own but for
those that anybody would set who cares for failover (a session timeout of 6 s in place of 60) and
those that only make the tests quicker (a commit every 0.25 s). It says what it does on standard
output, a JSON object per line.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

import faust

PLACE = os.environ["HOLE_PLACE"]
PARTITIONS = int(os.environ.get("HOLE_PARTITIONS", "1"))


def say(what: str, **facts: Any) -> None:
    """Tell the test."""
    line = json.dumps({"what": what, "at": time.time(), **facts})
    print(line, file=sys.__stdout__, flush=True)  # Faust puts a logger in the place of sys.stdout


def plain_app(**settings: Any) -> faust.App:
    """An app named after the test's place, with everything else as it comes."""
    app = faust.App(
        PLACE,
        broker=f"kafka://{os.environ['HOLE_BROKER']}",
        datadir=os.environ["HOLE_DATA"],
        web_enabled=False,
        topic_partitions=PARTITIONS,
        topic_replication_factor=1,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=float(os.environ.get("HOLE_COMMIT_S", "0.25")),
        consumer_auto_offset_reset="earliest",
        **settings,
    )

    @app.task  # type: ignore[untyped-decorator]
    async def ready() -> None:
        say("ready")

    return app


def events_of(app: faust.App) -> Any:
    """The topic of events: raw values, so that no decoding is to blame."""
    return app.topic(f"{PLACE}-events", key_serializer="raw", value_serializer="raw")


def table() -> faust.App:
    """Every event sets a row: the state change that must not be lost (H1, H2, recovery)."""
    app = plain_app()
    rows = app.Table("rows", default=str)

    @app.agent(events_of(app))
    async def keep(stream: Any) -> None:
        async for event in stream.events():
            rows[event.key.decode()] = event.value.decode()
            say("kept", offset=event.message.offset)

    @app.task  # type: ignore[untyped-decorator]
    async def told() -> None:
        say("rows", keys=sorted(rows))

    return app


def numbers() -> faust.App:
    """The same with a table whose rows must be numbers, as after a change of the model."""
    app = plain_app()
    rows = app.Table("rows", default=int, value_type=int)

    @app.agent(events_of(app))
    async def keep(stream: Any) -> None:
        async for event in stream.events():
            rows[event.key.decode()] = len(event.value)
            say("kept", offset=event.message.offset)

    return app


def wheel() -> faust.App:
    """Deadlines in the rows, and a wheel in memory that `on_recover` builds from them."""
    app = plain_app()
    rows = app.Table("rows", default=str)
    due: set[str] = set()

    @rows.on_recover
    async def rebuild() -> None:
        due.update(rows)
        if os.environ.get("HOLE_BUG"):
            due.clear()
            raise ValueError("a bug in the rebuilding")

    @app.agent(events_of(app))
    async def keep(stream: Any) -> None:
        async for event in stream.events():
            rows[event.key.decode()] = event.value.decode()
            due.add(event.key.decode())
            say("kept", offset=event.message.offset, due=sorted(due))

    return app


def concurrent() -> faust.App:
    """Two events at a time; one that says `by_name` is never finished (H3)."""
    app = plain_app()

    @app.agent(events_of(app), concurrency=2)
    async def work(stream: Any) -> None:
        async for event in stream.events():
            say("begun", offset=event.message.offset)
            if event.value == b"slow" and not os.environ.get("HOLE_HEALTHY"):
                await asyncio.sleep(3_600)
            say("done", offset=event.message.offset)

    return app


def rebalanced() -> faust.App:
    """Three at a time; `by_name` is never finished, `late` when a rebalance has begun (H6)."""
    app = plain_app()

    @app.agent(events_of(app), concurrency=3)
    async def work(stream: Any) -> None:
        async for event in stream.events():
            say("begun", offset=event.message.offset)
            if event.value == b"slow" and not os.environ.get("HOLE_HEALTHY"):
                await asyncio.sleep(3_600)
            if event.value == b"late":
                while app.flow_control.is_active():  # noqa: ASYNC110 - Faust's own flag
                    await asyncio.sleep(0.01)
            say("done", offset=event.message.offset)

    return app


def raising() -> faust.App:
    """A handler with a bug that some events meet."""
    app = plain_app(stream_ack_exceptions=False)

    @app.agent(events_of(app))
    async def work(stream: Any) -> None:
        async for event in stream.events():
            if event.value == b"bad" and not os.environ.get("HOLE_HEALTHY"):
                raise ZeroDivisionError("a bug")
            say("done", offset=event.message.offset)

    return app


def blocking() -> faust.App:
    """A handler that holds the event loop for 0.4 s, as a collection of garbage may do."""
    app = plain_app()

    @app.agent(events_of(app))
    async def work(stream: Any) -> None:
        async for event in stream.events():
            if event.value == b"block":
                say("blocking")
                time.sleep(0.4)  # noqa: ASYNC251 - the point of it
            say("done", offset=event.message.offset)

    return app


def standby() -> faust.App:
    """A table on disk with one standby: what `table_standby_replicas=1`, the default, is for."""
    app = plain_app(store="rocksdb://")

    async def index(_event: Any) -> None:
        await asyncio.sleep(0.0005)

    rows = app.Table("rows", default=str, on_changelog_event=index)

    @app.agent(events_of(app))
    async def keep(stream: Any) -> None:
        async for event in stream.events():
            rows[event.key.decode()] = event.value.decode()

    @rows.on_recover
    async def tell() -> None:
        await asyncio.sleep(1.5)
        actives = app.assignor.assigned_actives()
        owned = sorted(tp.partition for tp in actives if tp.topic.endswith("-changelog"))
        say("recovered", owned=owned, rows=len(rows))

    @app.timer(0.25)  # type: ignore[untyped-decorator]
    async def follow() -> None:
        manager: Any = app.tables
        for offset in manager.recovery.standby_offsets.values():
            say("following", offset=offset)

    return app


STORIES = {
    story.__name__: story
    for story in (
        table, numbers, wheel, concurrent, rebalanced, raising, blocking, standby
    )
}  # fmt: skip


def main() -> None:
    """Run one of them until it is killed."""
    app = STORIES[sys.argv[1]]()
    faust.Worker(app, loglevel="INFO").execute_from_commandline()


if __name__ == "__main__":
    main()
