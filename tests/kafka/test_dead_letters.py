"""`dead-letters list|show` and the metrics: what was buried is seen, and told in time."""

import asyncio
import base64
import re
import subprocess
import sys
import time

import httpx
import orjson

from agents_stream.kafka import metrics
from agents_stream.settings import Settings
from agents_stream.views.forms import letter_json
from agents_stream.views.reads import Letter
from tests.kafka.cluster import Cluster, cluster
from tests.kafka.command_line import ROOT, assert_told, cli, variables
from tests.kafka.letters import bury, listed, message, records, redrive


async def test_list(kafka_settings: Settings) -> None:
    """`list` shows the newest first, as the API does; filters, pages and tables."""
    async with cluster(kafka_settings) as seen:
        places = [await bury(seen, message("s-1", str(number))) for number in range(5)]
        places.append(await bury(seen, b"", session="s-2", reason="invalid_json", value="eA=="))
        await seen.producer.send_and_wait(seen.topic("agent.dead_letters"), b"junk")

        whole = await listed(seen)
        expected = [
            letter_json(Letter(r.partition, r.offset, r.timestamp, r.key, r.value))
            for r in await records(seen, "agent.dead_letters")
        ]
        assert sorted(map(str, whole["items"])) == sorted(map(str, expected))
        assert whole["items"][0]["reason"] == "unreadable"
        assert whole["nextCursor"] is None
        page = await listed(seen, "--limit", "3")
        rest = await listed(seen, "--limit", "50", "--cursor", page["nextCursor"])
        assert page["items"] + rest["items"] == whole["items"]
        assert len((await listed(seen, "--session", "s-1"))["items"]) == 5
        assert len((await listed(seen, "--reason", "invalid_json"))["items"]) == 1
        assert len((await listed(seen, "--since", "10m"))["items"]) == 7
        assert (await listed(seen, "--since", "2100-01-01"))["items"] == []
        table = await cli(seen.settings, "dead-letters", "list")
        assert all(place in table.out for place in places)


async def test_filters(kafka_settings: Settings) -> None:
    """By the source's topic and by time, for `list` and `redrive` alike (G1)."""
    async with cluster(kafka_settings) as seen:
        value = {**message("s-1"), "data": {"n": "1"}}
        old = await bury(seen, value)
        await asyncio.sleep(0.05)
        middle = time.time_ns() // 1_000_000
        await asyncio.sleep(0.05)
        other = await bury(seen, value, topic="agent.data.captured")
        late = await bury(seen, value)

        async def found(*arguments: str) -> set[str]:
            items = (await listed(seen, *arguments))["items"]
            return {item["id"].removeprefix("dl:") for item in items}

        assert await found("--topic", "agent.data.captured") == {other}
        full = seen.topic("agent.customer.message")
        assert await found("--topic", full) == {old, late}
        assert await found("--until", str(middle)) == {old}
        assert await found("--since", str(middle)) == {other, late}
        window = ("--since", "10m", "--until", str(middle))
        assert await found(*window, "--topic", "agent.data.captured") == set()
        wrong = await cli(seen.settings, "dead-letters", "list", "--topic", "agent.nothing")
        assert_told(wrong, 2, "agent.nothing")

        planned = await redrive(seen, *window, "--dry-run")
        assert planned.json["planned"] == [f"dl:{old}"]
        for expected in ([f"dl:{old}"], []):
            answer = await redrive(seen, *window)
            assert [item["id"] for item in answer.json["redriven"]] == expected
            await _as_if_accepted(seen, old)
        answer = await redrive(seen, "--topic", "agent.data.captured")
        assert [item["id"] for item in answer.json["redriven"]] == [f"dl:{other}"]


async def _as_if_accepted(seen: Cluster, place: str) -> None:
    """The journal has what was redriven, as a worker would have written it."""
    entry = {"sessionId": "s-1", "id": f"dl:{place}", "name": "agent/customer.message"}
    await seen.producer.send_and_wait(
        seen.topic("session.journal"), orjson.dumps(entry), key=b"s-1"
    )


