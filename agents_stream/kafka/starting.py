"""Where a worker begins after a rebalance, and what it says and does where the ground has changed.

The rule: what is lost is said, loudly and once; what can be made again is made again; and where
going on would be a loss that nobody has been asked about, the worker refuses.

- An **input** that was made anew or lost its tail is read from where it is another one. What was
  applied is known by `seen`: a lower offset with a later time is new.
- Where the **journal** lost entries, its sources are read again from that time on: each record
  knows what it has applied of them. Deleted on purpose, the worker asks first.
- Where **actions** were lost, every record says again what it still owes.
- Where the **changelog** lost records, the journal is read again from before them (recovery finds
  out). Deleted, the worker refuses: made again from the journal, every action ever decided on would
  go out a second time.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from agents_stream.core.journal import decode_entry
from agents_stream.kafka import metrics
from agents_stream.kafka import topics as names
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.fail_stop import fail_stop
from agents_stream.kafka.ground import Finding
from agents_stream.kafka.marks import Change, Verdict
from agents_stream.kafka.survey import NO_EPOCH

if TYPE_CHECKING:
    from agents_stream.kafka.engine import Engine

log = structlog.get_logger()

# A pass of the sessions stage writes records of at most 1,000 entries, in any order.
JOURNAL_AGAIN: Final = 10_000
# How far brokers' clocks may disagree, and more.
SOURCES_AGAIN_MS: Final = 600_000
_READ_MS: Final = 5_000

LOSSES: Final = frozenset({Change.MADE_ANEW, Change.TAIL_LOST, Change.DELETED_UNREAD})


class Starts:
    """Decides on what was found; one per seek. `owing`: partitions whose records owe again."""

    def __init__(self, engine: "Engine", findings: Mapping[TopicPartition, Finding]) -> None:
        self._engine = engine
        self._findings = findings
        self._journal = engine.topic(names.JOURNAL)
        self._actions = engine.topic(names.ACTIONS)
        self.verdicts: dict[TopicPartition, Verdict] = {}
        self.owing: set[int] = set()
        self.sources_lost: dict[int, int] = {}

    def decide(self) -> None:
        """Decide on every partition, or end the process."""
        for tp, finding in self._findings.items():
            if words := other_partitions(finding, tp.topic, self._engine.settings.partitions):
                fail_stop(words)
            verdict = finding.verdict
            if tp.topic == self._actions:
                verdict = self._decide_actions(tp, finding)
            elif tp.topic == self._journal:
                verdict = self._decide_journal(tp, finding)
            tell(self._engine.settings.topic_prefix, tp, finding)
            self.verdicts[tp] = verdict

    def _decide_actions(self, tp: TopicPartition, finding: Finding) -> Verdict:
        found, verdict = finding.found, finding.verdict
        start_from = self._engine.settings.start_from
        match verdict.change:
            case Change.FORGOTTEN if found.beginning < found.end:
                if start_from is None:
                    fail_stop(_forgotten(self._engine.settings.group_id, tp.topic))
                return self._as_told(finding)
            case Change.MADE_ANEW:
                if start_from is None:
                    fail_stop(_actions_anew(tp.topic))
                self.owing.add(tp.partition)
                return self._as_told(finding)
            case Change.TAIL_LOST:
                self.owing.add(tp.partition)
                # Without a mark nobody knows from where on they are others. What lies below the
                # end has been published, but for what came after the loss: that is owed again.
                exact = found.epoch_end is not None
                return verdict if exact else replace(verdict, start=found.end)
            case Change.DELETED_UNREAD:
                self.owing.add(tp.partition)
        return verdict

    def _as_told(self, finding: Finding) -> Verdict:
        latest = self._engine.settings.start_from == "latest"
        start = finding.found.end if latest else finding.found.beginning
        return replace(finding.verdict, start=start)

    def _decide_journal(self, tp: TopicPartition, finding: Finding) -> Verdict:
        verdict = finding.verdict
        if verdict.change is Change.MADE_ANEW and self._engine.settings.start_from is None:
            fail_stop(_journal_anew(tp.topic))
        if verdict.change in LOSSES:
            self.owing.add(tp.partition)
            self.sources_lost[tp.partition] = verdict.start
        again = self._engine.journal_again.get(tp.partition)
        if again is None:
            return verdict
        start = max(min(verdict.start, again), finding.found.beginning)
        return replace(verdict, start=start, epoch=NO_EPOCH)

    async def rewind_sources(self, consumer: Any) -> None:
        """Where the journal lost entries, read their sources again: `seen` knows the others."""
        for partition, journal_start in self.sources_lost.items():
            since_ms = await self._since_ms(TopicPartition(self._journal, partition), journal_start)
            inputs = [
                tp
                for tp in self.verdicts
                if tp.partition == partition and tp.topic not in {self._journal, self._actions}
            ]
            found: Mapping[TopicPartition, Any] = (
                await consumer.offsets_for_times(dict.fromkeys(inputs, since_ms)) if inputs else {}
            )
            for tp in inputs:
                first = found.get(tp)
                if first is not None and first.offset < self.verdicts[tp].start:
                    self.verdicts[tp] = Verdict(first.offset, self.verdicts[tp].change)
            log.warning(
                "the inputs are read again, since the journal lost entries",
                partition=partition,
                since_ms=since_ms,
            )

    async def _since_ms(self, tp: TopicPartition, journal_start: int) -> int:
        """No entry that was lost has a source stamped earlier than this."""
        if journal_start <= self._findings[tp].found.beginning:
            return 0
        reader = AIOKafkaConsumer(
            **client_options(self._engine.settings),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await reader.start()
        try:
            reader.assign([tp])
            reader.seek(tp, journal_start - 1)
            fetched = await reader.getmany(tp, timeout_ms=_READ_MS, max_records=1)
        finally:
            await reader.stop()
        records = fetched.get(tp, [])
        if not records or records[0].value is None:
            return 0
        return max(0, decode_entry(records[0].value).source.timestamp - SOURCES_AGAIN_MS)


def other_partitions(finding: Finding, topic: str, partitions: int) -> str | None:
    """Words for a group that worked with another number of partitions before, else None."""
    mark = finding.found.mark
    if mark is None or mark.partitions == partitions:
        return None
    return (
        f"this group worked with {mark.partitions} partitions, and AGENTS_STREAM_PARTITIONS is "
        f"{partitions} now ({topic}). A session would move away from its journal and its record, "
        f"and begin again without them. Set it back to {mark.partitions}; if partitions were added "
        'to the topics, see docs/operations.md, "Partitions were added"'
    )


def tell(prefix: str, tp: TopicPartition, finding: Finding) -> None:
    """Say loudly what has changed, and count it."""
    found, verdict = finding.found, finding.verdict
    if verdict.change is None:
        return
    if verdict.change is Change.FORGOTTEN and found.beginning == found.end:
        return  # a first start
    base = names.load_topics().base_of(tp.topic, prefix)
    metrics.GROUND_CHANGES.labels(topic=base, change=verdict.change).inc()
    if verdict.lost:
        metrics.RECORDS_LOST.labels(topic=base).inc(verdict.lost)
    say = log.warning if verdict.change is Change.FORGOTTEN else log.error
    say(
        _WORDS[verdict.change],
        topic=tp.topic,
        partition=tp.partition,
        committed=found.committed,
        beginning=found.beginning,
        end=found.end,
        start=verdict.start,
        gone=max(0, (found.committed or 0) - verdict.start),
        lost=verdict.lost,
    )


_WORDS: Final[Mapping[Change, str]] = {
    Change.FORGOTTEN: (
        "the group has no offset on a topic that is not empty: a first start, a topic that is new, "
        "or offsets that Kafka forgot. It is read from its beginning; what was applied is known"
    ),
    Change.MADE_ANEW: (
        "a topic was deleted and made anew: what it held and nobody had read is lost. It is read "
        "from its beginning"
    ),
    Change.TAIL_LOST: (
        "a broker lost the end of a topic that Kafka had acknowledged. It is read again from where "
        "it is another one; what only the lost end held is lost"
    ),
    Change.DELETED_UNREAD: (
        "RECORDS WERE LOST: Kafka deleted them before they were read. The group was away for "
        "longer than the topic's retention, or somebody deleted them"
    ),
}


def _forgotten(group: str, topic: str) -> str:
    return (
        f"the group {group} has no committed offset on {topic}, which is not "
        "empty: Kafka forgets a group that was away for a week. Going on from the beginning "
        "would ask the tools for everything again. Say where to begin with "
        "AGENTS_STREAM_START_FROM=earliest or latest"
    )


def _actions_anew(topic: str) -> str:
    return (
        f"{topic} was deleted and made anew. Actions that it held and that were not yet published "
        "are gone. AGENTS_STREAM_START_FROM=earliest, for one start, goes on: every session "
        "publishes again what it still owes (same ids), the rest is lost. Look at "
        "`agents-stream audit` first"
    )


def _journal_anew(topic: str) -> str:
    return (
        f"{topic} was deleted and made anew: the history of every session is gone, and entries "
        "that were not yet applied with it. Restore it if you have a copy. "
        "AGENTS_STREAM_START_FROM=earliest, for one start, goes on without: the sessions keep "
        "their records, and all inputs that Kafka still has are read again (what was applied is "
        "known and not applied twice); timeline and audit cannot see what was before"
    )


def changelog_anew(topic: str) -> str:
    """Words for a table that is gone."""
    return (
        f"{topic} was deleted and made anew: the records of all sessions, with their deadlines, "
        "are gone. A worker that went on would know no session. Restore the topic from a copy, or "
        "make it again from the journal: `agents-stream timers rebuild` while no worker runs. Then "
        "start with AGENTS_STREAM_START_FROM=latest, for one start. Nothing was written"
    )
