"""What topics there are: `topics.yaml` as typed values, and what follows from a name.

Nothing here talks to Kafka. The file at the root of the repository is the only definition; a
wheel carries a copy of it inside the package. The names below stand for those that code uses,
so that a misspelt one is an error of the type checker and not a topic that nobody reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import yaml
from aiokafka.partitioner import murmur2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agents_stream.core.errors import TerminalError

SESSION_STARTED: Final = "agent.session.started"
SESSION_UPDATED: Final = "agent.session.updated"
DATA_CAPTURED: Final = "agent.data.captured"
CUSTOMER_MESSAGE: Final = "agent.customer.message"
COLLECTING_DATA_STARTED: Final = "agent.collecting_data.started"
PROMOS_OFFERED: Final = "agent.promos.offered"
PROACTIVE_SEND: Final = "agent.proactive.send"
SESSION_CLOSE: Final = "agent.session.close"
OPERATOR: Final = "agent.operator"
TOOL_RESULTS: Final = "tool.results"
DEADLINES: Final = "session.deadlines"
JOURNAL: Final = "session.journal"
ACTIONS: Final = "session.actions"
WHATSAPP_MESSAGE_SEND: Final = "tool.whatsapp.message.send"
CRM_ORDER_CREATE: Final = "tool.crm.order.create"
OUTCOMES: Final = "agent.outcomes"
DEAD_LETTERS: Final = "agent.dead_letters"
SESSIONS_CHANGELOG: Final = "agents-stream-sessions-changelog"
GATEWAY_MEMORY: Final = "tool.gateway.memory"
CLOCK: Final = "session.clock"

Role = Literal["input", "internal", "output", "changelog"]

_PACKAGED = Path(__file__).parent.parent / "topics.yaml"
_IN_CHECKOUT = Path(__file__).parent.parent.parent / "topics.yaml"


_Value = bool | int | float | str


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9._-]{1,149}$")
    role: Role
    event: str | None = Field(None, pattern=r"^agent/[a-z_.]+$")
    config: dict[str, _Value] = {}


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    defaults: dict[str, _Value]
    roles: dict[Role, dict[str, _Value]]
    topics: list[_Entry] = Field(min_length=1, max_length=200)


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic: its name without prefix, what it is for, its event and its settings."""

    name: str
    role: Role
    event: str | None
    config: Mapping[str, str]


@dataclass(frozen=True)
class Topics:
    """All topics, in the order of `topics.yaml`."""

    specs: tuple[TopicSpec, ...]

    def __getitem__(self, name: str) -> TopicSpec:
        return self._by_name[name]

    def name(self, name: str, prefix: str) -> str:
        """Give the full name in Kafka of the topic `name`, which must be one of ours."""
        return prefix + self[name].name

    def names(self, prefix: str) -> tuple[str, ...]:
        """Give the full names of all topics."""
        return tuple(prefix + spec.name for spec in self.specs)

    def base_of(self, full_name: str, prefix: str) -> str:
        """Give the name without prefix of a topic seen in Kafka.

        Raises:
            KeyError: it is none of ours.

        """
        if not full_name.startswith(prefix):
            raise KeyError(full_name)
        return self[full_name.removeprefix(prefix)].name

    @cached_property
    def inputs(self) -> tuple[TopicSpec, ...]:
        """What ingress reads, in the order in which equal timestamps are applied."""
        return tuple(spec for spec in self.specs if spec.role == "input")

    def rank(self, name: str) -> int:
        """Give the place of the input topic `name` among records of the same millisecond."""
        return self.inputs.index(self[name])

    @cached_property
    def events(self) -> Mapping[str, TopicSpec]:
        """Event name to the topic on which producers publish it."""
        return MappingProxyType({spec.event: spec for spec in self.specs if spec.event})

    def event_of_topic(self, name: str) -> str | None:
        """Give the event that bare data on the topic `name` stands for, or None."""
        return self[name].event

    @cached_property
    def _by_name(self) -> dict[str, TopicSpec]:
        return {spec.name: spec for spec in self.specs}


@cache
def load_topics() -> Topics:
    """Read `topics.yaml`: the copy in an installed package, or the one of this checkout.

    Raises:
        TerminalError: there is none, or it is not what it should be.

    """
    path = _PACKAGED if _PACKAGED.exists() else _IN_CHECKOUT
    try:
        return parse_topics(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TerminalError(
            f"topics.yaml cannot be read ({error}): install the package again"
        ) from error


def parse_topics(text: str) -> Topics:
    """Turn the text of a `topics.yaml` into typed topics.

    Raises:
        TerminalError: the text is no valid definition; the message says where.

    """
    try:
        document = _Document.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        raise TerminalError(f"topics.yaml is not valid: {error}") from error
    specs = tuple(_spec(document, entry) for entry in document.topics)
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TerminalError(f"topics.yaml names a topic twice: {', '.join(twice)}")
    return Topics(specs)


def _spec(document: _Document, entry: _Entry) -> TopicSpec:
    merged = document.defaults | document.roles.get(entry.role, {}) | entry.config
    config = {key: _as_kafka_writes(value) for key, value in merged.items()}
    return TopicSpec(entry.name, entry.role, entry.event, MappingProxyType(config))


def _as_kafka_writes(value: _Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def partition_for(key: bytes, partitions: int) -> int:
    """Give the partition that Java's default partitioner chooses for `key`."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)
