"""`dead-letters redrive`: what was buried is sent in again when it can be, once and in order."""

import base64
import random
from typing import Any

import orjson
import pytest

from agents_stream.core.errors import TerminalError
from agents_stream.dead_letters import Buried, read_letter
from agents_stream.kafka.topics import load_topics, partition_for
from agents_stream.redrive import plan, prepare
from agents_stream.settings import Settings
from tests.kafka.cluster import Cluster, cluster
from tests.kafka.command_line import assert_told, cli
from tests.kafka.letters import WRITTEN_MS, bury, message, records, redrive


async def journal(seen: Cluster, session: str, name: str) -> list[dict[str, Any]]:
    """The journal's entries of a session with this name."""
    lines = [orjson.loads(line.value) for line in await records(seen, "session.journal")]
    return [line for line in lines if line["sessionId"] == session and line["name"] == name]


@pytest.fixture
def kafka_settings(kafka_settings: Settings) -> Settings:
    """Customers have time: commands are slow where a machine has other work."""
    return kafka_settings.model_copy(update={"data_reply_timeout": 60_000})


async def until_journalled(seen: Cluster, session: str, name: str, count: int) -> None:
    """Wait until the worker has accepted so many events."""
    for _ in range(100):
        if len(await journal(seen, session, name)) >= count:
            return
    raise AssertionError(f"{name} was not accepted {count} times")


async def test_an_event_is_sent_in_again_once(kafka_settings: Settings) -> None:
    """A repaired event is applied, with its letter's id, however often it is redriven (G1, G2)."""
    async with cluster(kafka_settings) as seen:
        await seen.worker().ready()
        session = await seen.open()
        await seen.collect(session)
        place = await bury(seen, message(session), session=session)
        first = await redrive(seen, place)
        assert first.code == 0, first
        assert [item["id"] for item in first.json["redriven"]] == [f"dl:{place}"]
        await seen.until_outcomes(session, ("data_collection", "responded", "awaiting_more_data"))
        for arguments in ((place,), ("--all",), ("--reason", "unknown_event")):
            again = await redrive(seen, *arguments)
            assert (again.code, again.json["redriven"]) == (0, [])
            assert again.json["before"] == [f"dl:{place}"]
        accepted = await journal(seen, session, "agent/customer.message")
        assert [item["id"] for item in accepted] == [f"dl:{place}"]
        assert accepted[0]["source"]["timestamp"] > WRITTEN_MS


async def test_twice_before_it_is_accepted(kafka_settings: Settings) -> None:
    """Redriven twice while no worker runs, an event is applied once: it has one id (G2)."""
    async with cluster(kafka_settings) as seen:
        place = await bury(seen, message("s-1"))
        for _ in range(2):
            assert len((await redrive(seen, place)).json["redriven"]) == 1
        await seen.collect("s-1")
        await seen.worker().ready()
        await until_journalled(seen, "s-1", "agent/customer.message", 2)
        http = await cli(seen.settings, "timeline", "s-1", "--json", "--url", seen.workers[0].url)
        items = [item for item in http.json["items"] if item["name"] == "agent/customer.message"]
        assert [item["reasons"] for item in items] == [["not_waiting"], ["duplicate"]]


async def test_an_envelope_keeps_name_and_data(kafka_settings: Settings) -> None:
    """An envelope goes to its own event's topic, with the letter's id instead of its own."""
    async with cluster(kafka_settings) as seen:
        data = {"sessionId": "s-9", "data": {"nombre": "Ana"}}
        value = {"name": "agent/data.captured", "data": data, "id": "its-own", "ts": 5}
        place = await bury(seen, value, session="s-1", reason="reducer_error")
        assert (await redrive(seen, "--session", "s-9")).code == 0
        [record] = await records(seen, "agent.data.captured")
        assert record.key == b"s-9"
        assert record.partition == partition_for(b"s-9", seen.settings.partitions)
        assert orjson.loads(record.value) == {**value, "id": f"dl:{place}"}


