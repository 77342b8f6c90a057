"""`timers rebuild`: repair the table `sessions`, and with it the timers, from the journal.

Nothing is written while a worker of the group runs: it would not see what is written behind its
back, and its next write would undo it. A repair is two records of the changelog: a tombstone, which
takes away whatever stood there, however high, and the row that the journal gives.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka.errors import KafkaError

from agents_stream.core.errors import BrokerUnreachable, TerminalError
from agents_stream.core.journal import Position
from agents_stream.kafka import ranges
from agents_stream.kafka.appender import Appender, Line, Pending
from agents_stream.kafka.clock import BrokerClock
from agents_stream.kafka.topics import CLOCK, JOURNAL, SESSIONS_CHANGELOG, load_topics
from agents_stream.rebuilding import PartitionRebuild, Repair, Untouched
from agents_stream.settings import Settings
from agents_stream.worker_group import Committed, committed_offsets, member_count

PROGRESS_EVERY: Final = 500
REPAIRS_AT_ONCE: Final = 100
WRITE_LIMIT_S: Final = 60.0

OnProgress = Callable[[int, int], None]


@dataclass(slots=True)
class Plan:
    """What would be written, what is wrong and stays so, and on what it was judged."""

    repairs: list[Repair] = field(default_factory=list)
    untouched: list[Untouched] = field(default_factory=list)
    sessions: int = 0
    entries: int = 0
    not_provable: int = 0
    committed: Committed = field(default_factory=dict)

    def to_json(self, *, written: bool) -> dict[str, Any]:
        """The plan as `timers rebuild --json` prints it."""
        return {
            "sessions": self.sessions,
            "entries": self.entries,
            "repairs": [
                {
                    "sessionId": item.session_id,
                    "partition": item.partition,
                    "why": item.why,
                    "journalOffset": item.journal_offset,
                }
                for item in self.repairs
            ],
            "untouched": [
                {"sessionId": item.session_id, "partition": item.partition, "why": item.why}
                for item in self.untouched
            ],
            "notProvable": self.not_provable,
            "written": written,
        }


async def plan(settings: Settings, on_progress: OnProgress, session: str | None = None) -> Plan:
    """Replay the journal and say which rows are wrong; `partitions` must be the cluster's.

    Raises:
        RetryableError: Kafka cannot be read just now.
        TerminalError: where the workers go on is not known, or a newer version has written here, or
            there is no such session.

    """
    made = Plan(committed=await committed_offsets(settings))
    changelog = load_topics().name(SESSIONS_CHANGELOG, settings.topic_prefix)
    journal = load_topics().name(JOURNAL, settings.topic_prefix)
    numbers = range(settings.partitions)
    named = frozenset(() if session is None else (session,))
    found = session is None
    async with ranges.reader(settings) as client:
        rows = await ranges.bounds(client, [(changelog, number) for number in numbers])
        entries = await ranges.bounds(client, [(journal, number) for number in numbers])
        total = sum(end - begin for begin, end in entries.values())
        for number in numbers:
            here, there = (changelog, number), (journal, number)
            begin, end = entries[there]
            committed = _position(made.committed, there, begin, end)
            part = PartitionRebuild(number, begin, end, committed, named)
            async with aclosing(ranges.read(client, {here: rows[here]})) as lines:
                async for line in lines:
                    if line.key is not None:
                        part.take_row(line.key, line.value)
            part.end_rows()
            async with aclosing(ranges.read(client, {there: entries[there]})) as lines:
                async for line in lines:
                    at = Position(line.topic, line.partition, line.offset, line.timestamp)
                    part.take_entry(line.key or b"", line.value, at)
                    made.entries += 1
                    if made.entries % PROGRESS_EVERY == 0:
                        on_progress(made.entries, total)
            found = found or (session or "").encode() in part.lives
            _judge(made, part, session)
    if not found:
        raise TerminalError(
            f"neither the journal nor the table knows a session {session!r}. Nothing was written"
        )
    return made


def _judge(made: Plan, part: PartitionRebuild, session: str | None) -> None:
    made.sessions += len(part.lives)
    made.not_provable += part.not_provable()
    for verdict in part.verdicts():
        if session is not None and verdict.session_id != session:
            continue
        if isinstance(verdict, Repair):
            made.repairs.append(verdict)
        else:
            made.untouched.append(verdict)


def _position(committed: Committed, place: tuple[str, int], begin: int, end: int) -> int:
    """Where the workers read a partition of the journal on."""
    found = committed.get(place)
    which = f"{place[0]}/{place[1]}"
    if found is None and begin == end:
        return begin  # nothing is there, so nothing was done
    if found is None:
        raise TerminalError(
            f"the workers' group has committed nothing on {which}, so it is not known what has been"
            " done already. Start a worker: if it gets ready it needs no repair"
        )
    if not begin <= found <= end:
        raise TerminalError(
            f"the workers' group is at {found} on {which}, which holds {begin} to {end}: it was"
            " made anew or has lost records, and cannot prove what the table should hold"
        )
    return found


async def require_no_workers(settings: Settings) -> None:
    """Refuse while workers of the group run.

    Raises:
        RetryableError: Kafka cannot be asked just now.
        TerminalError: there are some.

    """
    members = await member_count(settings)
    if members:
        raise TerminalError(
            f"{members} workers of {settings.group_id} are running, and would not see what is"
            " written behind their backs: stop them first (a killed one counts for 6 s). Nothing"
            " was written"
        )


async def write(settings: Settings, made: Plan, on_progress: OnProgress) -> None:
    """Write the repairs and wait for every ack. Written twice they change nothing.

    Raises:
        BrokerUnreachable: Kafka did not take all; running it again completes it.
        TerminalError: a worker runs, or has run since the plan was made.

    """
    await require_no_workers(settings)
    if await committed_offsets(settings) != made.committed:
        raise TerminalError("a worker has been at work meanwhile; nothing was written. Try again")
    clock = BrokerClock()
    appender = Appender(settings, clock)
    done = 0
    try:
        async with asyncio.timeout(WRITE_LIMIT_S):
            await appender.start()
            await _learn_time(settings, appender)
        for index in range(0, len(made.repairs), REPAIRS_AT_ONCE):
            some = made.repairs[index : index + REPAIRS_AT_ONCE]
            async with asyncio.timeout(WRITE_LIMIT_S):
                await appender.append(_lines(settings, some, clock.now_ms()))
            done += len(some)
            on_progress(done, len(made.repairs))
    except (KafkaError, TimeoutError) as error:
        raise BrokerUnreachable(
            f"Kafka took {done} of {len(made.repairs)} repairs ({error!r}). Run it again"
        ) from error
    finally:
        await appender.stop()
    if await member_count(settings):
        raise TerminalError(
            "a worker has started while the repairs were written, and may not have seen them: stop"
            " it and run this again"
        )


async def _learn_time(settings: Settings, appender: Appender) -> None:
    """The changelog's fence goes by the brokers' clock: an ack of `session.clock` tells it."""
    probe = Pending()
    probe.add(load_topics().name(CLOCK, settings.topic_prefix), 0, Line(None, b"{}"))
    await appender.append(probe)


def _lines(settings: Settings, repairs: Sequence[Repair], now_ms: int) -> Pending:
    """For each repair a tombstone, and behind it the row, if there is one."""
    topic = load_topics().name(SESSIONS_CHANGELOG, settings.topic_prefix)
    pending = Pending()
    for repair in repairs:
        pending.add(topic, repair.partition, Line(repair.key, None, (), now_ms))
        if repair.row is not None:
            pending.add(topic, repair.partition, Line(repair.key, repair.row, (), now_ms))
    return pending
