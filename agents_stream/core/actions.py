"""What is owed to the outside: the reducer decides actions, the effects stage performs them.

An action's id is a hash of its session and its cause, so that the same cause gives the same id
through crashes and replays (G6). Order within a decision is part of the identity.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

OWN_EVENT_PREFIX = "agents-stream:"


@dataclass(frozen=True, slots=True)
class IssueCommand:
    """Ask a tool to act: one attempt of a command, on the tool's topic."""

    command: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PublishEvent:
    """Publish an event of our own to its topic, as an envelope with an id.

    `partition` is where the session's events arrive, or None for its key's own.
    """

    envelope: Mapping[str, Any]
    partition: int | None


@dataclass(frozen=True, slots=True)
class PublishOutcome:
    """Say how a flow ended, on `agent.outcomes`."""

    outcome: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BuryDeadLetter:
    """Put what could not be performed into `agent.dead_letters`."""

    letter: Mapping[str, Any]


Action: TypeAlias = IssueCommand | PublishEvent | PublishOutcome | BuryDeadLetter


def derive_id(session_id: str, timestamp: int, offset: int, index: int) -> str:
    """The id of action `index` of the decision on a journal entry. 128 bits, as hex."""
    cause = f"{session_id}\x00{timestamp}\x00{offset}\x00{index}"
    return hashlib.sha256(cause.encode()).hexdigest()[:32]


def encode_action(action: Action) -> dict[str, Any]:
    """The action as a JSON object, for `session.actions` and the outbox."""
    match action:
        case IssueCommand(command):
            return {"type": "command", "body": command}
        case PublishEvent(envelope, partition):
            return {"type": "event", "body": envelope, "partition": partition}
        case PublishOutcome(outcome):
            return {"type": "outcome", "body": outcome}
        case BuryDeadLetter(letter):
            return {"type": "dead_letter", "body": letter}


def decode_action(line: Mapping[str, Any]) -> Action:
    """Read an action back.

    Raises:
        ValueError: the type is unknown; a newer worker wrote it, upgrade this one.

    """
    body = line["body"]
    match line["type"]:
        case "command":
            return IssueCommand(body)
        case "event":
            return PublishEvent(body, line["partition"])
        case "outcome":
            return PublishOutcome(body)
        case "dead_letter":
            return BuryDeadLetter(body)
        case other:
            raise ValueError(f"an action of type {other!r} is unknown here: upgrade this worker")
