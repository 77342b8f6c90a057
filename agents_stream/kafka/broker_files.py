"""The files and the command line of the embedded broker, all below `DATA_DIR/kafka`.

One KRaft node that is broker and controller, made for a machine with two cores that it shares:
few threads, a small heap, no waiting for a rebalance. What is written here is written anew at each
start, so that an upgrade changes it; only `data/` is kept.
"""

import base64
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents_stream.core.errors import TerminalError

NODE_ID: Final = 1
HEAP: Final = ("-Xms64m", "-Xmx512m")
LOG_NAME: Final = "broker.log"
LOGGING_NAME: Final = "log4j2.properties"
PROPERTIES_NAME: Final = "server.properties"
DATA_NAME: Final = "data"
FORMATTING_NAME: Final = "data.formatting"
LOG_FILE_SIZE: Final = "10MB"
LOG_FILES: Final = 3
# Options that were set for other Java programs, such as a heap of 8 GB, are not for this one.
_JAVA_VARIABLES: Final = frozenset({"JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS"})
_CLUSTER_ID: Final = re.compile(r"[A-Za-z0-9_-]{22}")


class DataDirectoryCorrupt(TerminalError):  # noqa: N818 - it says what was found
    """The broker's data cannot be used. The message says which file and what to do."""


@dataclass(frozen=True, slots=True)
class Address:
    """Host and port, written as Kafka's clients and settings write them."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read `HOST:PORT` or `[IPV6]:PORT`."""
        host, _, port = text.strip().rpartition(":")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class BrokerFiles:
    """Where everything of one embedded broker is."""

    folder: Path

    @property
    def data(self) -> Path:
        """Kafka's own `log.dirs`."""
        return self.folder / DATA_NAME

    @property
    def formatting(self) -> Path:
        """Where a new data directory is made; it becomes `data` when it is complete."""
        return self.folder / FORMATTING_NAME

    @property
    def meta(self) -> Path:
        """What Kafka wrote about itself when the data directory was formatted."""
        return self.data / "meta.properties"

    @property
    def cluster_id(self) -> Path:
        """The id of the cluster that was formatted here: tells a foreign data directory."""
        return self.folder / "cluster.id"

    @property
    def properties(self) -> Path:
        """The broker's settings."""
        return self.folder / PROPERTIES_NAME

    @property
    def logging(self) -> Path:
        """The settings of its log."""
        return self.folder / LOGGING_NAME

    @property
    def log(self) -> Path:
        """What the broker logs."""
        return self.folder / LOG_NAME

    @property
    def output(self) -> Path:
        """What the Java machine prints, above all why it could not start."""
        return self.folder / "broker.out"

    @property
    def alive(self) -> Path:
        """A file that is locked for as long as the broker's process lives."""
        return self.folder / "broker.lock"

    @property
    def starting(self) -> Path:
        """A file that is locked while one process starts or stops the broker."""
        return self.folder / "start.lock"

    @property
    def pid(self) -> Path:
        """The broker's process id; means something only while `alive` is locked."""
        return self.folder / "broker.pid"

    @property
    def address(self) -> Path:
        """The address at which the running broker listens."""
        return self.folder / "broker.address"


def server_properties(address: Address, controller_port: int, data: str) -> str:
    """Give the broker's settings; each that is not Kafka's default has its reason.

    `data` is relative to the broker's folder, in which it runs: a path with a comma or an accent
    means nothing else in a properties file.
    """
    return f"""\
# Written by agents_stream at each start of the broker: changes made here are lost.
process.roles=broker,controller
node.id={NODE_ID}
# The voter is named here and not in the data, so that its port may be another one each time.
controller.quorum.voters={NODE_ID}@127.0.0.1:{controller_port}
listeners=PLAINTEXT://{address},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://{address}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}

# One node: nothing can have a second replica.
default.replication.factor=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# Few groups need few partitions: each costs files and start time.
offsets.topic.num.partitions=8
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=4

# A topic that nobody defined is a mistake: topics.yaml is the only definition.
auto.create.topics.enable=false
# Topics set their own limit; the broker's is above the largest.
message.max.bytes=67108864
# The first member of a group starts at once.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=6000
# A group that is away keeps its offsets as long as the inputs keep their records: 30 days.
offsets.retention.minutes=43200

# Two cores, shared with the workers and tools.
num.network.threads=2
num.io.threads=4
num.recovery.threads.per.data.dir=2
group.coordinator.threads=1
background.threads=2
# 2 MiB instead of 10 MiB reserved for each index file, of which a partition has two.
log.index.size.max.bytes=2097152
log.cleaner.dedupe.buffer.size=16777216
# A quiet broker writes a record of nothing twice a second otherwise.
metadata.max.idle.interval.ms=5000
# After a kill -9 the controller waits until it takes the old broker for dead: 4 s instead of 9 s.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=1000
# JMX beans that nobody reads.
metric.reporters=
"""


