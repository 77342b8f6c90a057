"""The commands of SPEC §7, run as people and scripts run them: words, exit codes, effects."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from agents_stream.cli.options import FIELDS
from agents_stream.kafka import topic_admin
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import partition_for
from agents_stream.settings import Settings
from tests.conftest import free_port
from tests.kafka.command_line import Answer, assert_told, cli, run, variables

MESSAGE = {"sessionId": "s-1", "conversationId": "c-1", "messageId": "m-1", "content": "hola"}
STOP_S = 30.0


def nowhere(folder: Path) -> Settings:
    """Settings whose broker and worker do not exist."""
    return Settings(
        bootstrap_servers=f"127.0.0.1:{free_port()}", web_port=free_port(), data_dir=folder
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), ["command is missing"]),
        (("nosuch",), ["nosuch"]),
        (("kafka",), ["kafka --help"]),
        (("send", "agent/customer.message"), ["--data"]),
        (("send", "--data", "{}"), ["NAME"]),
        (("send", "agent/session.close", "--data", "@/nowhere/x.json"), ["/nowhere/x.json"]),
        (("send", "--data", "-", "--id", "x"), ["--id"]),
        (
            ("send", "agent/session.close", "--data", '{"name": "agent/x", "data": {}}'),
            ["agent/session.close", "agent/x"],
        ),
        (("sessions", "show"), ["ID"]),
        (("worker", "--web-port", "many"), ["--web-port", "integer"]),
        (("worker", "--data-reply-timeout", "soon"), ["--data-reply-timeout", "6m"]),
        (("worker", "--store", "disk"), ["--store", "rocksdb"]),
        (("topics", "check", "--partitions", "0"), ["--partitions"]),
        (("--bootstrap-servers", "kafka", "topics", "apply"), ["--bootstrap-servers"]),
        (("worker", "--bootstrap-servers", "kafka:1:2"), ["--bootstrap-servers", "HOST:PORT"]),
        (("worker", "--bootstrap-servers", "::1:9092"), ["--bootstrap-servers", "HOST:PORT"]),
        (("worker", "--auth-token", "secret"), ["--auth-token"]),
        (("dead-letters", "redrive"), ["--all"]),
        (("dead-letters", "redrive", "x/0/0", "--all"), ["--all"]),
        (("dead-letters", "redrive", "x/0"), ["TOPIC/PARTITION/OFFSET"]),
        (("dead-letters", "list", "--since", "yesterday"), ["yesterday"]),
        (("dead-letters", "list", "--cursor", "nonsense"), ["cursor"]),
        (("timeline", "s-1", "--url", "ftp://x"), ["ftp://x"]),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], words: list[str]) -> None:
    """Wrong usage is exit code 2, with a sentence that says what is wrong and where help is."""
    answer = run(nowhere(tmp_path), *arguments)
    assert_told(answer, 2, *words, "--help")


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    """A variable with a wrong value is wrong usage too, and called by its name."""
    answer = run(nowhere(tmp_path), "kafka", "status", AGENTS_STREAM_PARTITIONS="many")
    assert_told(answer, 2, "AGENTS_STREAM_PARTITIONS")


def test_no_secret_is_a_flag() -> None:
    """Flags can be read in the list of processes, so no secret is one; all else is."""
    secret = {
        "whatsapp_token",
        "crm_token",
        "engine_webhook_secret",
        "auth_token",
        "event_key",
        "sasl_password",
    }
    assert set(FIELDS) == set(Settings.model_fields) - secret


def test_help_and_version(tmp_path: Path) -> None:
    """Every command has help that names the flags which concern it; --version tells one."""
    settings = nowhere(tmp_path)
    assert run(settings, "--version").out.startswith("agents-stream ")
    for command in (("worker",), ("send",), ("kafka", "start"), ("sessions", "list"), ("audit",)):
        answer = run(settings, *command, "--help", TERMINAL_WIDTH="200", COLUMNS="200")
        assert answer.code == 0
        flag = "--web-port" if command[0] == "sessions" else "--bootstrap-servers"
        assert flag in answer.out


def test_flags_beat_variables_beat_the_file(tmp_path: Path) -> None:
    """A setting comes from flags (after the command, then before), variables, `.env`, defaults."""
    settings = Settings(data_dir=tmp_path)

    def address(*arguments: str, **more: str) -> str:
        answer = run(settings, *arguments, folder=tmp_path, **more)
        assert answer.code == 3, answer
        told: str = answer.json["address"]
        return told

    ports = [free_port() for _ in range(4)]
    places = [f"127.0.0.1:{port}" for port in ports]
    status = ("kafka", "status", "--json")
    (tmp_path / ".env").write_text(f"AGENTS_STREAM_BOOTSTRAP_SERVERS={places[0]}\n")
    assert address(*status) == places[0]
    more = {"AGENTS_STREAM_BOOTSTRAP_SERVERS": places[1]}
    assert address(*status, **more) == places[1]
    before = ("--bootstrap-servers", places[2])
    assert address(*before, *status, **more) == places[2]
    assert address(*before, *status, "--bootstrap-servers", places[3], **more) == places[3]


async def test_unreachable_broker_and_worker(tmp_path: Path) -> None:
    """Where Kafka or the worker does not answer, every command says so: exit code 3 (G11)."""
    settings = nowhere(tmp_path)
    asking_kafka = [
        ("topics", "apply"),
        ("topics", "check"),
        ("send", "agent/customer.message", "--data", orjson.dumps(MESSAGE).decode()),
        ("dead-letters", "list"),
        ("dead-letters", "redrive", "--all"),
        ("audit",),
        ("worker",),
    ]
    asking_worker = [
        ("sessions", "list"),
        ("sessions", "show", "x"),
        ("timers",),
        ("timeline", "x"),
    ]
    commands = [*asking_kafka, *asking_worker]
    answers = await asyncio.gather(*(cli(settings, *command) for command in commands))
    for command, answer in zip(commands, answers, strict=True):
        place = settings.listen_url if command in asking_worker else settings.bootstrap_servers
        assert answer.code == 3, (command, answer)
        assert place in answer.err
        assert "Traceback" not in answer.err


def test_the_embedded_broker(tmp_path: Path) -> None:
    """`kafka start` returns once it answers and lets go of our pipes; `status` exits 0 or 3."""
    settings = nowhere(tmp_path)
    assert run(settings, "kafka", "status").code == 3
    try:
        started = run(settings, "kafka", "start")
        assert started.code == 0, started
        assert settings.bootstrap_servers in started.out
        status = run(settings, "kafka", "status", "--json")
        assert (status.code, status.json["running"], status.json["answers"]) == (0, True, True)
        assert run(settings, "kafka", "start").code == 0
        assert run(settings, "topics", "check").code == 1
        elsewhere = run(settings, "kafka", "start", "--data-dir", str(tmp_path / "other"))
        assert_told(elsewhere, 1, "in use")
    finally:
        assert run(settings, "kafka", "stop").code == 0
    assert run(settings, "kafka", "status").code == 3
    assert run(settings, "kafka", "stop").code == 0


def test_topics(kafka_settings: Settings) -> None:
    """`check` lists what differs and exits 1; `apply` creates what is missing, again and again."""
    missing = run(kafka_settings, "topics", "check", "--json")
    assert missing.code == 1
    assert {item["setting"] for item in missing.json["items"]} == {"topic"}
    applied = run(kafka_settings, "topics", "apply")
    assert (applied.code, len(applied.out.splitlines())) == (0, len(missing.json["items"]))
    assert run(kafka_settings, "topics", "apply").out == "every topic is there\n"
    assert run(kafka_settings, "topics", "check").code == 0
    more = run(kafka_settings, "topics", "check", "--partitions", "5")
    assert more.code == 1
    assert "partitions" in more.out


async def stored(settings: Settings) -> dict[str, list[Any]]:
    """Every record of the events' topics, as (partition, offset, key, value)."""
    names = [
        f"{settings.topic_prefix}agent.{name}" for name in ("customer.message", "data.captured")
    ]
    found: dict[str, list[Any]] = {name: [] for name in names}
    consumer = AIOKafkaConsumer(**client_options(settings), auto_offset_reset="earliest")
    await consumer.start()
    try:
        places = [TopicPartition(name, n) for name in names for n in range(settings.partitions)]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        while any([await consumer.position(place) < ends[place] for place in places]):
            for place, records in (await consumer.getmany(timeout_ms=200)).items():
                found[place.topic] += [
                    (place.partition, item.offset, item.key, orjson.loads(item.value))
                    for item in records
                ]
    finally:
        await consumer.stop()
    return found


