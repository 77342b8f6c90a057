"""The ground that a group of ours stands on: which cluster, which making of each topic.

One `Ground` per process. It puts a mark beside every committed offset (`marks.py`), finds out where
a group must begin, guards the fetches (`fetch_guard.py`) and looks again every few seconds. What it
finds it says; whether that is the end of the process is its owner's to decide.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from agents_stream.kafka.fetch_guard import FetchGuard, GroundChanged, another_cluster, made_anew
from agents_stream.kafka.marks import Found, Mark, Verdict, decode_mark, judge
from agents_stream.kafka.survey import NO_EPOCH, Place, Survey, Surveyor
from agents_stream.settings import Settings

LOOK_EVERY_S: Final = 5.0
# A broker that has just come up may not know a topic for a moment.
_MISSING_LOOKS: Final = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One partition as the group finds it, and what follows."""

    found: Found
    verdict: Verdict


class Ground:
    """See the module. `topics` are watched, `remembered` stand in every mark; full names."""

    def __init__(
        self,
        settings: Settings,
        topics: Iterable[str],
        remembered: Iterable[str],
        changed: Callable[[str], None],
        held: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._settings = settings
        self._topics = tuple(topics)
        self._remembered = tuple(remembered)
        self._changed = changed
        self._surveyor = Surveyor(settings)
        self._missing = 0
        self.guard = FetchGuard(self._surveyor, changed, held)
        self.survey: Survey | None = None
        self.written: dict[Place, tuple[int, int]] = {}

    async def start(self) -> None:
        """Connect and look for the first time.

        Raises:
            KafkaError: no broker answers.

        """
        await self._surveyor.start()
        self.survey = await self._surveyor.look(self._topics)

    async def stop(self) -> None:
        """Disconnect."""
        await self._surveyor.stop()

    def incarnation(self, topic: str) -> str:
        """What only this making of this topic on this cluster is called."""
        if self.survey is None:
            return "unknown"
        return f"{self.survey.cluster_id}/{self.survey.topic_id(topic)}"

    def mark(self, place: Place, offset: int) -> str:
        """What is committed beside an offset; empty before the first look."""
        mark = self._mark_of(place[0], self._epoch_of(place, offset))
        return "" if mark is None else mark.encode()

    def is_current(self, mark: Mark | None, topic: str) -> bool:
        """Whether a mark would be written today as it is, but for the epoch."""
        today = self._mark_of(topic, NO_EPOCH if mark is None else mark.epoch)
        return mark == today

    def _mark_of(self, topic: str, epoch: int) -> Mark | None:
        if self.survey is None or (topic_id := self.survey.topic_id(topic)) is None:
            return None
        known = {name: self.survey.topic_id(name) or "" for name in self._remembered}
        return Mark(topic_id, epoch, self._settings.partitions, known)

    def _epoch_of(self, place: Place, offset: int) -> int:
        if place in self.written:
            return self.written[place][0]
        return self.guard.epoch_below(place, offset)

    # -- where to begin ---------------------------------------------------------------------

    async def find(
        self, consumer: Any, tps: Iterable[TopicPartition]
    ) -> dict[TopicPartition, Finding]:
        """Say for each partition what its group finds there. `consumer` is aiokafka's, joined."""
        wanted = list(tps)
        if not wanted:
            return {}
        await self.refresh()
        committed: Mapping[TopicPartition, OffsetAndMetadata] = {
            tp: meta
            for tp, meta in (
                await consumer._coordinator.fetch_committed_offsets(wanted)  # noqa: SLF001
            ).items()
            if meta.offset >= 0
        }
        marks = {tp: decode_mark(meta.metadata) for tp, meta in committed.items()}
        remembered = _remembered(marks.values())
        ends = await self._epoch_ends(marks)
        beginnings, log_ends = (
            await consumer.beginning_offsets(wanted),
            await consumer.end_offsets(wanted),
        )
        findings = {}
        for tp in wanted:
            found = Found(
                committed=committed[tp].offset if tp in committed else None,
                beginning=beginnings[tp],
                end=log_ends[tp],
                mark=marks.get(tp),
                topic_id=None if self.survey is None else self.survey.topic_id(tp.topic),
                remembered_id=remembered.get(tp.topic) or None,
                epoch_end=ends.get((tp.topic, tp.partition)),
            )
            findings[tp] = Finding(found, judge(found))
        return findings

    async def _epoch_ends(self, marks: Mapping[TopicPartition, Mark | None]) -> dict[Place, int]:
        if self.survey is None:
            return {}
        asked = {
            (tp.topic, tp.partition): mark.epoch
            for tp, mark in marks.items()
            if mark is not None
            and mark.epoch != NO_EPOCH
            and mark.topic_id == self.survey.topic_id(tp.topic)
        }
        return await self._surveyor.epoch_ends(asked) if asked else {}

    def begin(self, starts: Mapping[TopicPartition, Verdict]) -> None:
        """The group begins there: guard what is read from now on."""
        survey = self.survey
        if survey is None:
            return
        ids = {tp.topic: survey.topic_id(tp.topic) or "" for tp in starts}
        epochs = {(tp.topic, tp.partition): verdict.epoch for tp, verdict in starts.items()}
        self.guard.begin(ids, epochs, survey.cluster_id)

    def writes(self, place: Place, next_offset: int) -> None:
        """We alone write this partition from now on, and it ends there."""
        survey = self.survey
        self.written[place] = (NO_EPOCH if survey is None else survey.epoch(place), next_offset)

    def wrote(self, topic: str, partition: int, next_offset: int) -> None:
        """Kafka has acknowledged what we wrote up to there."""
        if (known := self.written.get((topic, partition))) is not None:
            self.written[topic, partition] = (known[0], next_offset)

    def forget(self, topic: str, partition: int) -> None:
        """The partition is gone: what was known of it is another's to know."""
        self.written.pop((topic, partition), None)

    # -- looking again ----------------------------------------------------------------------

    async def refresh(self) -> None:
        """Look, and compare with the first time.

        Raises:
            GroundChanged: it is another cluster, or a topic is another one, or has more partitions.

        """
        if self.survey is None:
            return
        before = dict(self.written)
        seen = await self._surveyor.look(self._topics)
        if words := difference(self.survey, seen, self._settings.partitions):
            raise GroundChanged(words)
        missing = sorted(set(self.survey.topics) - set(seen.topics))
        self._missing = self._missing + 1 if missing else 0
        if self._missing >= _MISSING_LOOKS:
            raise GroundChanged(_deleted(missing))
        if not missing:
            await self._verify_written(seen, before)
            self.survey = seen

    async def explain(self) -> str | None:
        """Say why partitions may have been given out unevenly, if the topics are the cause."""
        if self.survey is None:
            return None
        try:
            seen = await self._surveyor.look(self._topics)
        except KafkaError as error:
            return f"the topics could not be looked at: {error}"
        if missing := sorted(set(self.survey.topics) - set(seen.topics)):
            return _deleted(missing)
        return difference(self.survey, seen, self._settings.partitions)

    async def _verify_written(self, seen: Survey, before: Mapping[Place, tuple[int, int]]) -> None:
        """Where another leader took over what we write, has it all that was acknowledged.

        `before` is what had been acknowledged when we began to look. The end that counts is that of
        the new leader's part: what we have written to him since stands behind the earlier one's
        end, and the appender has seen that it came behind all that we had written.
        """
        risen = {
            place: seen.epoch(place)
            for place, (epoch, _) in before.items()
            if epoch not in {NO_EPOCH, seen.epoch(place)}
        }
        ends = await self._surveyor.epoch_ends(risen) if risen else {}
        for place, end in ends.items():
            epoch, acknowledged = before[place]
            if place not in self.written or self.written[place][0] != epoch:
                continue
            if end < acknowledged:
                raise GroundChanged(
                    f"{place[0]}/{place[1]} lost its tail: {acknowledged - end} records "
                    "that Kafka had acknowledged are gone. A restart makes them again"
                )
            self.written[place] = (risen[place], self.written[place][1])

    async def watch(self) -> None:
        """Look every few seconds, for ever; tell the owner once if something has changed.

        Raises:
            KafkaError: no broker answers for longer than a question may take.

        """
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.refresh()
            except GroundChanged as error:
                self._changed(str(error))
                return


def _remembered(marks: Iterable[Mark | None]) -> dict[str, str]:
    """What the marks say of topics; all are written together, so the first one that knows."""
    known: dict[str, str] = {}
    for mark in marks:
        if mark is not None:
            known = {**mark.known, **known}
    return known


def _deleted(topics: list[str]) -> str:
    return (
        f"{', '.join(topics)} was deleted. What it held is gone. Restore it, or make it anew with "
        "`agents-stream topics apply`: at its restart this process says what follows from that"
    )


def difference(before: Survey, now: Survey, partitions: int) -> str | None:
    """Say in words how the ground differs, if it does. A topic that is missing is no difference."""
    if before.cluster_id != now.cluster_id:
        return another_cluster(before.cluster_id, now.cluster_id)
    for topic, seen in now.topics.items():
        first = before.topics.get(topic)
        if first is not None and first.topic_id != seen.topic_id:
            return made_anew(topic)
        if len(seen.epochs) != partitions:
            return (
                f"{topic} has {len(seen.epochs)} partitions now, should be {partitions}: somebody "
                "added some. A session would move away from its journal and its record, so this "
                'process ends and does not start on it. See docs/operations.md, "Partitions were '
                'added"'
            )
    return None
