"""Inngest's own SDKs send to a worker unchanged: real SDK, real HTTP, real Kafka (SPEC §8).

All that an engine changes is one environment variable, INNGEST_BASE_URL or
INNGEST_EVENT_API_BASE_URL. The npm SDK is installed from its lock file, once.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import inngest
import orjson
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord

from agents_stream.client import AgentsStream, BrokerUnreachable
from agents_stream.core.envelope import SealedEvent
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topic_admin import apply
from agents_stream.settings import Settings
from tests.http.serving import serve

NPM_FOLDER = Path(__file__).parent / "inngest_npm"
NO_NETWORK = ("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH", "ECONNRESET")
BASE_URL_NAMES = ["INNGEST_BASE_URL", "INNGEST_EVENT_API_BASE_URL"]
KEY = "evt-key-1"


class LosesAnswers:
    """The real client behind a connection that loses the first `losses` answers of Kafka."""

    def __init__(self, stream: AgentsStream, losses: int = 0) -> None:
        self._stream = stream
        self._losses = losses

    async def publish(self, events: Sequence[SealedEvent]) -> Sequence[object]:
        """Publish, and now and then say that nobody knows whether it was."""
        sent = await self._stream.publish(events)
        if self._losses > 0:
            self._losses -= 1
            raise BrokerUnreachable("the answer was lost")
        return sent


@asynccontextmanager
async def worker(settings: Settings, losses: int = 0) -> AsyncIterator[str]:
    """Serve the worker's events API on the real broker; give its URL."""
    await apply(settings)
    async with (
        AgentsStream.from_settings(settings) as stream,
        serve(LosesAnswers(stream, losses), settings) as url,
    ):
        yield url


async def published(settings: Settings, count: int) -> list[dict[str, Any]]:
    """Read `count` envelopes from the events' topics, in the order of their timestamps."""
    names = ("agent.customer.message", "agent.data.captured", "agent.session.close")
    consumer = AIOKafkaConsumer(
        *(settings.topic_prefix + name for name in names),
        **client_options(settings),
        auto_offset_reset="earliest",
    )
    await consumer.start()
    records: list[ConsumerRecord] = []
    try:
        async with asyncio.timeout(20):
            while len(records) < count:
                records.append(await consumer.getone())
    finally:
        await consumer.stop()
    records.sort(key=lambda record: (record.timestamp, record.offset))
    for record in records:
        assert record.key == orjson.loads(record.value)["data"]["sessionId"].encode()
    return [orjson.loads(record.value) for record in records]


def captured(session_id: str, **fields: str) -> dict[str, Any]:
    """Return an event without an identity of its own, as an engine would write it."""
    data = {"sessionId": session_id, "data": fields or {"nombre": "Ana"}}
    return {"name": "agent/data.captured", "data": data}


def message(session_id: str, message_id: str) -> dict[str, Any]:
    """Return a customer's message, as an engine would write it."""
    data = {"sessionId": session_id, "conversationId": "c", "messageId": message_id}
    return {"name": "agent/customer.message", "data": {**data, "content": "¡Hola!"}}


@pytest.fixture(scope="session")
def npm_sdk() -> Path:
    """Install the npm SDK from its lock file, unless it is there."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node.js and npm are not installed: the npm SDK of Inngest is not tested")
    lock = NPM_FOLDER / "package-lock.json"
    stamp = NPM_FOLDER / "node_modules" / ".installed-lock.json"
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes():
        return NPM_FOLDER
    words = ["ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund"]
    done = subprocess.run(
        ["npm", *words], cwd=NPM_FOLDER, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode and any(code in done.stderr for code in NO_NETWORK):
        pytest.skip(f"npm cannot reach its registry: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    stamp.write_bytes(lock.read_bytes())
    return NPM_FOLDER


async def run_npm(folder: Path, calls: list[Any], **variables: str) -> list[dict[str, Any]]:
    """Let the npm SDK make the calls; its environment has no other variable of Inngest's."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith("INNGEST")}
    process = await asyncio.create_subprocess_exec(
        "node",
        "send.mjs",
        cwd=folder,
        env={**clean, **variables},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(json.dumps(calls).encode()), 60)
    assert process.returncode == 0, err.decode()
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.inngest
@pytest.mark.parametrize("name", BASE_URL_NAMES)
async def test_npm_sends_with_only_the_base_url_changed(
    npm_sdk: Path, kafka_settings: Settings, name: str
) -> None:
    """One event, a list and a given id; what `send` returns are the ids on Kafka."""
    calls = [captured("s-1"), [captured("s-2"), message("s-2", "m-1") | {"id": "mine"}]]
    async with worker(kafka_settings) as url:
        one, many = await run_npm(npm_sdk, calls, INNGEST_DEV="1", **{name: url})
    events = await published(kafka_settings, 3)
    assert {event["id"] for event in events} == {*one["ids"], *many["ids"]}
    assert many["ids"][1] == "mine"
    assert sorted(event["data"]["sessionId"] for event in events) == ["s-1", "s-2", "s-2"]
    assert {type(event["ts"]) for event in events} == {int}