async def test_send(kafka_settings: Settings, tmp_path: Path) -> None:
    """`send` publishes what it is given, keyed as Java's partitioner does, and tells where."""
    settings, text = kafka_settings, orjson.dumps(MESSAGE).decode()
    name = "agent/customer.message"
    assert_told(await cli(settings, "send", name, "--data", text), 1, "topics apply")
    await topic_admin.apply(settings)
    sent = await cli(settings, "send", name, "--data", text, "--json", "--id", "mine")
    assert sent.code == 0, sent
    topic = f"{settings.topic_prefix}agent.customer.message"
    partition = partition_for(b"s-1", settings.partitions)
    place = {"topic": topic, "partition": partition, "offset": 0, "id": "mine"}
    assert {**sent.json, "timestamp": 0} == {**place, "timestamp": 0}
    assert abs(sent.json["timestamp"] - time.time() * 1000) < 60_000
    (tmp_path / "event.json").write_text(orjson.dumps({"name": name, "data": MESSAGE}).decode())
    from_file = await cli(settings, "send", "--data", f"@{tmp_path / 'event.json'}")
    assert from_file.out.startswith(f"{topic}/{partition}/1 at 20")
    records = (await stored(settings))[topic]
    assert [item[:3] for item in records] == [(partition, 0, b"s-1"), (partition, 1, b"s-1")]
    assert [item[3]["data"] for item in records] == [MESSAGE, MESSAGE]
    assert records[0][3]["id"] == "mine"