async def test_order(kafka_settings: Settings) -> None:
    """A session's letters go out in the order of their records' times, a millisecond apart."""
    names, count = ("data.captured", "customer.message"), 60
    async with cluster(kafka_settings) as seen:
        for number in random.sample(range(count), count):
            value = {**message("s-1", str(number)), "data": {"n": str(number)}}
            topic = f"agent.{names[number % 2]}"
            await bury(seen, value, topic=topic, timestamp=WRITTEN_MS + number)
        answer = await redrive(seen, "--all")
        assert len(answer.json["redriven"]) == count, answer
        found = [await records(seen, f"agent.{name}") for name in names]
        told = sorted(
            (line.timestamp, orjson.loads(line.value)["data"]["content"])
            for part in found
            for line in part
        )
        assert [content for _, content in told] == [str(number) for number in range(count)]
        assert len({when for when, _ in told}) == count


async def test_a_command_is_retried(kafka_settings: Settings) -> None:
    """A failed command keeps its id, gets the next attempt, and ends its flow anew, once."""
    broken = {"is": True}

    def crm(command: dict[str, Any]) -> dict[str, Any]:
        if broken["is"] and command["tool"] == "crm.order.create":
            return {"status": "failed", "retryable": False, "error": {"code": "down"}}
        return {"status": "succeeded", "outputs": {"id": "order-7"}}

    async with cluster(kafka_settings, crm) as seen:
        await seen.worker().ready()
        session = await seen.open()
        await seen.offer(session)
        await seen.until_outcomes(session, ("promos", "failed", "order_failed"))
        await seen.until(lambda: seen.values("agent.dead_letters", session))
        broken["is"] = False
        for _ in range(2):
            assert (await redrive(seen, "--reason", "tool_failed")).code == 0
        failed, done = ("promos", "failed", "order_failed"), ("promos", "timeout")
        await seen.until_outcomes(session, failed, (*done, "auto_created_order"))
        outcome = seen.values("agent.outcomes", session)[1]
        assert (outcome["redriven"], outcome["orderId"]) == (True, "order-7")
        orders = seen.values("tool.crm.order.create", session)
        assert [item["attempt"] for item in orders] == [1, 2]
        assert len({item["id"] for item in orders}) == 1
        assert len(await journal(seen, session, "agent/operator.action")) == 1
        assert len(seen.messages(session)) == 1


async def test_what_cannot_be_sent(kafka_settings: Settings) -> None:
    """What is cut or still not valid is refused with the reason; the rest goes out; exit code 1."""
    async with cluster(kafka_settings) as seen:
        cut = await bury(seen, b"{", reason="too_large", truncated=True, size=2_000_000)
        wrong = await bury(seen, {"sessionId": "s-1"}, reason="invalid_schema")
        nothing = await bury(seen, b"{", value=None, reason="invalid_json")
        good = await bury(seen, message("s-1"))
        foreign = await bury(seen, message("s-1"), source=None)
        answer = await redrive(seen, "--all")
        assert answer.code == 1
        assert [item["id"] for item in answer.json["redriven"]] == [f"dl:{good}"]
        refused = {item["id"]: item["why"] for item in answer.json["refused"]}
        assert set(refused) == {f"dl:{place}" for place in (cut, wrong, nothing)}
        assert "beginning" in refused[f"dl:{cut}"]
        assert "messageId" in refused[f"dl:{wrong}"]
        assert foreign not in answer.out
        missing = await redrive(seen, foreign)
        assert_told(missing, 1, foreign, "Nothing was sent")
        assert len(await records(seen, "agent.customer.message")) == 1


async def test_by_force(kafka_settings: Settings) -> None:
    """--force sends what is still not valid: it becomes a letter of its own, and nothing stops."""
    async with cluster(kafka_settings) as seen:
        await seen.worker().ready()
        place = await bury(seen, {"sessionId": "s-1"}, reason="invalid_schema")
        text = await bury(seen, b"{", reason="invalid_json")
        answer = await redrive(seen, place, text, "--force")
        assert (answer.code, len(answer.json["redriven"])) == (0, 2)
        await seen.until(lambda: len(seen.records[seen.topic("agent.dead_letters")]) == 4)


async def test_a_dry_run_sends_nothing(kafka_settings: Settings) -> None:
    """--dry-run says what would go out."""
    async with cluster(kafka_settings) as seen:
        place = await bury(seen, message("s-1"))
        answer = await redrive(seen, "--all", "--dry-run")
        assert (answer.json["planned"], answer.json["redriven"]) == ([f"dl:{place}"], [])
        told = await cli(seen.settings, "dead-letters", "redrive", "--all", "--dry-run")
        assert place in told.out
        assert await records(seen, "agent.customer.message") == []