@pytest.mark.inngest
async def test_npm_retries_with_the_same_ids(npm_sdk: Path, kafka_settings: Settings) -> None:
    """A lost answer makes the SDK send again: twice on Kafka, one event by its id (G2)."""
    async with worker(kafka_settings, losses=1) as url:
        calls = [[captured("s-1"), message("s-1", "m-1")]]
        [answer] = await run_npm(npm_sdk, calls, INNGEST_DEV="1", INNGEST_BASE_URL=url)
    events = await published(kafka_settings, 4)
    assert len(set(answer["ids"])) == 2
    assert sorted(event["id"] for event in events) == sorted(answer["ids"] * 2)


@pytest.mark.inngest
async def test_npm_shows_why_an_event_was_refused(npm_sdk: Path, kafka_settings: Settings) -> None:
    """The developer reads the reason, and a wrong key is told as such."""
    settings = kafka_settings.model_copy(update={"event_key": Settings(event_key=KEY).event_key})
    unknown = {"name": "shop/order.created", "data": {}}
    async with worker(settings) as url:
        good, bad = await run_npm(
            npm_sdk,
            [captured("s-1"), [captured("s-1"), unknown]],
            INNGEST_BASE_URL=url,
            INNGEST_EVENT_KEY=KEY,
        )
        [wrong] = await run_npm(
            npm_sdk, [captured("s-1")], INNGEST_BASE_URL=url, INNGEST_EVENT_KEY="other"
        )
    assert len(good["ids"]) == 1
    assert "400 unknown_event: event 1: 'shop/order.created'" in bad["error"]
    assert "401" in wrong["error"]


@asynccontextmanager
async def python_sdk(**options: Any) -> AsyncIterator[inngest.Inngest]:
    """Make the SDK's client as an engine does: the URL comes from the environment."""
    sdk = inngest.Inngest(app_id="engine", **options)
    yield sdk
    # The SDK itself never closes its connections.
    await sdk._http_client._http_client.aclose()
    sdk._http_client._http_client_sync.close()


def as_sdk(event: dict[str, Any]) -> inngest.Event:
    """Write an event as the Python SDK wants it."""
    return inngest.Event(**event)


@pytest.mark.parametrize("name", BASE_URL_NAMES)
async def test_pypi_sends_with_only_the_base_url_changed(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One event, a list and a given id, with both of its ways to send."""
    list_of_two = [as_sdk(captured("s-2")), as_sdk(message("s-2", "m-1") | {"id": "mine"})]
    async with worker(kafka_settings) as url:
        monkeypatch.setenv(name, url)
        async with python_sdk(is_production=False) as sdk:
            one = await sdk.send(as_sdk(captured("s-1")))
            many = await asyncio.to_thread(sdk.send_sync, list_of_two)
            none = await sdk.send([])
    events = await published(kafka_settings, 3)
    assert {event["id"] for event in events} == {*one, *many}
    assert (many[1], none) == ("mine", [])


async def test_pypi_retries_with_the_same_ids(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with npm: a lost answer is no second event (G2)."""
    events = [as_sdk(captured("s-1")), as_sdk(message("s-1", "m-1"))]
    async with worker(kafka_settings, losses=1) as url:
        monkeypatch.setenv("INNGEST_BASE_URL", url)
        async with python_sdk(is_production=False) as sdk:
            ids = await sdk.send(events)
    assert len(set(ids)) == 2
    found = await published(kafka_settings, 4)
    assert sorted(event["id"] for event in found) == sorted(ids * 2)


async def test_pypi_shows_why_an_event_was_refused(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's own error carries our reason, in production mode with a key too."""
    settings = kafka_settings.model_copy(update={"event_key": Settings(event_key=KEY).event_key})
    good = as_sdk(captured("s-1"))
    async with worker(settings) as url:
        monkeypatch.setenv("INNGEST_BASE_URL", url)
        async with python_sdk(event_key=KEY) as sdk:
            assert len(await sdk.send(good)) == 1
            with pytest.raises(Exception, match="unknown_event: event 1: 'shop/order"):
                await sdk.send([good, inngest.Event(name="shop/order.created")])
        async with python_sdk(event_key="other") as sdk:
            with pytest.raises(Exception, match="unauthorized: Event key not found"):
                await sdk.send(good)
    assert len(await published(kafka_settings, 1)) == 1
