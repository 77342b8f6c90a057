"""The hardened Faust engine: one app whose settings and subclasses close the holes of FAUST.md.

What Faust gives: the agents and their streams, the consumer group with its assignor (all topics
of a partition number on one worker, and who owns what), the table and its changelog. What is
replaced, and why, stands at the top of `consumer.py`, `appender.py` and `recovery.py`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import faust
from yarl import URL

from agents_stream.kafka import topics as names
from agents_stream.kafka.appender import Appender
from agents_stream.kafka.clock import BrokerClock
from agents_stream.kafka.consumer import BatchConsumer, BatchTransport
from agents_stream.kafka.fail_stop import (
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    Watchdog,
    fail_stop,
)
from agents_stream.kafka.ground import Ground
from agents_stream.kafka.in_loop_thread import (
    HEARTBEAT_MS,
    REBALANCE_TIMEOUT_MS,
    SESSION_TIMEOUT_MS,
)
from agents_stream.kafka.membership import Membership
from agents_stream.kafka.recovery import SessionTableManager
from agents_stream.kafka.table import SessionTable
from agents_stream.settings import Settings

COMMIT_INTERVAL_S: Final = 0.25
SILENT_MS: Final = 45_000
"""The clock is probed every 20 s where nothing else is appended: longer means no Kafka."""
MAX_BACKLOG_BYTES: Final = 8 * 1024 * 1024
# The topics on which the group's own state stands: every mark says which they were.
REMEMBERED: Final = (names.JOURNAL, names.ACTIONS, names.SESSIONS_CHANGELOG)


class Stage(Protocol):
    """What the engine asks of a stage: a lock that it holds while it works on a batch."""

    lock: asyncio.Lock


@dataclass(slots=True)
class Engine:
    """What the parts of one worker share. Built by `app.py`, used by the Faust subclasses."""

    settings: Settings
    clock: BrokerClock = field(default_factory=BrokerClock)
    membership: Membership = field(init=False)
    watchdog: Watchdog = field(default_factory=Watchdog)
    stages: list[Stage] = field(default_factory=list)
    revoke_hooks: list[Callable[[], None]] = field(default_factory=list)
    assign_hooks: list[Callable[[int], Awaitable[None]]] = field(default_factory=list)
    owed_hooks: list[Callable[[int], Awaitable[None]]] = field(default_factory=list)
    max_backlog_bytes: int = MAX_BACKLOG_BYTES
    journal_again: dict[int, int] = field(default_factory=dict)
    sessions_appender: Appender = field(init=False)
    ground: Ground = field(init=False)

    def __post_init__(self) -> None:
        self.membership = Membership(self.clock)
        self.sessions_appender = Appender(self.settings, self.clock, self.watchdog)
        self.watchdog.code_of = self._blame
        specs = names.load_topics().specs
        self.ground = Ground(
            self.settings,
            (self.topic(spec.name) for spec in specs),
            (self.topic(name) for name in REMEMBERED),
            fail_stop,
        )

    def _blame(self) -> int:
        """Give the exit code where something stands still: 3 if Kafka says nothing."""
        return EXIT_UNREACHABLE if self.clock.age_ms() > SILENT_MS else EXIT_REFUSED

    def fence_timestamp(self) -> int:
        """The stamp of a changelog record now: see `membership.py`."""
        proven = self.membership.proven_stamp_ms
        if proven is None:
            fail_stop("a changelog record was to be written without a proven membership")
        return proven

    def topic(self, name: str) -> str:
        """The full name of one of our topics."""
        return names.load_topics().name(name, self.settings.topic_prefix)

    def on_revoked(self) -> None:
        """The partitions are gone: whatever was derived from them goes too."""
        self.membership.forget()
        for hook in self.revoke_hooks:
            hook()

    async def publish_owed(self, partition: int) -> None:
        """Let every record of a partition publish again what it still owes: actions were lost."""
        for hook in self.owed_hooks:
            await hook(partition)


def create_app(engine: Engine) -> faust.App:
    """A Faust app with our consumer, table and recovery, and with nothing else of Faust's on."""
    settings = engine.settings
    app = faust.App(
        settings.group_id,
        broker=[URL(f"kafka://{server}") for server in settings.bootstrap_servers.split(",")],
        store="memory://",
        Table=SessionTable,
        TableManager=SessionTableManager,
        web_enabled=False,
        canonical_url=URL(settings.public_url),
        datadir=str(settings.data_dir / "faust"),
        processing_guarantee="at_least_once",
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication,
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        stream_wait_empty=True,
        stream_publish_on_commit=False,
        producer_acks=-1,
        broker_commit_interval=COMMIT_INTERVAL_S,
        broker_session_timeout=SESSION_TIMEOUT_MS / 1_000,
        broker_heartbeat_interval=HEARTBEAT_MS / 1_000,
        broker_rebalance_timeout=REBALANCE_TIMEOUT_MS / 1_000,
        consumer_auto_offset_reset="earliest",
    )
    transport = BatchTransport(app.conf.broker_consumer, app)
    transport.engine = engine
    app.transport = transport
    # Faust's producer would connect in its own way, without our credentials, to send nothing.
    app.boot_strategy.enable_kafka_producer = False
    app.engine = engine  # type: ignore[attr-defined] # for table and recovery
    quiet_faust()
    return app


def quiet_faust() -> None:
    """Raise the loggers' levels: Faust formats three debug records a message for nobody."""
    for name in ("faust", "mode", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # aiokafka logs an error at each try while a broker is away; we say it once, when we give up.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def consumer_of(app: Any) -> BatchConsumer:
    """The consumer of a started app."""
    consumer = app.consumer
    assert isinstance(consumer, BatchConsumer)
    return consumer