async def test_show(kafka_settings: Settings) -> None:
    """`show` tells all about one letter; what it holds can harm no terminal, and is kept whole."""
    nasty = "hola\x1b[2J\u202e\n".encode()
    async with cluster(kafka_settings) as seen:
        text = await bury(seen, nasty, reason="invalid_json")
        encoded = base64.b64encode(b"\xff\x1b\x00").decode()
        binary = await bury(seen, b"", value=encoded, encoding="base64", reason="invalid_json")
        nothing = await bury(seen, b"", value=None, reason="invalid_json")
        told = await cli(seen.settings, "dead-letters", "show", text)
        assert told.code == 0, told
        assert all(word in told.out for word in (text, "invalid_json", "s-1", "of a test"))
        assert "\x1b" not in told.out
        assert "\u202e" not in told.out
        assert r"hola\x1b[2J\u202e\n" in told.out
        told = await cli(seen.settings, "dead-letters", "show", f"dl:{binary}")
        assert "as base64" in told.out
        assert encoded in told.out
        assert "null" in (await cli(seen.settings, "dead-letters", "show", nothing)).out
        raw = await asyncio.to_thread(_raw, seen.settings, binary)
        assert raw == b"\xff\x1b\x00"
        asked = await cli(seen.settings, "dead-letters", "show", binary, "--json")
        assert asked.json in (await listed(seen))["items"]
        missing = await cli(seen.settings, "dead-letters", "show", "t/0/1")
        assert_told(missing, 1, "t/0/1")
        assert_told(await cli(seen.settings, "dead-letters", "show", "nonsense"), 2, "nonsense")


def _raw(settings: Settings, place: str) -> bytes:
    """What `show --raw` writes."""
    command = [sys.executable, "-m", "agents_stream", "dead-letters", "show", place, "--raw"]
    done = subprocess.run(
        command, env=variables(settings), capture_output=True, timeout=60, check=True
    )
    return done.stdout


async def test_the_metrics_of_letters(kafka_settings: Settings) -> None:
    """Letters are counted by reason from zero, and altogether, a gateway's too (G11).

    So are records that Kafka deletes before they are read: a loss must be an increase.
    """
    async with cluster(kafka_settings) as seen:
        worker = await seen.worker().ready()

        async def metric(name: str) -> float:
            async with httpx.AsyncClient() as http:
                text = (await http.get(f"{worker.url}/metrics")).text
            [line] = [line for line in text.splitlines() if line.startswith(name + " ")]
            return float(line.split()[-1])

        by_reason = 'agents_stream_dead_letters_total{reason="invalid_schema"}'
        assert await metric(by_reason) == 0
        assert await metric("agents_stream_dead_letters_written") == 0
        for topic in ("agent.customer.message", "session.deadlines", "session.journal"):
            assert await metric(f'agents_stream_records_lost_total{{topic="{topic}"}}') == 0
        await bury(seen, b"{}", topic="agent.outcomes", reason="webhook_failed")
        await seen.send("agent/customer.message", "s-1", content="no id")
        await seen.until(lambda: len(seen.records.get(seen.topic("agent.dead_letters"), [])) == 2)
        assert await metric(by_reason) == 1
        for _ in range(100):
            if await metric("agents_stream_dead_letters_written") == 2:
                return
            await asyncio.sleep(0.2)
        raise AssertionError("the gateway's letter was not counted")


def test_every_reason_has_its_metric() -> None:
    """The reasons that are at zero from the start are those that docs/operations.md lists."""
    text = (ROOT / "docs" / "operations.md").read_text()
    table = text[text.index("| reason | what happened") :].split("\n\n")[0]
    told = set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"(?m)^\|[^|]*\|", table))))
    assert told == {*metrics.LETTER_REASONS, "webhook_failed"}