def logging_properties() -> str:
    """Give the settings of the broker's log: bounded files, what matters and no more."""
    return f"""\
status=error
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={LOG_NAME}
appender.file.filePattern={LOG_NAME}.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{{ISO8601}} %-5p %m (%c{{1}})%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size={LOG_FILE_SIZE}
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max={LOG_FILES}
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
# Several pages of settings, and several lines for each partition, at each start.
logger.settings.name=org.apache.kafka.common.config.AbstractConfig
logger.settings.level=warn
logger.state.name=state.change.logger
logger.state.level=warn
logger.partition.name=kafka.cluster.Partition
logger.partition.level=warn
logger.replication.name=org.apache.kafka.controller.ReplicationControlManager
logger.replication.level=warn
logger.change.name=org.apache.kafka.controller.PartitionChangeBuilder
logger.change.level=warn
logger.log.name=org.apache.kafka.storage.internals.log.LogManager
logger.log.level=warn
logger.unified.name=org.apache.kafka.storage.internals.log.UnifiedLog
logger.unified.level=warn
"""


def java_command(java: Path, jars: list[Path], main: list[str]) -> list[str]:
    """Give the command that runs one of Kafka's main classes, in the broker's folder."""
    return [
        str(java),
        *HEAP,
        # One collector thread and the quick compiler: 60 MB less, and at full load from the first
        # second; the thorough compiler takes four times the CPU for ten seconds to save a third
        # later.
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        # Figures for jstat, at times written while a disk is slow and everybody waits.
        "-XX:-UsePerfData",
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={LOGGING_NAME}",
        "-cp",
        os.pathsep.join(str(jar) for jar in jars),
        *main,
    ]


def java_environment() -> dict[str, str]:
    """Give the environment for Java: ours, and a locale in which it can read any file name."""
    kept = {name: value for name, value in os.environ.items() if name not in _JAVA_VARIABLES}
    return {**kept, "LC_ALL": "C.UTF-8"}


def new_cluster_id() -> str:
    """Make an id as `kafka-storage random-uuid` does: 16 random bytes that start with no dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")
        if not text.startswith("-"):
            return text


def is_formatted(files: BrokerFiles) -> bool:
    """Say whether there is data to go on with, after a look at whether it can be.

    Raises:
        DataDirectoryCorrupt: there is something, but no broker of ours can use it.

    """
    if not files.data.exists() or not any(files.data.iterdir()):
        return False
    meta = _read_meta(files)
    cluster_id = meta.get("cluster.id", "")
    if meta.get("version") != "1" or not _CLUSTER_ID.fullmatch(cluster_id):
        raise _corrupt(files, f"{files.meta} is damaged")
    if meta.get("node.id") != str(NODE_ID):
        raise _corrupt(files, f"{files.meta} is that of another node ({meta.get('node.id')})")
    remembered = files.cluster_id.read_text("ascii").strip() if files.cluster_id.exists() else ""
    if remembered and remembered != cluster_id:
        reason = f"{files.meta} is of cluster {cluster_id}, formatted here was {remembered}"
        raise _corrupt(files, reason)
    if not remembered:
        files.cluster_id.write_text(cluster_id + "\n", "ascii")
    return True


def _read_meta(files: BrokerFiles) -> dict[str, str]:
    try:
        lines = files.meta.read_text("utf-8").splitlines()
    except FileNotFoundError as error:
        raise _corrupt(files, f"{files.data} holds data but no meta.properties") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _corrupt(files, f"{files.meta} cannot be read: {error}") from error
    pairs = (line.partition("=") for line in lines if not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _corrupt(files: BrokerFiles, reason: str) -> DataDirectoryCorrupt:
    return DataDirectoryCorrupt(
        f"the data of the embedded Kafka cannot be used: {reason}. Put {files.data} back from a"
        f" copy; or, to start with nothing, move {files.folder} away: every session and timer in"
        " it is then gone"
    )
