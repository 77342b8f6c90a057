"""A TCP proxy before a broker that can swallow requests of chosen kinds, or everything."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

PRODUCE: Final = 0
FETCH: Final = 1
OFFSET_COMMIT: Final = 8
_HEAD: Final = struct.Struct(">ih")  # the length of a request, and its kind


class SilentProxy:
    """Passes requests on, but for those in `swallowed`: their connections stay open and silent."""

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.swallowed: frozenset[int] = frozenset()
        self._broker = host, port
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @classmethod
    @asynccontextmanager
    async def before(cls, bootstrap_servers: str) -> AsyncIterator[Self]:
        """Run one before a broker."""
        host, _, port = bootstrap_servers.rpartition(":")
        proxy = cls(host, int(port))
        await proxy.open()
        try:
            yield proxy
        finally:
            await proxy.cut()

    async def open(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Refuse new connections and end those that are there: the broker is gone."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, forth = await asyncio.open_connection(*self._broker)
        self._writers |= {back, forth}
        answers = asyncio.create_task(_copy(far, back))
        try:
            await self._requests(near, forth)
        except (OSError, asyncio.IncompleteReadError):
            pass  # one side has gone, and so does the other
        finally:
            answers.cancel()
            for writer in (back, forth):
                writer.close()
            self._writers -= {back, forth}

    async def _requests(self, near: asyncio.StreamReader, forth: asyncio.StreamWriter) -> None:
        while True:
            head = await near.readexactly(_HEAD.size)
            length, kind = _HEAD.unpack(head)
            body = await near.readexactly(length - 2)
            if kind in self.swallowed:
                await near.read()  # until the client gives up
                return
            forth.write(head + body)
            await forth.drain()


async def _copy(far: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
    try:
        while data := await far.read(65_536):
            back.write(data)
            await back.drain()
    except OSError:
        pass  # the client has gone
