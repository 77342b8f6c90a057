"""A broker's address whose traffic a test can hold up, by kind of request and by topic.

What a client sees through it is a broker that answers some requests late, or a partition whose
leader is slow while the group's coordinator is well. Where the broker tells its address (Metadata,
FindCoordinator) the proxy puts its own in, so that no connection goes around it.
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

PRODUCE: Final = 0
METADATA: Final = 3
OFFSET_COMMIT: Final = 8
FIND_COORDINATOR: Final = 10
_TELLS_ADDRESS: Final = {METADATA, FIND_COORDINATOR}
_MAX_FRAME: Final = 64 * 1024 * 1024


@dataclass
class Hold:
    """Requests of one kind that name `text`: the first `passing` go through when it is opened.

    Until `begin` is set all of them wait; afterwards the first `passing`, and no others, go on.
    """

    api: int
    text: bytes
    passing: int = 0
    seen: int = 0
    begin: asyncio.Event = field(default_factory=asyncio.Event)
    end: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, api: int, frame: bytes) -> None:
        """Let a request go on, now or later."""
        if self.end.is_set() or api != self.api or self.text not in frame:
            return
        self.seen += 1
        gate = self.begin if self.seen <= self.passing else self.end
        await gate.wait()


class Proxy:
    """Stands between clients and one broker."""

    def __init__(self, broker: str) -> None:
        host, port = broker.rsplit(":", 1)
        self.host = host
        self._broker_port = int(port)
        self.port = 0
        self.holds: list[Hold] = []
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """What clients take for the broker."""
        return f"{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """End everything."""
        assert self._server is not None
        self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """Break every connection; what is held in them never reaches the broker."""
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    @contextmanager
    def hold(self, api: int, text: str, passing: int = 0) -> Iterator[Hold]:
        """Hold requests up from now on."""
        one = Hold(api, text.encode(), passing)
        self.holds.append(one)
        try:
            yield one
        finally:
            one.end.set()
            one.begin.set()
            self.holds.remove(one)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await self._relay(reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(self.host, self._broker_port)
        asked: dict[int, int] = {}
        ways = [
            asyncio.ensure_future(self._requests(reader, up_writer, asked)),
            asyncio.ensure_future(self._answers(up_reader, writer, asked)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            up_writer.close()

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, int]
    ) -> None:
        async for frame in _frames(reader):
            api, _, correlation = struct.unpack_from(">hhi", frame)
            if api in _TELLS_ADDRESS:
                asked[correlation] = api
            for one in list(self.holds):
                await one.wait(api, frame)
            await _put(writer, frame)

    async def _answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, int]
    ) -> None:
        theirs = self.host.encode() + struct.pack(">i", self._broker_port)
        ours = self.host.encode() + struct.pack(">i", self.port)
        async for frame in _frames(reader):
            (correlation,) = struct.unpack_from(">i", frame)
            told = asked.pop(correlation, None) is not None
            await _put(writer, frame.replace(theirs, ours) if told else frame)


async def _frames(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Kafka's frames: four bytes of length, then as many."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            (length,) = struct.unpack(">i", await reader.readexactly(4))
            assert 0 < length <= _MAX_FRAME
            yield await reader.readexactly(length)


async def _put(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(struct.pack(">i", len(frame)) + frame)
    await writer.drain()


@asynccontextmanager
async def proxy(broker: str) -> AsyncIterator[Proxy]:
    """A proxy before a broker, for as long as the block lasts."""
    one = Proxy(broker)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()
