"""What one client may take of a worker: requests per second, and memory for bodies."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.settings import Settings
from agents_stream.views import http, rates
from agents_stream.views.rates import BURST_S, MAX_CLIENTS, Rates
from tests.http.serving import PlayedKafka, serve

EVENT = {"name": "agent/session.close", "data": {"sessionId": "s-1", "reason": "completed"}}


@given(
    per_second=st.integers(1, 5_000),
    pauses=st.lists(st.floats(0, 0.5), min_size=1, max_size=200),
)
def test_in_no_stretch_of_time_more_gets_through(per_second: int, pauses: list[float]) -> None:
    """G11: whatever the rhythm, at most the rate times (the stretch + the burst); never nothing."""
    now = 0.0
    limiter = Rates(per_second, lambda: now)
    taken = []
    for pause in pauses:
        now += pause
        if limiter.take("one"):
            taken.append(now)
    assert taken
    for first in range(0, len(taken), 17):
        allowed = per_second * (taken[-1] - taken[first] + BURST_S) + 1e-6
        assert len(taken) - first <= allowed + 1


def test_clients_do_not_pay_for_each_other_and_are_forgotten() -> None:
    """One that asks too much changes nothing for another; the oldest is forgotten first."""
    limiter = Rates(1, lambda: 0.0)
    assert [limiter.take("loud") for _ in range(4)] == [True, True, False, False]
    assert limiter.take("quiet")
    for number in range(MAX_CLIENTS + 10):
        limiter.take(str(number))
    assert len(limiter) == MAX_CLIENTS


async def test_too_many_requests_are_told_to_come_back() -> None:
    """503 with Retry-After, published is nothing; the probe answers, and time heals."""
    kafka = PlayedKafka()
    async with serve(kafka, Settings(http_rate=5)) as url, httpx.AsyncClient() as client:
        answers = [await client.post(f"{url}/api/events", json=EVENT) for _ in range(15)]
        accepted = [one for one in answers if one.status_code == 202]
        refused = [one for one in answers if one.status_code == 503]
        assert len(accepted) == len(kafka.taken) >= 10
        assert len(refused) == 15 - len(accepted) > 0
        assert refused[0].headers["Retry-After"] == "1"
        assert refused[0].json()["error"]["code"] == "too_many_requests"
        await asyncio.sleep(1)
        assert (await client.post(f"{url}/api/events", json=EVENT)).status_code == 202


async def test_bodies_take_a_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow senders hold what they sent; one more is refused, and their end makes room (G11)."""
    monkeypatch.setattr(rates.Bodies.__init__, "__defaults__", (1_000_000,))
    monkeypatch.setattr(http, "BODY_TIME_S", 1.5)

    async def slow() -> AsyncIterator[bytes]:
        yield b" " * 400_000
        await asyncio.sleep(5)

    async with serve(PlayedKafka(), Settings()) as url, httpx.AsyncClient(timeout=10) as client:
        target = f"{url}/api/events"
        waiting = [asyncio.create_task(client.post(target, content=slow())) for _ in range(2)]
        await asyncio.sleep(0.5)
        refused = await client.post(target, content=b" " * 400_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        assert [one.status_code for one in await asyncio.gather(*waiting)] == [400, 400]
        assert (await client.post(target, json=EVENT)).status_code == 202
