"""The plain pages at `/`: sessions, one session, timers, dead letters, the workers' tables.

A page shows what the API answers and nothing else; templates/ says how. Ids stand in the query,
not in the path: browsers rewrite paths such as `/sessions/..`.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web

from agents_stream.core.errors import AgentsStreamError
from agents_stream.views.forms import Json
from agents_stream.views.http import Handler, Rejection, rejection_of
from agents_stream.views.local import Views
from agents_stream.views.looks import html_answer, static_file
from agents_stream.views.queries import (
    letters_query,
    sessions_query,
    timeline_query,
    timers_query,
)

TIMELINE_ROWS: Final = "100"


class Pages:
    """The handlers of the pages."""

    def __init__(self, views: Views, *, has_login: bool) -> None:
        self._views = views
        self._has_login = has_login

    def routes(self) -> list[web.RouteDef]:
        """What an application has to route here."""
        return [
            web.get("/", self._page(self.sessions)),
            web.get("/session", self._page(self.session)),
            web.get("/timers", self._page(self.timers)),
            web.get("/dead-letters", self._page(self.dead_letters)),
            web.get("/cluster", self._page(self.cluster)),
            web.get("/static/{name}", static_file),
        ]

    async def sessions(self, request: web.Request) -> web.Response:
        """The list of sessions, with a search."""
        words = _words(request, "q", "status", "mode", "workspace")
        page = await self._views.sessions(sessions_query(request.query))
        return self._show(
            "sessions.html", "sessions", page=page, words=words, paged=_paged(request)
        )

    async def session(self, request: web.Request) -> web.Response:
        """One session with its timers, commands and timeline, the newest first."""
        session_id = request.query.get("id", "")
        asked = {**request.query, "order": "desc", "limit": TIMELINE_ROWS, "changes": "true"}
        query = timeline_query(asked)
        session = await self._views.session(session_id)
        timeline = await self._views.timeline(session_id, query)
        return self._show(
            "session.html",
            "sessions",
            session=session,
            timeline=timeline,
            actions_of=lambda item: [action_line(action) for action in item["actions"]],
            watch=f"/api/sessions/{quote(session_id, safe='')}",
            paged=_paged(request),
        )

    async def timers(self, request: web.Request) -> web.Response:
        """What is due next."""
        page = await self._views.timers(timers_query(request.query))
        return self._show("timers.html", "timers", page=page, paged=_paged(request))

    async def dead_letters(self, request: web.Request) -> web.Response:
        """What could not be accepted or performed."""
        page = await self._views.dead_letters(letters_query(request.query))
        return self._show("dead_letters.html", "dead_letters", page=page, paged=_paged(request))

    async def cluster(self, _request: web.Request) -> web.Response:
        """The workers and their tables."""
        return self._show("cluster.html", "cluster", cluster=await self._views.cluster())

    def _page(self, handler: Callable[[web.Request], Awaitable[web.Response]]) -> Handler:
        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                return await handler(request)
            except AgentsStreamError as error:
                return self._refuse(rejection_of(error))

        return answer

    def _refuse(self, rejection: Rejection) -> web.Response:
        """An error as a page, for people."""
        return self._show("error.html", "", status=rejection.status, rejection=rejection)

    def _show(self, template: str, place: str, status: int = 200, **values: Any) -> web.Response:
        return html_answer(
            template, status=status, place=place, has_login=self._has_login, **values
        )


def action_line(action: Mapping[str, Any]) -> Json:
    """An action of a timeline in a few words: its kind, what it is, and what it says."""
    body = action["body"]
    match action["type"]:
        case "command":
            words, detail = f"{body['tool']}, attempt {body['attempt']}", _said(body["inputs"])
        case "event":
            words, detail = body["name"], ""
        case "outcome":
            words, detail = f"{body['flow']}: {body['status']} / {body['action']}", ""
        case _:
            words, detail = str(body.get("reason", "")), str(body.get("detail", ""))
    return {"kind": action["type"].replace("_", " "), "words": words, "detail": detail}


def _said(inputs: Mapping[str, Any]) -> str:
    return str(inputs.get("message") or inputs.get("notes") or "")


def _words(request: web.Request, *names: str) -> dict[str, str]:
    return {name: request.query.get(name, "") for name in names}


def _paged(request: web.Request) -> bool:
    """Whether this is a later page of a list; such a page does not refresh itself."""
    return "cursor" in request.query