async def test_records_as_they_were(kafka_settings: Settings) -> None:
    """A result, a deadline and an untold outcome go out as they were, each once."""
    result = {"sessionId": "s-1", "commandId": "c-1", "attempt": 1, "status": "succeeded"}
    deadline = {"sessionId": "s-1", "name": "promos.reply", "generation": 3, "dueAt": 5}
    outcome = {"id": "o-1", "sessionId": "s-1", "flow": "promos"}
    own = {"name": "agent/promos.offered", "id": "agents-stream:1", "data": {"sessionId": "s-1"}}
    letters = (
        ("tool.results", result, "invalid_schema"),
        ("session.deadlines", deadline, "reducer_error"),
        ("agent.outcomes", outcome, "webhook_failed"),
        ("agent.promos.offered", own, "webhook_failed"),
    )
    async with cluster(kafka_settings) as seen:
        for topic, value, reason in letters:
            await bury(seen, value, topic=topic, reason=reason)
        assert len((await redrive(seen, "--all")).json["redriven"]) == 4
        again = await redrive(seen, "--all")
        assert (again.json["redriven"], len(again.json["before"])) == ([], 4)
        for topic, value, _ in letters:
            [record] = await records(seen, topic)
            assert orjson.loads(record.value) == value
            assert record.partition == partition_for(b"s-1", seen.settings.partitions)


async def test_not_again_after_many_events(kafka_settings: Settings) -> None:
    """What the journal shows to have been accepted is not sent again, however long ago (G2)."""
    async with cluster(kafka_settings) as seen:
        place = await bury(seen, message("s-1"))
        entry = {"sessionId": "s-1", "id": f"dl:{place}", "name": "agent/customer.message"}
        await seen.producer.send_and_wait(
            seen.topic("session.journal"), orjson.dumps(entry), key=b"s-1"
        )
        answer = await redrive(seen, place)
        assert (answer.json["redriven"], answer.json["before"]) == ([], [f"dl:{place}"])


def buried(value: bytes | None, reason: str = "tool_failed", **more: Any) -> Buried:
    """A letter with a source on the journal."""
    settings = Settings()
    topic = more.pop("topic", load_topics().name("session.journal", settings.topic_prefix))
    return Buried(reason, "", (topic, 0, 7), 1, b"s-1", value, is_cut=False, written_at=2)


@pytest.mark.parametrize(
    "letter",
    [
        buried(b"[]"),
        buried(b'{"id": 5, "sessionId": "s-1"}'),
        buried(b'{"id": "c-1", "sessionId": "s-1"}', reason="invented"),
        buried(b"{}", topic="other.topic"),
        buried(None),
    ],
)
def test_letters_that_hold_nothing(letter: Buried) -> None:
    """A letter without a command, or of another prefix, is refused and never guessed at."""
    with pytest.raises(TerminalError):
        prepare(letter, Settings())


def test_a_letter_is_read_whole() -> None:
    """Bytes that are no text come back as they were; what is no letter is none."""

    class Line:
        timestamp = 9
        value = b""

    line = Line()
    letter: dict[str, Any] = {
        "reason": "invalid_json",
        "detail": "no",
        "source": {"topic": "t", "partition": 0, "offset": 7, "timestamp": 5},
        "key": base64.b64encode(b"\xff").decode(),
        "keyEncoding": "base64",
        "value": base64.b64encode(b"\xfe").decode(),
        "encoding": "base64",
    }
    line.value = orjson.dumps(letter)
    found = read_letter(line)
    assert found is not None
    assert (found.id, found.key, found.value) == ("dl:t/0/7", b"\xff", b"\xfe")
    for wrong in (
        {"source": None},
        {"source": {**letter["source"], "offset": "7"}},
        {"value": "*"},
        {"value": 5},
        {"reason": 5},
    ):
        line.value = orjson.dumps({**letter, **wrong})
        assert read_letter(line) is None


async def test_nothing_to_plan() -> None:
    """Without letters Kafka is not asked."""
    made = await plan(Settings(bootstrap_servers="127.0.0.1:1"), [])
    assert (made.sendings, made.before, made.refused) == ([], [], [])
