"""`sessions list|show`, `timers`, `timeline`: what a worker says of the state."""

import time
from datetime import datetime
from typing import Annotated, Any

import orjson
import typer

from agents_stream.cli.options import WEB, duration_text, takes
from agents_stream.cli.output import print_json, print_raw_json, print_table, say, visible
from agents_stream.cli.rebuild import rebuild
from agents_stream.settings import Settings

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help stays quick

Url = Annotated[
    str | None, typer.Option("--url", help="The worker to ask. Default: http://WEB_HOST:WEB_PORT")
]
Json = Annotated[bool, typer.Option("--json", help="Print what the HTTP API answers.")]
Limit = Annotated[str | None, typer.Option("--limit", metavar="N", help="How many items.")]
Cursor = Annotated[
    str | None, typer.Option("--cursor", help="Go on where a page ended: its nextCursor.")
]
Every = Annotated[bool, typer.Option("--all", help="Every page.")]
SessionId = Annotated[str, typer.Argument(metavar="ID", help="The session's id.")]

MORE = "there are more: --all shows them, --cursor"


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    sessions = typer.Typer(help="The sessions.")
    sessions.command("list")(list_sessions)
    sessions.command("show")(show_session)
    app.add_typer(sessions, name="sessions", no_args_is_help=True)
    deadlines = typer.Typer(help="List armed deadlines, the next one first; repair them.")
    deadlines.callback(invoke_without_command=True)(timers)
    deadlines.command("rebuild")(rebuild)
    app.add_typer(deadlines, name="timers")
    app.command("timeline")(timeline)


@takes(*WEB)
def list_sessions(
    settings: Settings,
    *,
    status: Annotated[str | None, typer.Option(metavar="open|closed")] = None,
    mode: Annotated[str | None, typer.Option(help="The mode they are in.")] = None,
    workspace: Annotated[str | None, typer.Option(help="Their workspace.")] = None,
    q: Annotated[str | None, typer.Option(help="A part of one of their ids.")] = None,
    limit: Limit = None,
    cursor: Cursor = None,
    every: Every = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """List sessions, in the order of their ids."""
    words = {"status": status, "mode": mode, "workspace": workspace, "q": q}
    page = _page(settings, url, "/api/sessions", {**words, "limit": limit, "cursor": cursor}, every)
    columns = ("session", "status", "mode", "version", "next deadline", "updated")
    _print_page(page, columns, _session_row, json=json)


@takes(*WEB)
def show_session(
    settings: Settings, session_id: SessionId, *, url: Url = None, json: Json = False
) -> None:
    """Show one session: state, deadlines, flows, pending commands."""
    from agents_stream.cli.worker_api import WorkerApi, session_path

    with WorkerApi(settings, url) as worker:
        raw = worker.get(session_path(session_id))
    if json:
        print_raw_json(raw)
        return
    rows = []
    for name, value in orjson.loads(raw).items():
        inline = isinstance(value, dict | list)
        rows.append((name, orjson.dumps(value).decode() if inline else value))
    print_table(("field", "value"), rows)


@takes(*WEB)
def timers(
    settings: Settings,
    *,
    before: Annotated[
        str | None, typer.Option(help="Only those due before this time (ISO 8601 or ms).")
    ] = None,
    limit: Limit = None,
    cursor: Cursor = None,
    every: Every = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """List armed deadlines, the next one first."""
    words = {"before": before, "limit": limit, "cursor": cursor}
    page = _page(settings, url, "/api/timers", words, every)
    _print_page(page, ("due", "in", "session", "deadline"), _timer_row, json=json)


@takes(*WEB)
def timeline(
    settings: Settings,
    session_id: SessionId,
    *,
    order: Annotated[str | None, typer.Option(metavar="asc|desc", help="Oldest first?")] = None,
    limit: Limit = None,
    cursor: Cursor = None,
    every: Every = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Tell what happened to a session, and why."""
    from agents_stream.cli.worker_api import session_path

    path = session_path(session_id) + "/timeline"
    words = {"order": order, "limit": limit, "cursor": cursor}
    if not json:
        words["changes"] = "true"
    page = _page(settings, url, path, words, every)
    columns = ("offset", "at", "kind", "name", "led to", "reasons", "version")
    _print_page(page, columns, _timeline_row, json=json)


def _page(
    settings: Settings, url: str | None, path: str, words: dict[str, str | None], every: bool
) -> Any:
    from agents_stream.cli.worker_api import WorkerApi

    with WorkerApi(settings, url) as worker:
        return worker.pages(path, words, every=every)


def _print_page(page: Any, columns: tuple[str, ...], row: Any, *, json: bool) -> None:
    """Print a list: as the API gave it, or as a table."""
    if json and isinstance(page, bytes):
        print_raw_json(page)
        return
    if json:
        print_json(page)
        return
    found = orjson.loads(page) if isinstance(page, bytes) else page
    print_table(columns, [row(item) for item in found["items"]])
    if found["nextCursor"] is not None:
        say(f"({MORE} {found['nextCursor']} goes on)")


def _session_row(item: dict[str, Any]) -> tuple[object, ...]:
    deadlines = item["deadlines"]
    first = f"{deadlines[0]['name']} {deadlines[0]['dueAt']}" if deadlines else None
    status = f"{item['status']} (paused)" if item.get("paused") else item["status"]
    return item["sessionId"], status, item["mode"], item["version"], first, item["updatedAt"]


def _timer_row(item: dict[str, Any]) -> tuple[object, ...]:
    due = datetime.fromisoformat(item["dueAt"]).timestamp()
    left_ms = round(due - time.time()) * 1_000
    text = duration_text(left_ms) if left_ms > 0 else "due"
    return item["dueAt"], text, item["sessionId"], item["name"]


def _timeline_row(item: dict[str, Any]) -> tuple[object, ...]:
    return (
        item["offset"],
        item["at"],
        item["kind"],
        item["name"],
        ", ".join([*_change_words(item.get("changes") or {}), *_acts(item["actions"])]) or None,
        ", ".join(item["reasons"]) or None,
        item["version"],
    )


def _change_words(changes: dict[str, Any]) -> list[str]:
    """What an entry did to the timers and the mode."""
    ended = [f"{item['end']} {item['name']}" for item in changes.get("ended", [])]
    armed = [f"armed {item['name']} for {item['dueAt']}" for item in changes.get("armed", [])]
    mode = changes.get("mode")
    return [*ended, *armed, *([f"mode {mode}"] if mode else [])]


def _acts(actions: list[dict[str, Any]]) -> list[str]:
    return [_action_words(action) for action in actions]


def _action_words(action: dict[str, Any]) -> str:
    body = action["body"]
    match action["type"]:
        case "command":
            words = f"command {body['tool']} (attempt {body['attempt']})"
        case "event":
            words = f"event {body['name']}"
        case "outcome":
            words = f"outcome {body['flow']}: {body['status']}/{body['action']}"
        case "dead_letter":
            words = f"dead letter {body['reason']}"
        case other:
            words = str(other)
    return visible(words)
