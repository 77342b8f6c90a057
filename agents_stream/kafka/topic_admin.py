"""Create the topics, and compare what the cluster has with what `topics.yaml` asks for.

`apply` only creates. It never changes a topic that exists: fewer days of retention or another
timestamp type is a decision about data, which a person takes. `check` names every difference, and
for each whether a guarantee hangs on it; a worker refuses to start on those.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from agents_stream.core.errors import BrokerUnreachable, TerminalError
from agents_stream.kafka.connection import client_options, require_broker
from agents_stream.kafka.topics import TopicSpec, load_topics
from agents_stream.settings import Settings

log = structlog.get_logger()

REQUEST_TIMEOUT_MS: Final = 20_000
LEADER_WAIT_S: Final = 20.0
_POLL_S: Final = 0.05
_UNKNOWN_TOPIC: Final = 3
_SAFE_REPLICAS: Final = 3
# An unused group's offsets live for 7 days (Kafka's default). What is kept for a shorter time may
# be gone before the worker that was away comes back to the offset that it had reached.
RETENTION_FLOOR_MS: Final = 7 * 86_400_000

MISSING: Final = "topic"
PARTITIONS: Final = "partitions"
REPLICATION: Final = "replication"
# Guarantees hang on these, whatever is there instead: G3 to G5 on the timestamps, G1 and G9 on the
# rest.
_ESSENTIAL: Final = frozenset(
    {
        MISSING,
        PARTITIONS,
        "cleanup.policy",
        "message.timestamp.type",
        "message.timestamp.before.max.ms",
    }
)
# On these only a smaller value does harm: a larger one keeps more, or takes more in.
_ESSENTIAL_IF_LESS: Final = frozenset({"max.message.bytes", "min.compaction.lag.ms"})


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which the cluster is not what `topics.yaml` asks for.

    `topic` is the name in Kafka, `setting` Kafka's name of the setting, or `topic` (missing),
    `partitions` or `replication`. A worker refuses to start if `breaks_guarantee`.
    """

    topic: str
    setting: str
    expected: str
    actual: str
    breaks_guarantee: bool

    @property
    def sentence(self) -> str:
        """Say it to a person, with what to do."""
        if self.setting == MISSING:
            return f"{self.topic} is missing: run `agents-stream topics apply`"
        tail = ": no worker starts on it" if self.breaks_guarantee else ""
        return f"{self.topic}: {self.setting} is {self.actual}, should be {self.expected}{tail}"


async def apply(settings: Settings) -> list[str]:
    """Create what is missing and wait until it can be used. Safe to run twice, and at once.

    Returns:
        The full names of the topics that this call created, in the order of `topics.yaml`.

    Raises:
        BrokerUnreachable: Kafka does not answer.
        TerminalError: Kafka refused to create a topic; the message says why.

    """
    specs = load_topics().specs
    names = [settings.topic_prefix + spec.name for spec in specs]
    async with _admin(settings) as admin:
        described = await _describe(admin, names)
        missing = [spec for spec, name in zip(specs, names, strict=True) if name not in described]
        created = await _create(admin, settings, missing) if missing else []
        await _wait_for_leaders(admin, names)
    if created:
        log.info("topics_created", topics=created, partitions=settings.partitions)
    return created


async def check(settings: Settings) -> list[Difference]:
    """Compare the cluster with `topics.yaml` and the settings.

    Raises:
        BrokerUnreachable: Kafka does not answer.

    """
    specs = {settings.topic_prefix + spec.name: spec for spec in load_topics().specs}
    async with _admin(settings) as admin:
        described = await _describe(admin, list(specs))
        configs = await _configs(admin, [name for name in specs if name in described])
    differences: list[Difference] = []
    for name, spec in specs.items():
        if name in described and name in configs:
            differences += _shape(name, described[name], settings)
            differences += _settings(name, expected_config(spec, settings), configs[name])
        else:
            differences.append(Difference(name, MISSING, "there", "missing", breaks_guarantee=True))
    return differences


async def read_configs(settings: Settings, names: list[str]) -> dict[str, dict[str, str]]:
    """Give the settings that topics have now, by their full names.

    Raises:
        BrokerUnreachable: Kafka does not answer.
        TerminalError: Kafka does not show them.

    """
    async with _admin(settings) as admin:
        return await _configs(admin, names)


def expected_config(spec: TopicSpec, settings: Settings) -> dict[str, str]:
    """Give the settings that the topic should have on a cluster of this replication.

    With three replicas or more, two must have a record before it counts as written: then the loss
    of one broker loses nothing that was acknowledged, and stops nothing.
    """
    in_sync = 2 if settings.replication >= _SAFE_REPLICAS else 1
    return {**spec.config, "min.insync.replicas": str(in_sync)}