async def test_send_lines(kafka_settings: Settings) -> None:
    """`send --data -` publishes JSON lines of envelopes, all of them or none."""
    settings = kafka_settings
    await topic_admin.apply(settings)
    captured = {"name": "agent/data.captured", "data": {"sessionId": "s-1", "data": {"a": "b"}}}
    messages = [
        {"name": "agent/customer.message", "data": {**MESSAGE, "messageId": f"m-{number}"}}
        for number in range(600)
    ]
    lines = [orjson.dumps(item).decode() for item in (captured, *messages)]
    bad = await cli(settings, "send", "--data", "-", stdin="\n".join([*lines, "{}"]))
    assert_told(bad, 1, "line 602", "Nothing was sent")
    assert not any((await stored(settings)).values())
    good = await cli(settings, "send", "--data", "-", "--json", stdin="\n".join(lines) + "\n\n")
    assert good.code == 0, good
    assert len(good.lines) == 601
    assert {item["topic"] for item in good.lines} == set(await stored(settings))
    own = await cli(
        settings, "send", "agent/customer.message", "--data", "-", stdin=orjson.dumps(MESSAGE)
    )
    assert own.code == 0, own
    kept = (await stored(settings))[f"{settings.topic_prefix}agent.customer.message"]
    ids = [item[3]["data"]["messageId"] for item in kept]
    assert ids == [*(f"m-{number}" for number in range(600)), "m-1"]


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("agent/customer.message", "{", ["invalid_json"]),
        ("agent/customer.message", '{"sessionId": "s-1"}', ["invalid_schema", "messageId"]),
        ("agent/nosuch", "{}", ["unknown_event", "agent/customer.message"]),
        ("agent/session.close", '{"sessionId": "s", "sessionId": "t"}', ["invalid_json"]),
    ],
)
def test_send_refuses(tmp_path: Path, name: str, data: str, words: list[str]) -> None:
    """What the worker would put into the dead letters is refused before Kafka is asked."""
    assert_told(run(nowhere(tmp_path), "send", name, "--data", data), 1, *words)


