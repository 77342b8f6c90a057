"""The login of people: a form, a cookie, and nothing that another site could use."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from pydantic import SecretStr

from agents_stream.views import door
from tests.http.asking import NO_TLS
from tests.http.shown_worker import Cluster, Log, run_cluster

TOKEN = "a secret"  # noqa: S105 - of these tests only


@asynccontextmanager
async def browser(url: str, cookie: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A browser: it keeps cookies, wants HTML and does not follow redirects by itself."""
    async with httpx.AsyncClient(
        verify=NO_TLS,
        base_url=url,
        headers={"Accept": "text/html,*/*"},
        cookies={door.COOKIE: cookie} if cookie is not None else None,
    ) as client:
        yield client


@asynccontextmanager
async def guarded(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """Two workers with a token, and a session."""
    monkeypatch.setattr(door, "WRONG_TOKEN_PAUSE_S", 0.01)
    log = Log()
    log.start("s1")
    async with run_cluster(log, count=2, token=TOKEN) as cluster:
        yield cluster


async def test_a_person_logs_in_once_for_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form comes instead of the page; the token opens the page; the cookie opens the rest."""
    async with guarded(monkeypatch) as cluster, browser(cluster.urls[0]) as client:
        form = await client.get("/session?id=s1")
        assert form.status_code == 401
        assert 'name="token"' in form.text
        assert 'value="/session?id=s1"' in form.text
        assert "www-authenticate" not in form.headers
        answer = await client.post("/login", data={"token": TOKEN, "next": "/session?id=s1"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/session?id=s1")
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        assert TOKEN not in cookie
        for url in cluster.urls:
            assert (await client.get(f"{url}/session?id=s1")).status_code == 200
            assert (await client.get(f"{url}/api/sessions/s1")).status_code == 200
        assert "Log out" in (await client.get("/")).text
        await client.post("/logout")
        assert (await client.get("/")).status_code == 401


async def test_a_wrong_token_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form comes again and says so; no cookie is set."""
    async with guarded(monkeypatch) as cluster, browser(cluster.urls[0]) as client:
        for token in ("", "wrong", TOKEN + " ", "ñ"):
            answer = await client.post("/login", data={"token": token, "next": "/timers"})
            assert answer.status_code == 401
            assert "This is not the token" in answer.text
            assert 'value="/timers"' in answer.text
            assert "set-cookie" not in answer.headers


async def test_a_cookie_cannot_be_made_without_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forged, changed, expired or senseless cookies are none."""
    later = int(time.time()) + 1000
    good = door._sign(later, SecretStr(TOKEN))
    bad = [
        "",
        "x",
        str(later),
        f"{later}.",
        f"{later + 1}{good[good.index('.') :]}",
        good[:-1],
        good + "0",
        door._sign(later, SecretStr("another")),
        door._sign(int(time.time()) - 1, SecretStr(TOKEN)),
        "9" * 400 + good[good.index(".") :],
        TOKEN,
    ]
    async with guarded(monkeypatch) as cluster:
        for cookie in bad:
            async with browser(cluster.urls[0], cookie) as client:
                assert (await client.get("/")).status_code == 401, cookie
                assert (await client.get("/api/sessions")).status_code == 401, cookie
        async with browser(cluster.urls[0], good) as client:
            assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        "/\r\nSet-Cookie: a=b",
        "/\t/evil.example",
        "",
        "evil",
    ],
)
async def test_the_login_leads_to_no_other_site(
    monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Whatever the form says, the way leads to a path of this worker."""
    async with guarded(monkeypatch) as cluster, browser(cluster.urls[0]) as client:
        answer = await client.post("/login", data={"token": TOKEN, "next": target})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")


async def test_a_foreign_page_cannot_use_the_cookie(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser that sent the cookie from another site all the same is refused by its origin."""
    good = door._sign(int(time.time()) + 1000, SecretStr(TOKEN))
    event = {"name": "agent/session.close", "data": {"sessionId": "s1", "reason": "completed"}}
    async with guarded(monkeypatch) as cluster, browser(cluster.urls[0], good) as client:
        origin = {"Origin": "https://evil.example"}
        answer = await client.post("/api/events", json=event, headers=origin)
        assert answer.status_code == 401
        assert cluster.publisher.events == []
        answer = await client.post("/api/events", json=event, headers={"Origin": cluster.urls[0]})
        assert answer.status_code == 202
        assert len(cluster.publisher.events) == 1


async def test_a_form_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large, no UTF-8, too many fields: an error, and no fault of ours."""
    async with guarded(monkeypatch) as cluster, browser(cluster.urls[0]) as client:
        assert (await client.post("/login", content=b"x" * 100_000)).status_code == 413
        assert (await client.post("/login", content=b"\xff=1")).status_code == 400
        assert (await client.post("/login", content=b"a=1&" * 50)).status_code == 400


async def test_programs_and_probes_get_no_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `Accept: text/html` the answer is an error as JSON; probes need no token."""
    async with guarded(monkeypatch) as cluster:
        async with httpx.AsyncClient(verify=NO_TLS, base_url=cluster.urls[0]) as client:
            answer = await client.get("/api/sessions")
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "unauthorized"
            assert answer.headers["www-authenticate"].startswith("Bearer")
        async with browser(cluster.urls[0]) as client:
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/static/pages.css")).status_code == 200


async def test_without_a_token_there_is_no_door() -> None:
    """On this machine only, pages open at once and have no login."""
    async with run_cluster(Log()) as cluster, browser(cluster.urls[0]) as client:
        answer = await client.get("/")
        assert answer.status_code == 200
        assert "Log out" not in answer.text
        assert (await client.post("/login", data={"token": "x"})).status_code == 404
