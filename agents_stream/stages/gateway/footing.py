"""Where a group of the gateway begins after a rebalance, where the ground has changed under it.

A command that was performed is never read again without the memory of it (G6), and one that was
not is never skipped in silence.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from agents_stream.core.errors import TerminalError
from agents_stream.kafka.committed import heed_coordinator
from agents_stream.kafka.fetch_guard import GroundChanged
from agents_stream.kafka.ground import Finding, Ground
from agents_stream.kafka.marks import Change, Verdict
from agents_stream.kafka.starting import other_partitions, tell
from agents_stream.kafka.topics import GATEWAY_MEMORY, load_topics
from agents_stream.settings import Settings

log = structlog.get_logger()


class Footing:
    """What one member of a group knows of the ground, and where it began on it."""

    def __init__(
        self,
        settings: Settings,
        group: str,
        topics: tuple[str, ...],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._settings = settings
        self._group = group
        self._failed = failed
        self._settled = asyncio.Event()
        # Offsets that are to be committed again, so that all marks agree.
        self.unmarked: dict[TopicPartition, int] = {}
        ours = (*topics, load_topics().name(GATEWAY_MEMORY, settings.topic_prefix))
        self.ground = Ground(settings, ours, ours, self._changed, self._settled.wait)

    async def start(self) -> None:
        """Connect, and look for the first time."""
        await self.ground.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self.ground.stop()

    def guard(self, consumer: AIOKafkaConsumer) -> None:
        """Look at each of its fetches, and hold them back until `settle`.

        So aiokafka's reset is only for partitions without an offset: out of range ends us.
        """
        heed_coordinator(consumer)
        self.ground.guard.watch(consumer)

    async def settle(self, consumer: AIOKafkaConsumer, assigned: Iterable[TopicPartition]) -> bool:
        """Go to where each partition begins, and let the fetches go; False if that cannot be."""
        try:
            findings = await self.ground.find(consumer, assigned)
            verdicts = decide(self._settings, self.ground, self._group, findings)
        except GroundChanged as error:
            self._changed(str(error))
            return False
        except (TerminalError, KafkaError) as error:
            self._failed(error)
            return False
        self.unmarked = {}
        for tp, verdict in verdicts.items():
            found = findings[tp].found
            if verdict.change is Change.FORGOTTEN:
                continue  # where it begins `START_FROM` says
            if verdict.start != found.committed:
                consumer.seek(tp, verdict.start)
            if verdict.start != found.committed or not self.ground.is_current(found.mark, tp.topic):
                self.unmarked[tp] = verdict.start
        self.ground.begin(verdicts)
        self._settled.set()
        return True

    def leave(self) -> None:
        """The partitions are gone; the next fetch waits for the next `settle`."""
        self._settled.clear()

    def marked(self, offsets: Mapping[TopicPartition, int]) -> dict[Any, OffsetAndMetadata]:
        """What is committed: each offset with its mark."""
        return {
            tp: OffsetAndMetadata(offset, self.ground.mark((tp.topic, tp.partition), offset))
            for tp, offset in offsets.items()
        }

    async def watch(self) -> None:
        """Look again every few seconds, for ever; a broker that is away is another's to notice."""
        while True:
            try:
                await self.ground.watch()
            except KafkaError as error:
                log.warning("topics_not_looked_at", group=self._group, error=repr(error))

    def _changed(self, words: str) -> None:
        self._failed(TerminalError(words))


def decide(
    settings: Settings, ground: Ground, group: str, findings: Mapping[TopicPartition, Finding]
) -> dict[TopicPartition, Verdict]:
    """Say where each partition begins, and what is to be known of it.

    Raises:
        TerminalError: going on would do things twice or skip them; the message says what to do.

    """
    verdicts = {}
    for tp, finding in findings.items():
        if words := other_partitions(finding, tp.topic, settings.partitions):
            raise TerminalError(words)
        _refuse_lost_memory(settings, ground, finding)
        verdict = finding.verdict
        if verdict.change is Change.TAIL_LOST and finding.found.epoch_end is None:
            verdict = _as_told(settings, group, tp, finding)
        if verdict.change is not Change.FORGOTTEN:  # then `starting.py` has asked already
            tell(settings.topic_prefix, tp, finding)
        verdicts[tp] = verdict
    return verdicts


def _refuse_lost_memory(settings: Settings, ground: Ground, finding: Finding) -> None:
    mark, survey = finding.found.mark, ground.survey
    if mark is None or survey is None or settings.start_from is not None:
        return
    memory = load_topics().name(GATEWAY_MEMORY, settings.topic_prefix)
    known = mark.known.get(memory)
    if known and known != survey.topic_id(memory):
        raise TerminalError(
            f"{memory} was deleted and made anew: the gateway no longer knows which commands it "
            "has performed. Those that it had in hand would be performed again. Say for this one "
            "start: AGENTS_STREAM_START_FROM=earliest goes on (what was under way may be done "
            "twice; tools that know the idempotency key do not), or restore the topic"
        )


def _as_told(settings: Settings, group: str, tp: TopicPartition, finding: Finding) -> Verdict:
    """The topic ends before the group's offset, and no mark says from where on it is another."""
    if settings.start_from is None:
        raise TerminalError(
            f"{tp.topic}/{tp.partition} ends before the offset of the group {group}: it was made "
            "anew, or a broker lost its tail. Say where to go on, for this one start: "
            "AGENTS_STREAM_START_FROM=earliest performs again what the gateway's memory has "
            "forgotten, AGENTS_STREAM_START_FROM=latest performs only what comes from now on"
        )
    found = finding.found
    start = found.end if settings.start_from == "latest" else found.beginning
    return replace(finding.verdict, start=start)