class Running:
    """A command that runs until it is told to stop."""

    def __init__(self, settings: Settings, *arguments: str, **more: str) -> None:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agents_stream", *arguments],
            env=variables(settings, **more),
            cwd=settings.data_dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def end(self, number: signal.Signals | None) -> Answer:
        """Signal it, unless it ends by itself, and wait."""
        if number is not None:
            self.process.send_signal(number)
        try:
            out, err = self.process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"it did not end: {err.decode()[-2000:]}") from None
        return Answer(self.process.returncode, out.decode(), err.decode())


async def answers(url: str, seconds: float = 40.0) -> None:
    """Wait until something answers 200."""
    async with httpx.AsyncClient(timeout=2) as http:
        for _ in range(round(seconds / 0.1)):
            try:
                if (await http.get(url)).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_stops_cleanly(kafka_settings: Settings, number: signal.Signals) -> None:
    """A worker that is told to stop ends with exit code 0; its log is JSON if asked for."""
    settings = kafka_settings
    await topic_admin.apply(settings)
    worker = Running(settings, "worker", "--log-format", "json")
    await answers(f"{settings.listen_url}/readyz")
    answer = await asyncio.to_thread(worker.end, number)
    assert answer.code == 0, answer
    events = [orjson.loads(line)["event"] for line in answer.err.splitlines()]
    assert "worker ready" in events
    assert answer.out == ""


async def takes_signals(pid: int, seconds: float = 30.0) -> None:
    """Wait until a process catches SIGTERM; before that, Python itself is still starting."""
    for _ in range(round(seconds / 0.02)):
        status = Path(f"/proc/{pid}/status").read_text("ascii")  # noqa: ASYNC240 - not a disk
        [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it catches no SIGTERM")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux shows signals")
async def test_a_worker_is_stopped_while_it_starts(kafka_settings: Settings) -> None:
    """A worker that is stopped before it is ready ends with exit code 0 too."""
    await topic_admin.apply(kafka_settings)
    for pause_s in (0.0, 1.0, 2.0):
        worker = Running(kafka_settings, "worker")
        await takes_signals(worker.process.pid)
        await asyncio.sleep(pause_s)
        answer = await asyncio.to_thread(worker.end, signal.SIGTERM)
        assert answer.code == 0, answer


async def test_a_worker_refuses_to_start(kafka_settings: Settings) -> None:
    """Without its topics, or where its port is taken, a worker says so: exit code 1."""
    answer = await asyncio.to_thread(Running(kafka_settings, "worker").end, None)
    assert answer.code == 1, answer
    assert "topics apply" in answer.err
    assert "Traceback" not in answer.err
    await topic_admin.apply(kafka_settings)
    taken = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", kafka_settings.web_port)
    async with taken:
        answer = await asyncio.to_thread(Running(kafka_settings, "worker").end, None)
    assert answer.code == 1, answer
    assert "AGENTS_STREAM_WEB_PORT" in answer.err


async def test_the_gateway_stops_cleanly(kafka_settings: Settings) -> None:
    """A gateway without tools refuses to start (1); one that is told to stop exits 0."""
    await topic_admin.apply(kafka_settings)
    refused = await cli(kafka_settings, "gateway")
    assert_told(refused, 1, "AGENTS_STREAM_WHATSAPP_URL")
    url = f"http://127.0.0.1:{free_port()}/send"
    gateway = Running(kafka_settings, "gateway", "--whatsapp-url", url, "--log-format", "json")
    await asyncio.sleep(4)
    answer = await asyncio.to_thread(gateway.end, signal.SIGTERM)
    assert answer.code == 0, answer
    assert "gateway_started" in answer.err


async def test_the_sandbox_stops_cleanly(tmp_path: Path) -> None:
    """The sandbox alone answers, and ends with exit code 0 when it is told to stop."""
    port = free_port()
    sandbox = Running(nowhere(tmp_path), "sandbox", "--port", str(port))
    await answers(f"http://127.0.0.1:{port}/healthz")
    answer = await asyncio.to_thread(sandbox.end, signal.SIGTERM)
    assert answer.code == 0, answer
