"""Who may ask a worker, and where it listens."""

import httpx
import pytest
from pydantic import SecretStr

from agents_stream.core.errors import TerminalError
from agents_stream.settings import Settings
from agents_stream.views.server import WebServer
from tests.http.asking import get, many, ok
from tests.http.shown_worker import Log, Publisher, ShownWorker, run_cluster

TOKEN = "a secret"  # noqa: S105 - of these tests only


async def test_with_a_token_everything_but_the_probes_asks_for_it() -> None:
    """401 without the bearer; workers send it to each other by themselves."""
    log = many(20)
    paths = ["/api/sessions", "/api/sessions/s001", "/api/timers", "/api/dead-letters"]
    paths += ["/api/cluster", "/api/sessions/s001/timeline", "/", "/session?id=s001"]
    async with run_cluster(log, count=2, token=TOKEN) as cluster:
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as knowing:
            for path in paths:
                assert (await get(cluster.urls[0] + path)).status_code == 401, path
                assert (await knowing.get(cluster.urls[0] + path)).status_code == 200, path
                assert (await knowing.get(cluster.urls[1] + path)).status_code == 200, path
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await get(cluster.urls[0] + path)).status_code == 200


async def test_workers_with_different_tokens_say_so() -> None:
    """The message names the worker and the setting, and no token."""
    log = many(20)
    async with (
        run_cluster(log, count=2, tokens=["one", "two"]) as cluster,
        httpx.AsyncClient(headers={"Authorization": "Bearer one"}) as client,
    ):
        answer = await client.get(f"{cluster.urls[0]}/api/sessions")
    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert cluster.urls[1] in message
    assert "AUTH_TOKEN" in message
    assert "two" not in message.replace(cluster.urls[1], "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "workers.example"])
async def test_a_worker_open_to_others_without_token_does_not_start(host: str) -> None:
    """The message names both settings."""
    server = WebServer(Settings(web_host=host, web_port=0), ShownWorker(Log(), []), Publisher())
    with pytest.raises(TerminalError, match=r"AGENTS_STREAM_WEB_HOST.*AGENTS_STREAM_AUTH_TOKEN"):
        await server.start()
    await server.stop()


async def test_a_worker_open_to_others_starts_with_a_token() -> None:
    """The guard of the test above is no lock."""
    token = SecretStr(TOKEN)
    configured = Settings(web_host="0.0.0.0", web_port=0, auth_token=token)
    server = WebServer(configured, ShownWorker(Log(), []), Publisher())
    await server.start()
    assert server.port > 0
    await server.stop()


async def test_a_port_in_use_gets_clear_words() -> None:
    """TerminalError with the address and what to do; nothing is left open."""
    async with run_cluster(Log()) as cluster:
        port = cluster.servers[0].port
        second = WebServer(Settings(web_port=port), ShownWorker(Log(), []), Publisher())
        with pytest.raises(TerminalError, match=rf"127\.0\.0\.1:{port}.*AGENTS_STREAM_WEB_PORT"):
            await second.start()
        await second.stop()
        assert (await ok(f"{cluster.urls[0]}/healthz")) == {"status": "ok"}
