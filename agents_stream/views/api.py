"""The read side of a worker's HTTP API (SPEC §8): words in, JSON out.

What may live here: paths and parameters. What an answer holds is decided in `local.py` (this
worker) and `remote.py` (all of them); what every answer has in common in `http.py`.
"""

from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from agents_stream.views import openapi
from agents_stream.views.http import Rejection, error_answer, json_answer
from agents_stream.views.local import Views
from agents_stream.views.queries import (
    letters_query,
    sessions_query,
    timeline_query,
    timers_query,
)
from agents_stream.views.reads import Reads
from agents_stream.views.remote import FORWARDED

_SESSIONS: Final = "/api/sessions/"


class Api:
    """The handlers. `local` answers what other workers ask, `cluster` everybody else."""

    def __init__(self, reads: Reads, local: Views, cluster: Views) -> None:
        self._reads = reads
        self._local = local
        self._cluster = cluster

    def routes(self) -> list[web.RouteDef]:
        """What an application has to route here."""
        return [
            web.get("/healthz", self.healthz),
            web.get("/readyz", self.readyz),
            web.get("/metrics", self.metrics),
            web.get("/api/sessions", self.sessions),
            web.get(_SESSIONS + "{tail:[\\s\\S]+}", self.session),
            web.get("/api/timers", self.timers),
            web.get("/api/dead-letters", self.dead_letters),
            web.get("/api/cluster", self.cluster),
            web.get("/openapi.json", self.openapi),
        ]

    async def healthz(self, _request: web.Request) -> web.StreamResponse:
        """The process is alive and its event loop turns."""
        return json_answer({"status": "ok"})

    async def readyz(self, _request: web.Request) -> web.StreamResponse:
        """The worker owns its partitions and has recovered; else 503 with what is missing."""
        ready, missing = self._reads.ready()
        if ready:
            return json_answer({"status": "ok"})
        # Not raised: a probe that asks every second is no reason for a line in the log.
        return error_answer(Rejection(HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", missing))

    async def metrics(self, _request: web.Request) -> web.StreamResponse:
        """The metrics of this process, for Prometheus."""
        return web.Response(
            body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def sessions(self, request: web.Request) -> web.StreamResponse:
        """Sessions in the order of their ids."""
        page = await self._views(request).sessions(sessions_query(request.query))
        return json_answer(page.to_json())

    async def session(self, request: web.Request) -> web.StreamResponse:
        """One session, or its timeline."""
        words = request.rel_url.raw_path.split("/")[3:]
        # An encoded slash belongs to the id: "a%2Ftimeline" is a session, "a/timeline" is not.
        if len(words) > 1 and words[-1] == "timeline":
            session_id = _session_id(words[:-1])
            query = timeline_query(request.query)
            page = await self._views(request).timeline(session_id, query)
            return json_answer(page.to_json())
        return json_answer(await self._views(request).session(_session_id(words)))

    async def timers(self, request: web.Request) -> web.StreamResponse:
        """Deadlines in the order of their due times."""
        page = await self._views(request).timers(timers_query(request.query))
        return json_answer(page.to_json())

    async def dead_letters(self, request: web.Request) -> web.StreamResponse:
        """Dead letters, the newest first."""
        page = await self._views(request).dead_letters(letters_query(request.query))
        return json_answer(page.to_json())

    async def cluster(self, request: web.Request) -> web.StreamResponse:
        """Workers, partitions and the sizes of their tables."""
        return json_answer(await self._views(request).cluster())

    async def openapi(self, _request: web.Request) -> web.StreamResponse:
        """What all of this is, for programs."""
        return json_answer(openapi.document())

    def _views(self, request: web.Request) -> Views:
        asked_by_worker = FORWARDED in request.headers or request.query.get("scope") == "local"
        return self._local if asked_by_worker else self._cluster


def _session_id(words: list[str]) -> str:
    try:
        return unquote("/".join(words), errors="strict")
    except UnicodeDecodeError:
        said = "The session id in the path is no percent-encoded UTF-8"
        raise Rejection(HTTPStatus.BAD_REQUEST, "bad_request", said) from None
