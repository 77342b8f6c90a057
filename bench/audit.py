"""`python -m bench.audit`: how long `audit` takes, and how many bytes sessions and events cost.

The log is written here, not by workers, in so many steps as a conversation has entries: ids and
generations come from the places that Kafka gives to the entries before.
"""

import asyncio
import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson

from agents_stream.audit import audit
from agents_stream.core.actions import encode_action
from agents_stream.core.decider import apply
from agents_stream.core.journal import (
    Durations,
    Entry,
    Position,
    Source,
    decode_entry,
    encode_entry,
)
from agents_stream.core.session import SessionRecord, encode_record
from agents_stream.kafka import embedded, ranges, topic_admin
from agents_stream.kafka.appender import Appender, Line, Pending
from agents_stream.kafka.clock import BrokerClock
from agents_stream.kafka.topics import load_topics, partition_for
from agents_stream.settings import Settings
from tests.conftest import free_port

RESULTS: Final = Path(__file__).parent / "results" / "audit.json"
SESSIONS: Final = 10_000
NOW: Final = Durations(0, 0, 0, 0)
STORY: Final = (
    "session.started",
    "collecting_data.started",
    "customer.message",
    "data.captured",
    "promos.offered",
    "deadline",
    "result",
    "result",
    "customer.message",
    "session.close",
)
SAID: Final = "Hola! Si, me interesa. Mi nombre es Ana Maria y vivo en la Calle 5 # 10-20."


@dataclass
class World:
    """The log as it grows."""

    settings: Settings
    records: dict[str, SessionRecord] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)

    def add(
        self, pending: Pending, topic: str, session: str, value: bytes, *, id_: str = ""
    ) -> None:
        """A record of a topic, in the session's partition."""
        name = load_topics().name(topic, self.settings.topic_prefix)
        place = partition_for(session.encode(), self.settings.partitions)
        headers = (("id", id_.encode()),) if id_ else ()
        stamp = time.time_ns() // 1_000_000 if "changelog" in topic else None
        pending.add(name, place, Line(session.encode(), value, headers, stamp))
        self.counts[topic] += 1
        self.sizes[topic] += len(value)


def entry_of(word: str, session: str, record: SessionRecord | None, number: int) -> Entry:
    """What a word of the story means for a session."""
    ids = {"sessionId": session, "conversationId": f"c-{session}", "workspaceId": "workspace-1"}
    data: dict[str, Any] = ids
    kind: Any = "event"
    match word:
        case "session.started":
            more = {"agentId": "agent-1", "contactId": f"contact-{session}", "mode": "intro"}
            data = {**ids, **more}
        case "customer.message":
            data = {**ids, "messageId": f"wamid.{session}.{number}", "content": SAID}
        case "data.captured":
            told = dict.fromkeys(("nombre", "telefono", "ciudad", "direccion"), "Calle 5 # 10-20")
            data = {"sessionId": session, "data": told}
        case "promos.offered":
            data = {**ids, "packOptions": ["1x", "2x", "3x"]}
        case "session.close":
            data = {"sessionId": session, "reason": "completed"}
        case "deadline":
            assert record is not None
            name, one = next(iter(record.deadlines.items()))
            data = {"sessionId": session, "name": name, "generation": one.generation}
            kind, data = "deadline", {**data, "dueAt": one.due_at_ms}
        case "result":
            assert record is not None
            command = next(iter(record.pending.values()))
            data = {"commandId": command.id, "sessionId": session, "attempt": 1}
            data |= {"status": "succeeded", "tool": command.tool, "outputs": {"id": "order-1"}}
            kind = "result"
    name = {"deadline": "session/deadline", "result": "tool/result"}.get(word, f"agent/{word}")
    topic = {"deadline": "session.deadlines", "result": "tool.results"}.get(word, f"agent.{word}")
    number = number * SESSIONS + int(session.removeprefix("session-"))
    source = Source(topic, 0, number, time.time_ns() // 1_000_000, keyed=True)
    event_id = f"{session}-{number:020d}-evt" if kind == "event" else None
    return Entry(kind, name, session, data, source, NOW, event_id)


async def write(world: World, appender: Appender) -> None:
    """The whole log: every step's entries, then what they lead to."""
    ends: dict[tuple[str, int], int] = {}
    for number, word in enumerate(STORY):
        pending = Pending()
        for index in range(SESSIONS):
            session = f"session-{index:09d}"
            one = entry_of(word, session, world.records.get(session), number)
            world.add(pending, "session.journal", session, encode_entry(one))
        nexts = await appender.append(pending)
        await decide(world, appender, {p: (ends.get(p, 0), end) for p, end in nexts.items()})
        ends = nexts


async def decide(
    world: World, appender: Appender, spans: dict[tuple[str, int], tuple[int, int]]
) -> None:
    """What a stretch of the journal leads to, as the stages publish it."""
    pending = Pending()
    async with ranges.reader(world.settings) as client:
        async for line in ranges.read(client, spans):
            entry = decode_entry(line.value)
            at = Position(line.topic, line.partition, line.offset, line.timestamp)
            decision = apply(world.records.get(entry.session_id), entry, at)
            assert decision.record is not None
            world.records[entry.session_id] = replace(decision.record, outbox={})
            row = encode_record(decision.record)
            world.add(pending, "agents-stream-sessions-changelog", entry.session_id, row)
            for action in decision.actions:
                told = encode_action(action)
                body = told["body"]
                topic = f"tool.{body['tool']}" if told["type"] == "command" else "agent.outcomes"
                raw = orjson.dumps(body)
                world.add(pending, topic, entry.session_id, raw, id_=body["id"])
                whole = {"v": 1, "sessionId": entry.session_id, "offset": at.offset}
                raw = orjson.dumps({**whole, "action": told})
                world.add(pending, "session.actions", entry.session_id, raw)
    await appender.append(pending)


async def run(settings: Settings) -> dict[str, Any]:
    """Write the log, prove it, and give the figures."""
    await topic_admin.apply(settings)
    world = World(settings)
    appender = Appender(settings, BrokerClock())
    await appender.start()
    await write(world, appender)
    await appender.stop()
    started = time.monotonic()
    report = await audit(settings, lambda _done, _total: None)
    seconds = time.monotonic() - started
    assert not report.violation_count, report.violations[0]
    return {
        "journal_entries": report.entries,
        "sessions": report.sessions,
        "audit_s": round(seconds, 1),
        "entries_per_s": round(report.entries / seconds),
        "bytes_per_record": {
            topic: round(world.sizes[topic] / count) for topic, count in world.counts.items()
        },
        "records_per_session": {
            topic: round(count / SESSIONS, 2) for topic, count in world.counts.items()
        },
    }


def main() -> None:
    """Measure on a broker of its own."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            bootstrap_servers=f"127.0.0.1:{free_port()}", data_dir=Path(folder), partitions=8
        )
        embedded.start(settings)
        try:
            figures = asyncio.run(run(settings))
        finally:
            embedded.stop(settings)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
