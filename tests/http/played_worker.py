"""A worker as the chat sees it: a real HTTP server that follows SPEC §8, without Kafka behind it.

It knows just enough of SPEC §4 to play with: a question or an offer arms a deadline, a message of
the customer cancels it.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Self

from aiohttp import web

REPLY_S = 360.0


class PlayedWorker:
    """Keeps the events that it was sent, and the sessions that they make."""

    def __init__(self, token: str | None = None, reply_s: float = REPLY_S) -> None:
        self.token = token
        self.reply_s = reply_s
        self.events: list[dict[str, Any]] = []
        self.sessions: dict[str, dict[str, Any]] = {}
        self.asked = 0
        self.failing: tuple[int, str] | None = None
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/api/events", self._take_event)
        app.router.add_get("/api/sessions", self._list)
        app.router.add_get("/api/sessions/{id}", self._show)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def arm(self, session_id: str, name: str, seconds: float, generation: int = 1) -> None:
        """Let a timer of a session run."""
        due = datetime.now(UTC) + timedelta(seconds=seconds)
        self.sessions[session_id]["deadlines"] = [
            {
                "name": name,
                "dueAt": due.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "generation": generation,
            }
        ]

    def add_session(self, data: dict[str, Any]) -> None:
        """Open a session with what an event tells."""
        self.sessions[data["sessionId"]] = {
            "sessionId": data["sessionId"],
            "workspaceId": data.get("workspaceId"),
            "agentId": data.get("agentId"),
            "conversationId": data.get("conversationId"),
            "contactId": data.get("contactId"),
            "mode": data.get("mode"),
            "status": "open",
            "closeReason": None,
            "version": 1,
            "state": {"datos_capturados": {}},
            "deadlines": [],
            "flows": {},
            "pendingCommands": [],
            "journalOffset": len(self.events),
            "updatedAt": "2026-01-31T12:00:00.000Z",
        }

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            error = {"code": "unauthorized", "message": "This worker wants its token"}
            return web.json_response({"error": error}, status=401)
        if self.failing is not None:
            status, message = self.failing
            return web.json_response({"error": {"code": "e", "message": message}}, status=status)
        return None

    async def _take_event(self, request: web.Request) -> web.Response:
        if refusal := self._refusal(request):
            return refusal
        event = await request.json()
        self.events.append(event)
        self._apply(event["name"], event["data"])
        return web.json_response({"ids": [f"event-{len(self.events)}"]}, status=202)

    def _apply(self, name: str, data: dict[str, Any]) -> None:
        session_id = data["sessionId"]
        if session_id not in self.sessions:
            self.add_session(data)
        if name == "agent/collecting_data.started":
            self.sessions[session_id]["mode"] = "collecting_data"
            self.arm(session_id, "data_collection.reply", self.reply_s, len(self.events))
        elif name == "agent/promos.offered":
            self.sessions[session_id]["mode"] = "ofrecer_promos"
            self.arm(session_id, "promos.reply", self.reply_s, len(self.events))
        elif name == "agent/customer.message":
            self.sessions[session_id]["deadlines"] = []

    async def _list(self, request: web.Request) -> web.Response:
        if refusal := self._refusal(request):
            return refusal
        sought = request.query.get("q", "")
        found = [item for item in self.sessions.values() if sought in str(item)]
        return web.json_response({"items": found, "nextCursor": None})

    async def _show(self, request: web.Request) -> web.Response:
        self.asked += 1
        if refusal := self._refusal(request):
            return refusal
        session = self.sessions.get(request.match_info["id"])
        if session is None:
            error = {"code": "not_found", "message": "No such session"}
            return web.json_response({"error": error}, status=404)
        return web.json_response(session)
