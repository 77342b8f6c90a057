"""`sessions`, `timers` and `timeline`: a worker is asked, its answer is shown."""

import asyncio
from typing import Any

import httpx
import pytest
from aiohttp import web

from agents_stream.cli.options import duration_text
from agents_stream.cli.output import visible
from agents_stream.settings import Settings, parse_duration
from tests.conftest import free_port
from tests.http.shown_worker import Cluster, Log, run_cluster
from tests.kafka.command_line import Answer, assert_told, cli

TOKEN = "a-secret-token"  # noqa: S105 - of this test only


def told(log: Log) -> None:
    """Three sessions: one waits, one is closed, one has an id that is no word."""
    for name in ("s-1", "s-2", "s 3/ä\x1b[31m"):
        log.start(name)
    log.ask_for_data("s-1")
    log.event("s-2", "agent/session.close", reason="completed")


async def ask(cluster: Cluster, *arguments: str, **given: Any) -> Answer:
    """A command that asks the first worker."""
    return await cli(cluster.settings[0], *arguments, **given)


@pytest.fixture
def log(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Log:
    """A log with three sessions; commands run in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    log = Log()
    told(log)
    return log


async def test_json_is_what_the_api_answers(log: Log) -> None:
    """With --json every reading command prints the body of the API's answer, as it came."""
    commands = {
        ("sessions", "list"): "/api/sessions",
        (
            "sessions",
            "list",
            "--status",
            "open",
            "--limit",
            "1",
        ): "/api/sessions?status=open&limit=1",
        ("sessions", "list", "--q", "3/ä"): "/api/sessions?q=3/%C3%A4",
        ("sessions", "show", "s-1"): "/api/sessions/s-1",
        ("sessions", "show", "s 3/ä\x1b[31m"): "/api/sessions/s%203%2F%C3%A4%1B%5B31m",
        ("timers",): "/api/timers",
        ("timers", "--before", "1000"): "/api/timers?before=1000",
        ("timeline", "s-1"): "/api/sessions/s-1/timeline",
        ("timeline", "s-1", "--order", "desc"): "/api/sessions/s-1/timeline?order=desc",
    }
    async with run_cluster(log) as cluster, httpx.AsyncClient() as http:
        for command, path in commands.items():
            answer = await ask(cluster, *command, "--json")
            expected = await http.get(cluster.urls[0] + path)
            assert expected.status_code == 200, path
            assert (answer.code, answer.out.encode()) == (0, expected.content + b"\n")


async def test_tables(log: Log) -> None:
    """Without --json people get tables; control characters of others do not reach a terminal."""
    async with run_cluster(log) as cluster:
        sessions = await ask(cluster, "sessions", "list")
        assert [line.split()[0] for line in sessions.out.splitlines()] == [
            "session",
            "s",
            "s-1",
            "s-2",
        ]
        assert "\x1b" not in sessions.out
        assert "\\x1b[31m" in sessions.out
        assert "data_collection.reply" in (await ask(cluster, "timers")).out
        shown = await ask(cluster, "sessions", "show", "s-1")
        assert "collecting_data" in shown.out
        timeline = await ask(cluster, "timeline", "s-1")
        assert "armed data_collection.reply" in timeline.out
        assert "mode collecting_data" in timeline.out


async def test_pages(log: Log) -> None:
    """A list says how it goes on; --cursor goes on there, --all goes through every page."""
    async with run_cluster(log) as cluster:
        first = await ask(cluster, "sessions", "list", "--limit", "2")
        assert "--cursor" in first.out
        cursor = (await ask(cluster, "sessions", "list", "--limit", "2", "--json")).json[
            "nextCursor"
        ]
        rest = await ask(cluster, "sessions", "list", "--cursor", cursor, "--json")
        assert [item["sessionId"] for item in rest.json["items"]] == ["s-2"]
        every = await ask(cluster, "sessions", "list", "--limit", "1", "--all", "--json")
        assert len(every.json["items"]) == 3
        assert every.json["nextCursor"] is None


async def test_refusals(log: Log) -> None:
    """Not found is 1, a wrong parameter 2, a worker that cannot answer now 3."""
    async with run_cluster(log) as cluster:
        assert_told(await ask(cluster, "sessions", "show", "nobody"), 1, "no session")
        assert_told(await ask(cluster, "timeline", "nobody"), 1, "no session")
        assert_told(await ask(cluster, "sessions", "list", "--status", "asleep"), 2, "status")
        assert_told(await ask(cluster, "timers", "--before", "soon"), 2, "before")
        cluster.workers[0].missing = "recovering"
        assert_told(await ask(cluster, "timers"), 3, "recovering")


async def test_token_and_url(log: Log) -> None:
    """The token comes from the environment, the worker from --url; a refusal says what to set."""
    async with run_cluster(log, token=TOKEN) as cluster:
        elsewhere = Settings(web_port=free_port(), data_dir=cluster.settings[0].data_dir)
        url = ("--url", cluster.urls[0])
        refused = await cli(elsewhere, "sessions", "list", *url)
        assert_told(refused, 1, "AGENTS_STREAM_AUTH_TOKEN")
        allowed = await cli(elsewhere, "sessions", "list", *url, AGENTS_STREAM_AUTH_TOKEN=TOKEN)
        assert allowed.code == 0, allowed
        assert TOKEN not in refused.err + allowed.out + allowed.err


async def test_what_is_no_worker(tmp_path: Any) -> None:
    """Another program at the address, or one that hangs up, is no worker: exit code 3."""
    application = web.Application()

    async def greet(_request: web.Request) -> web.Response:
        return web.Response(text="<html>")

    application.router.add_get("/api/sessions", greet)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        settings = Settings(web_port=runner.addresses[0][1], data_dir=tmp_path)
        assert_told(await cli(settings, "sessions", "list"), 3, "no worker")
    finally:
        await runner.cleanup()
    hanging = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", settings.web_port)
    async with hanging:
        assert_told(await cli(settings, "sessions", "list"), 3, "no worker answers")


@pytest.mark.parametrize("text", ["250ms", "90s", "6m", "1h30m", "2h", "61001ms"])
def test_durations_are_shown_as_they_are_read(text: str) -> None:
    """A duration that is shown can be read again."""
    assert parse_duration(duration_text(parse_duration(text))) == parse_duration(text)


def test_visible() -> None:
    """Text of others stays one line and moves no cursor."""
    assert visible("a\nb\x1b[2J\u202e") == "a\\nb\\x1b[2J\\u202e"
    assert visible("año") == "año"
    assert visible(None) == "-"