@asynccontextmanager
async def _admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    await require_broker(settings)
    admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        await admin.start()
        yield admin
    except (KafkaError, OSError) as error:
        if isinstance(error, KafkaError) and not error.retriable:
            raise TerminalError(f"Kafka at {settings.bootstrap_servers}: {error!r}") from error
        raise BrokerUnreachable(
            f"Kafka at {settings.bootstrap_servers} does not answer any more: {error!r}"
        ) from error
    finally:
        await admin.close()


async def _describe(
    admin: AIOKafkaAdminClient, names: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """Give the partitions of those of `names` that exist.

    Asks for all topics: a question for one that is missing would create it, with the settings of
    nobody, on a cluster that allows it (`auto.create.topics.enable`, Kafka's default).
    """
    described = {one["topic"]: one for one in await admin.describe_topics()}
    return {name: described[name]["partitions"] for name in names if name in described}


async def _configs(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, str]] = {}
    for response in await admin.describe_configs(resources):
        for code, message, _type, name, entries in (one[:5] for one in response.resources):
            if code == _UNKNOWN_TOPIC:
                continue
            if code:
                raise TerminalError(f"Kafka does not show the settings of {name}: {message}")
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found


async def _create(
    admin: AIOKafkaAdminClient, settings: Settings, missing: list[TopicSpec]
) -> list[str]:
    wanted = [
        NewTopic(
            settings.topic_prefix + spec.name,
            settings.partitions,
            settings.replication,
            topic_configs=expected_config(spec, settings),
        )
        for spec in missing
    ]
    created: list[str] = []
    refused: list[str] = []
    forbidden: list[str] = []
    response = await admin.create_topics(wanted, timeout_ms=REQUEST_TIMEOUT_MS)
    for name, code, message in response.topic_errors:
        if code == 0:
            created.append(name)
        elif code == TopicAuthorizationFailedError.errno:
            forbidden.append(name)
        elif code != TopicAlreadyExistsError.errno:  # somebody else was quicker: all is well
            refused.append(f"{name}: {for_code(code).__name__}: {message}")
    if forbidden:
        raise TerminalError(
            f"Kafka does not let {settings.sasl_username or 'us'!r} create {len(forbidden)} topics"
            f" ({forbidden[0]}, ...): docs/operations.md lists the rights that are needed"
        )
    if refused:
        raise TerminalError("Kafka refused to create topics: " + "; ".join(refused))
    order = [topic.name for topic in wanted]
    return sorted(created, key=order.index)


async def _wait_for_leaders(admin: AIOKafkaAdminClient, names: list[str]) -> None:
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + LEADER_WAIT_S
    while True:
        described = await _describe(admin, names)
        led = [
            name
            for name, partitions in described.items()
            if all(one["error_code"] == 0 and one["leader"] >= 0 for one in partitions)
        ]
        if len(led) == len(names):
            return
        if loop.time() > give_up_at:
            waiting = sorted(set(names) - set(led))
            raise TerminalError(
                f"no broker leads {', '.join(waiting)} after {LEADER_WAIT_S:g} s:"
                " is a broker of the cluster down?"
            )
        await asyncio.sleep(_POLL_S)


def _shape(name: str, partitions: list[dict[str, Any]], settings: Settings) -> list[Difference]:
    differences = []
    if len(partitions) != settings.partitions:
        differences.append(_difference(name, PARTITIONS, settings.partitions, len(partitions)))
    replicas = min(len(one["replicas"]) for one in partitions)
    if replicas < settings.replication:
        differences.append(_difference(name, REPLICATION, settings.replication, replicas))
    return differences


def _settings(
    name: str, expected: Mapping[str, str], actual: Mapping[str, str]
) -> list[Difference]:
    return [
        _difference(name, setting, value, actual.get(setting, "unknown to this broker"))
        for setting, value in expected.items()
        if not _same(value, actual.get(setting))
    ]


def _same(expected: str, actual: str | None) -> bool:
    if actual is None:
        return False
    return expected == actual or set(expected.split(",")) == set(actual.split(","))


def _difference(name: str, setting: str, expected: object, actual: object) -> Difference:
    return Difference(
        name,
        setting,
        str(expected),
        str(actual),
        breaks_guarantee=breaks_guarantee(setting, str(expected), str(actual)),
    )


def breaks_guarantee(setting: str, expected: str, actual: str) -> bool:
    """Say whether `actual` in place of `expected` would break a promise of SPEC §6."""
    if setting in _ESSENTIAL:
        return True
    if setting in _ESSENTIAL_IF_LESS:
        return not actual.isdigit() or int(actual) < int(expected)
    if setting == "retention.ms":
        kept_ms = float("inf") if actual == "-1" else float(actual)
        asked_ms = float("inf") if expected == "-1" else float(expected)
        return kept_ms < min(asked_ms, RETENTION_FLOOR_MS)
    return setting == "retention.bytes"
