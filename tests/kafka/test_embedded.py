"""The embedded broker as its users meet it: start, stop, restart, and all that goes wrong."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from agents_stream.kafka import broker_files, broker_process, embedded
from agents_stream.kafka.broker_files import DataDirectoryCorrupt
from agents_stream.kafka.broker_process import BrokerNotStarted
from agents_stream.kafka.embedded import BrokerDied, BrokerInfo, PortInUse, Status
from agents_stream.settings import Settings
from tests.conftest import free_port

META = (
    "version=1\ncluster.id=MkU3OEVBNTcwNTJENDM2Qg\nnode.id=1\ndirectory.id=Pt8XgFWfsTJK6eqYjffLSQ\n"
)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Settings]:
    """Settings for a broker of this test alone; what it starts is stopped."""
    settings = Settings(bootstrap_servers=f"127.0.0.1:{free_port()}", data_dir=tmp_path / "data")
    yield settings
    embedded.stop(settings)


async def write(address: str, value: bytes) -> None:
    """Publish one value on the topic `kept`, and have it acknowledged."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    await admin.create_topics([NewTopic("kept", 1, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=address, acks="all")
    await producer.start()
    await producer.send_and_wait("kept", value)
    await producer.stop()


async def read(address: str) -> list[bytes | None]:
    """Give everything that is on the topic `kept`."""
    consumer = AIOKafkaConsumer(bootstrap_servers=address)
    await consumer.start()
    try:
        partition = TopicPartition("kept", 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning()
        ends = await consumer.end_offsets([partition])
        values: list[bytes | None] = []
        async with asyncio.timeout(10):
            while await consumer.position(partition) < ends[partition]:
                values.append((await consumer.getone()).value)
        return values
    finally:
        await consumer.stop()


def stopped(settings: Settings) -> Status:
    """What status says when no broker runs and nobody listens."""
    return Status(running=False, answers=False, pid=None, address=settings.bootstrap_servers)


def running(settings: Settings, pid: int, *, answers: bool = True) -> Status:
    """What status says of a broker that runs."""
    return Status(running=True, answers=answers, pid=pid, address=settings.bootstrap_servers)


def folder_of(settings: Settings) -> Path:
    """Make the folder of a broker that has not been started yet."""
    folder = embedded.files_of(settings).folder
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def with_java(settings: Settings, script: str) -> Settings:
    """Let a shell script play the Java that runs Kafka."""
    java = settings.data_dir / "java" / "bin" / "java"
    java.parent.mkdir(parents=True)
    version = """[ "$1" = -version ] && { echo 'openjdk version "21.0.1"' >&2; exit 0; }"""
    java.write_text(f"#!/bin/sh\n{version}\n{script}\n", "utf-8")
    java.chmod(0o755)
    return settings.model_copy(update={"java_home": java.parent.parent})


@pytest.mark.kafka
def test_stop_and_kill_lose_nothing(own: Settings) -> None:
    """G1: what was acknowledged is there after a clean stop, and after a kill -9 as well."""
    first = embedded.start(own)
    assert first.started
    assert embedded.status(own) == running(own, first.pid)
    asyncio.run(write(first.bootstrap_servers, b"before the stop"))
    assert embedded.stop(own)
    assert embedded.status(own) == stopped(own)
    assert not embedded.stop(own)

    second = embedded.start(own)
    asyncio.run(write(second.bootstrap_servers, b"before the kill"))
    os.kill(second.pid, signal.SIGKILL)
    assert broker_process.wait_until(lambda: not embedded.status(own).running, 10)
    assert embedded.files_of(own).pid.read_text() == f"{second.pid}\n"

    third = embedded.start(own)
    assert third.started
    kept = asyncio.run(read(third.bootstrap_servers))
    assert kept == [b"before the stop", b"before the kill"]


@pytest.mark.kafka
def test_two_starts_at_once_are_one_start(own: Settings) -> None:
    """Both get the same broker; a third that asks for another address is told where it runs."""
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(embedded.start, [own, own]))
    assert sorted(one.started for one in found) == [False, True]
    assert found[0].pid == found[1].pid
    elsewhere = own.model_copy(update={"bootstrap_servers": f"127.0.0.1:{free_port()}"})
    with pytest.raises(BrokerNotStarted, match=own.bootstrap_servers):
        embedded.start(elsewhere)


