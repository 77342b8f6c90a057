"""The ingest routes behind a real server on a free port, for tests over real HTTP."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from agents_stream.core.envelope import SealedEvent
from agents_stream.core.errors import AgentsStreamError
from agents_stream.settings import Settings
from agents_stream.views.http import AccessLogger, new_application
from agents_stream.views.ingest import EventPublisher, ingest_routes


class PlayedKafka:
    """Plays Kafka: takes events and acknowledges them, or fails `failures` times first."""

    def __init__(self, failures: int = 0, error: AgentsStreamError | None = None) -> None:
        self.taken: list[SealedEvent] = []
        self.refused: list[SealedEvent] = []
        self._failures = failures
        self._error = error

    async def publish(self, events: Sequence[SealedEvent]) -> Sequence[object]:
        """Take events, or raise."""
        if self._error is not None and self._failures > 0:
            self._failures -= 1
            self.refused += events
            raise self._error
        self.taken += events
        return events


@asynccontextmanager
async def serve(publisher: EventPublisher, settings: Settings) -> AsyncIterator[str]:
    """Serve the routes as a worker of `settings` does; give the base URL on 127.0.0.1."""
    application = new_application(settings)
    application.add_routes(ingest_routes(publisher, settings))
    runner = web.AppRunner(application, access_log_class=AccessLogger)
    await runner.setup()
    try:
        host = "127.0.0.1" if settings.web_host == "localhost" else settings.web_host
        site = web.TCPSite(runner, host, 0)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()
