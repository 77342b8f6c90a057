"""What a commit remembers of the ground it was made on, and what follows where that has changed.

An offset means nothing by itself: a topic that was deleted and made anew, and a log that lost its
tail and was written on, have other records at the same offsets. So with every offset the group
commits a *mark* (Kafka keeps a string for us): the id of the topic, the leader epoch of the record
below the offset, the number of partitions, and the ids of the topics on which the group's own
state stands. Kafka forgets a topic's offsets when it is deleted; the ids in the marks of the others
still tell which topic it was.

What may live here: pure judgement. Who asks Kafka is `ground.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import orjson

from agents_stream.kafka.survey import NO_EPOCH

_SCHEMA: Final = 1


class Change(StrEnum):
    """What has happened to a partition since the group committed on it."""

    MADE_ANEW = "made_anew"
    TAIL_LOST = "tail_lost"
    DELETED_UNREAD = "deleted_unread"
    FORGOTTEN = "forgotten"


@dataclass(frozen=True, slots=True)
class Mark:
    """What stands beside a committed offset. `known`: full topic name → topic id."""

    topic_id: str
    epoch: int
    partitions: int
    known: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> str:
        """As Kafka keeps it."""
        line = {
            "v": _SCHEMA,
            "id": self.topic_id,
            "epoch": self.epoch,
            "of": self.partitions,
            "known": dict(self.known),
        }
        return orjson.dumps(line).decode()


def decode_mark(text: str | None) -> Mark | None:
    """Read a mark; None where there is none, or none that we can read (an older version's)."""
    if not text:
        return None
    try:
        line = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    match line:
        case {
            "v": 1,
            "id": str(topic_id),
            "epoch": int(epoch),
            "of": int(partitions),
            "known": dict(known),
        }:
            return Mark(topic_id, epoch, partitions, known)
    return None


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of one partition when a group begins on it.

    `committed` is None without an offset, `mark` what stood beside it. `topic_id` is that of the
    topic now, `remembered_id` that of the topic when others' marks were written, `epoch_end` where
    the mark's leader epoch ended, as the leader says now. None where nobody knows.
    """

    committed: int | None
    beginning: int
    end: int
    mark: Mark | None = None
    topic_id: str | None = None
    remembered_id: str | None = None
    epoch_end: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where to begin, and what happened. `lost`: how many offsets are gone that nobody read.

    `epoch` is that of the record below `start`, where it is known.
    """

    start: int
    change: Change | None = None
    lost: int = 0
    epoch: int = NO_EPOCH


def judge(found: Found) -> Verdict:
    """Say where a group must begin so that it skips nothing that is there."""
    mark = found.mark
    remembered = found.remembered_id if mark is None else mark.topic_id
    if None not in {remembered, found.topic_id} and remembered != found.topic_id:
        return Verdict(found.beginning, Change.MADE_ANEW)
    if found.committed is None:
        return Verdict(found.beginning, Change.FORGOTTEN)
    epoch = NO_EPOCH if mark is None else mark.epoch
    if found.epoch_end is not None and found.epoch_end < found.committed:
        # Exact: the records from there on, if any, are others than those that were read.
        return Verdict(max(found.epoch_end, found.beginning), Change.TAIL_LOST, epoch=epoch)
    if found.committed > found.end:
        return Verdict(found.beginning, Change.TAIL_LOST)
    if found.committed < found.beginning:
        lost = found.beginning - found.committed
        return Verdict(found.beginning, Change.DELETED_UNREAD, lost)
    return Verdict(found.committed, epoch=epoch)