def open_files(pid: int) -> dict[int, str]:
    """What a process has open, by descriptor; a working broker opens and closes files meanwhile."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[int(link.name)] = str(link.readlink())
    return found


@pytest.mark.kafka
def test_start_leaves_it_detached(own: Settings) -> None:
    """The caller's pipes end with the caller; the broker has its own session and no terminal."""
    program = (
        "import sys; from pathlib import Path; from agents_stream.kafka import embedded;"
        " from agents_stream.settings import Settings;"
        " s = Settings(bootstrap_servers=sys.argv[1], data_dir=Path(sys.argv[2]));"
        " print(embedded.start(s).pid)"
    )
    command = [sys.executable, "-c", program, own.bootstrap_servers, str(own.data_dir)]
    caller = subprocess.run(command, capture_output=True, check=True, timeout=60)
    pid = int(caller.stdout.splitlines()[-1])
    assert embedded.status(own) == running(own, pid)
    assert os.getsid(pid) not in {os.getsid(0), 0}
    if sys.platform == "linux":
        kept = open_files(pid)
        assert kept[0] == os.devnull
        assert kept[1] == kept[2] == str(embedded.files_of(own).output)
        assert not [name for name in kept.values() if name.startswith("/dev/pts")]


@pytest.mark.kafka
def test_a_broker_that_hangs_is_seen_and_ended(
    own: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G11: it runs and does not answer; stop ends it by force after its limit."""
    monkeypatch.setattr(broker_process, "STOP_LIMIT_S", 1.0)
    started = embedded.start(own)
    os.kill(started.pid, signal.SIGSTOP)
    assert embedded.status(own) == running(own, started.pid, answers=False)
    assert embedded.stop(own)
    assert embedded.status(own) == stopped(own)


@pytest.mark.kafka
def test_any_folder_name_and_a_format_that_was_cut_off(own: Settings) -> None:
    """A name with spaces, commas and accents works; what an aborted first start left is no harm."""
    settings = own.model_copy(update={"data_dir": own.data_dir / "mis datos, año 1 $x %i"})
    junk = folder_of(settings) / "data.formatting" / "meta.properties"
    junk.parent.mkdir()
    junk.write_text("half of it")
    assert embedded.start(settings).started
    assert embedded.files_of(settings).log.stat().st_size > 0
    assert embedded.stop(settings)
    assert broker_files.is_formatted(embedded.files_of(settings))


def test_a_port_that_another_program_has(own: Settings) -> None:
    """It is said before anything is downloaded or started, with a way out."""
    address = embedded.address_of(own)
    with (
        socket.create_server((address.host, address.port)),
        pytest.raises(PortInUse, match=r"another program.*AGENTS_STREAM_BOOTSTRAP_SERVERS"),
    ):
        embedded.start(own)
    assert not embedded.files_of(own).data.exists()


def test_a_port_that_another_kafka_has(own: Settings, broker: BrokerInfo) -> None:
    """A Kafka of somebody else is called by its name."""
    taken = own.model_copy(update={"bootstrap_servers": broker.bootstrap_servers})
    with pytest.raises(PortInUse, match="a Kafka that this data directory did not start"):
        embedded.start(taken)
    seen = embedded.status(taken)
    assert (seen.running, seen.answers, seen.pid) == (False, True, None)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine(own: Settings, host: str) -> None:
    """The embedded broker serves this machine only, and says so."""
    with pytest.raises(BrokerNotStarted, match="this machine only"):
        embedded.start(own.model_copy(update={"bootstrap_servers": f"{host}:9092"}))


def test_a_pid_that_belongs_to_somebody_else_now(own: Settings) -> None:
    """Files left by a dead broker name a living process: it is neither believed nor ended."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        folder = folder_of(own)
        (folder / "broker.pid").write_text(f"{stranger.pid}\n")
        (folder / "broker.address").write_text(own.bootstrap_servers)
        (folder / "broker.lock").touch()
        assert embedded.status(own) == stopped(own)
        assert not embedded.stop(own)
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize(
    "meta",
    [
        None,
        b"",
        b"\xff\xfe\x00garbage",
        META.replace("version=1", "version=7").encode(),
        META.replace("node.id=1", "node.id=2").encode(),
        META.replace("cluster.id=MkU3", "cluster.id=AAAA").encode(),
    ],
    ids=["missing", "empty", "garbage", "version", "other node", "other cluster"],
)
def test_a_corrupt_data_directory(own: Settings, meta: bytes | None) -> None:
    """It is named, nothing in it is touched, and the way out says what it costs."""
    folder = folder_of(own)
    (folder / "cluster.id").write_text("MkU3OEVBNTcwNTJENDM2Qg\n")
    (folder / "data").mkdir()
    (folder / "data" / "session.journal-0").write_text("precious")
    if meta is not None:
        (folder / "data" / "meta.properties").write_bytes(meta)
    with pytest.raises(DataDirectoryCorrupt, match=r"meta\.properties.*every session and timer"):
        embedded.start(own)
    assert (folder / "data" / "session.journal-0").read_text() == "precious"


def test_a_folder_that_cannot_be_written(own: Settings) -> None:
    """DATA_DIR below a file: said with the folder's name and the setting to change."""
    blocked = own.data_dir.parent / "a file"
    blocked.write_text("")
    settings = own.model_copy(update={"data_dir": blocked / "data"})
    with pytest.raises(BrokerNotStarted, match="AGENTS_STREAM_DATA_DIR"):
        embedded.start(settings)
    assert embedded.status(settings).running is False
    assert not embedded.stop(settings)


def test_encryption_is_not_the_embedded_brokers(own: Settings) -> None:
    """Settings for a secured cluster are not silently dropped."""
    with pytest.raises(BrokerNotStarted, match="PLAINTEXT only"):
        embedded.start(own.model_copy(update={"security_protocol": "SASL_SSL"}))


@pytest.mark.kafka
def test_a_broker_that_cannot_prepare_its_data(own: Settings, broker: BrokerInfo) -> None:
    """The words of Kafka's own tool are in the error, and the next start begins afresh."""
    broken = with_java(own, "echo 'the disk is on fire' >&2; exit 1")
    with pytest.raises(BrokerDied, match="the disk is on fire"):
        embedded.start(broken)
    assert not embedded.files_of(own).data.exists()


@pytest.mark.kafka
def test_a_broker_that_dies_at_once(own: Settings, broker: BrokerInfo) -> None:
    """Its last words are in the error, without those of an earlier run, and it comes soon."""
    folder = folder_of(own)
    (folder / "data").mkdir()
    (folder / "data" / "meta.properties").write_text(META)
    (folder / "broker.log").write_text("words of yesterday\n")
    broken = with_java(own, "echo 'no heap today'; echo 'ERROR gone' >> broker.log; exit 1")
    with pytest.raises(BrokerDied, match=r"ERROR gone\n  no heap today") as error:
        embedded.start(broken)
    assert "yesterday" not in str(error.value)
    assert embedded.status(own) == stopped(own)


@pytest.mark.kafka
def test_a_broker_that_never_answers(
    own: Settings, broker: BrokerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G11: start gives up after its limit and leaves no process behind."""
    monkeypatch.setattr(embedded, "START_LIMIT_S", 1.0)
    folder = folder_of(own)
    (folder / "data").mkdir()
    (folder / "data" / "meta.properties").write_text(META)
    with pytest.raises(BrokerNotStarted, match="did not answer"):
        embedded.start(with_java(own, "exec sleep 60"))
    assert embedded.status(own).running is False


@pytest.mark.kafka
def test_the_controllers_port_is_chosen_again(own: Settings, broker: BrokerInfo) -> None:
    """Somebody took the free port between our choice and the broker's: the next attempt works."""
    folder = folder_of(own)
    (folder / "data").mkdir()
    (folder / "data" / "meta.properties").write_text(META)
    address = embedded.address_of(own)
    answer = (
        f"import socket; s = socket.create_server(('127.0.0.1', {address.port}));\n"
        "while True:\n"
        "    c = s.accept()[0]; q = c.recv(99); c.sendall(bytes(4) + q[8:12]); c.close()"
    )
    (folder / "answer.py").write_text(answer)
    settings = with_java(
        own,
        f"""grep quorum.voters server.properties >> ports
[ "$(wc -l < ports)" = 2 ] && exec '{sys.executable}' answer.py
echo 'java.net.BindException: Address already in use'; exit 1""",
    )
    assert embedded.start(settings).started
    first, second = (folder / "ports").read_text().splitlines()
    assert first != second


def test_a_start_that_is_under_way_is_waited_for(
    own: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process starts it, stop waits for its turn, and gives up after its limit."""
    monkeypatch.setattr(broker_process, "TURN_LIMIT_S", 0.3)
    files = embedded.files_of(own)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with broker_process.turn(files):
            entered.set()
            leave.wait(10)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        assert entered.wait(10)
        with pytest.raises(BrokerNotStarted, match="another process has been starting"):
            embedded.stop(own)
        leave.set()
        holding.result()
    assert not embedded.stop(own)
