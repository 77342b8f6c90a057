"""The worker's HTTP server: the API, the pages and the taking of events behind one address."""

from typing import Final

import structlog
from aiohttp import web

from agents_stream.core.errors import TerminalError
from agents_stream.settings import Settings
from agents_stream.views.api import Api
from agents_stream.views.door import door
from agents_stream.views.http import (
    AccessLogger,
    is_loopback,
    new_application,
    protocol_logger,
)
from agents_stream.views.ingest import EventPublisher, ingest_routes
from agents_stream.views.local import LocalViews
from agents_stream.views.looks import add_security_headers, prepare
from agents_stream.views.pages import Pages
from agents_stream.views.reads import Reads
from agents_stream.views.remote import ClusterViews, Peers

log = structlog.get_logger()

SHUTDOWN_S: Final = 5.0
IDLE_CONNECTION_S: Final = 75.0


class WebServer:
    """A worker's server, from `start` to `stop`.

    Args:
        settings: where to listen, and the secrets.
        reads: the worker that is shown.
        publisher: the started producer for events that come in over HTTP.

    """

    def __init__(self, settings: Settings, reads: Reads, publisher: EventPublisher) -> None:
        self._settings = settings
        self._reads = reads
        self._publisher = publisher
        self._peers = Peers(settings.auth_token)
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port it listens on; the one of the settings, or the free one that 0 asked for."""
        if self._runner is None or not self._runner.addresses:
            return self._settings.web_port
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Listen. Nothing answers before this returns, everything afterwards.

        Raises:
            TerminalError: the address is in use or is none of this machine's, or it is open to
                other machines and no token protects it.

        """
        _require_token(self._settings)
        prepare()
        self._peers.open()
        runner = web.AppRunner(
            self._application(),
            access_log_class=AccessLogger,
            logger=protocol_logger(),
            shutdown_timeout=SHUTDOWN_S,
            keepalive_timeout=IDLE_CONNECTION_S,
        )
        await runner.setup()
        host, port = self._settings.web_host, self._settings.web_port
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            await self._peers.close()
            raise TerminalError(
                f"The worker cannot listen on {host}:{port} ({error.strerror}): end the program"
                " that does, or set AGENTS_STREAM_WEB_PORT (and WEB_HOST) to a free address"
            ) from error
        self._runner = runner
        log.info("web_listening", host=host, port=self.port)

    async def stop(self) -> None:
        """Finish the requests under way and close. Twice is no error."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            log.info("web_stopped")
        await self._peers.close()

    def _application(self) -> web.Application:
        local = LocalViews(self._reads)
        cluster = ClusterViews(self._reads, local, self._peers)
        token = self._settings.auth_token
        app = new_application(self._settings)
        # People's cookie becomes the token that `guard` asks for, so it has to come before.
        app.middlewares.insert(2, door(token))
        app.on_response_prepare.append(add_security_headers)
        app.router.add_routes(Api(self._reads, local, cluster).routes())
        app.router.add_routes(Pages(cluster, has_login=token is not None).routes())
        app.router.add_routes(ingest_routes(self._publisher, self._settings))
        return app


def _require_token(settings: Settings) -> None:
    if settings.auth_token is None and not is_loopback(settings.web_host):
        raise TerminalError(
            f"AGENTS_STREAM_WEB_HOST={settings.web_host} opens this worker to other machines: set"
            " AGENTS_STREAM_AUTH_TOKEN as well, or listen on 127.0.0.1"
        )
