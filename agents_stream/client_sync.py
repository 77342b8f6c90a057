"""The producers' client without asyncio: `with AgentsStreamSync(...) as stream: stream.send(...)`.

It runs an `AgentsStream` on an event loop of its own, in a thread of its own. Any number of
threads may share it; what one thread sends for a session keeps its order. It does not survive a
fork: make it in the process that uses it (with gunicorn or celery, after the workers started).
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from agents_stream.client import TIMEOUT_S, AgentsStream, Event, Sent, ToolResult
from agents_stream.core.errors import TerminalError
from agents_stream.settings import Settings

Result = TypeVar("Result")

JOIN_S: Final = 10.0


class AgentsStreamSync:
    """A producer of events for code without asyncio; the arguments are those of `AgentsStream`."""

    def __init__(
        self,
        bootstrap_servers: str | None = None,
        topic_prefix: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        settings: Settings | None = None,
    ) -> None:
        self._client = AgentsStream(
            bootstrap_servers, topic_prefix, timeout_s=timeout_s, settings=settings
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    @classmethod
    def from_settings(cls, settings: Settings, timeout_s: float = TIMEOUT_S) -> Self:
        """Return a client for the Kafka of `settings`."""
        return cls(timeout_s=timeout_s, settings=settings)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Connect.

        Raises:
            BrokerUnreachable: no Kafka answered within the time allowed.

        """
        with self._starting:
            if self._thread is None:
                self._loop = asyncio.new_event_loop()
                # A daemon: a program that forgets to close can still end.
                self._thread = threading.Thread(
                    target=_run, args=(self._loop,), name="agents-stream-client", daemon=True
                )
                self._thread.start()
        self._wait(self._client.start)

    def close(self) -> None:
        """Disconnect and end the thread."""
        with self._starting:
            loop, thread = self._loop, self._thread
            self._loop = None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._client.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(JOIN_S)

    # `id` is the word that producers know from the envelope.
    def send(self, event: Event, *, id: str | None = None) -> Sent:  # noqa: A002
        """Send one event and wait until Kafka has it; see `AgentsStream.send`."""
        return self._wait(lambda: self._client.send(event, id=id))

    def send_envelope(self, envelope: Mapping[str, Any]) -> Sent:
        """Send one event in its envelope; see `AgentsStream.send_envelope`."""
        return self._wait(lambda: self._client.send_envelope(envelope))

    def send_many(self, events: Iterable[Event | Mapping[str, Any]]) -> list[Sent]:
        """Send events and envelopes; see `AgentsStream.send_many`."""
        return self._wait(lambda: self._client.send_many(events))

    def send_result(self, result: ToolResult) -> Sent:
        """Report how an attempt of a command ended; see `AgentsStream.send_result`."""
        return self._wait(lambda: self._client.send_result(result))

    def _wait(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        loop = self._loop
        if loop is None:
            raise TerminalError("this client is not started, or closed: use it in a `with`")
        waiting = asyncio.run_coroutine_threadsafe(work(), loop)
        try:
            return waiting.result()
        except BaseException:
            # A Ctrl-C while waiting must not leave the work behind.
            waiting.cancel()
            raise


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop until `close` stops it, then end what is left on it."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
