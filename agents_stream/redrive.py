"""Dead letters, read from their topic and sent in again (SPEC §7).

What a letter holds decides what goes out:

    source `agent.*`              the event, as an envelope with the letter's id
    source `session.journal`      `agent/operator.action` retry_command, with the letter's id
    everything else               the record as it was: a result, a deadline, an outcome

The letter's id is `dl:<topic>/<partition>/<offset>` of its source. Sending twice does nothing
twice: a session remembers the ids of its last events; before that, what the journal (or, for a
record as it was, a header on its topic) shows to have been sent is left out. Letters stay on their
topic, so `--all` meets the old ones every time.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from agents_stream.client_turns import Turns
from agents_stream.core.envelope import is_envelope, read_deadline, read_event, read_result
from agents_stream.core.errors import BrokerUnreachable, InvalidEvent, TerminalError
from agents_stream.core.events import OperatorAction
from agents_stream.core.strict_json import dump, parse_object
from agents_stream.dead_letters import Buried, object_of, stretches_since
from agents_stream.kafka import ranges
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import (
    DEADLINES,
    JOURNAL,
    OPERATOR,
    OUTCOMES,
    TOOL_RESULTS,
    load_topics,
    partition_for,
)
from agents_stream.settings import Settings

COMMAND_REASONS: Final = frozenset({"retries_exhausted", "tool_failed", "tool_unknown"})
WEBHOOK_REASON: Final = "webhook_failed"
HEADER: Final = "redriven"
BY: Final = "redrive"

MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
SESSIONS_AT_ONCE: Final = 64
SEND_LIMIT_S: Final = 30.0
STOP_LIMIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Sending:
    """What goes out for a letter. `partition` is None where the key decides.

    `is_event`: it is recognised in the journal by its id; otherwise on its topic by a header.
    """

    letter: Buried
    topic: str
    partition: int | None
    key: bytes | None
    value: bytes
    is_event: bool
    headers: tuple[tuple[str, bytes], ...] = ()

    def place(self, partitions: int) -> tuple[str, int]:
        """The partition that it goes to."""
        number = self.partition
        return self.topic, partition_for(self.key or b"", partitions) if number is None else number


@dataclass(slots=True)
class Plan:
    """What to send, in the order of the records' times; what was sent before; what cannot be."""

    sendings: list[Sending] = field(default_factory=list)
    before: list[Buried] = field(default_factory=list)
    refused: list[tuple[Buried, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Redriven:
    """Where Kafka put what was sent for a letter."""

    id: str
    topic: str
    partition: int
    offset: int
    timestamp: int


def prepare(letter: Buried, settings: Settings, *, force: bool = False) -> Sending:
    """What goes out for a letter.

    With `force`, what would become a dead letter once more goes out too.

    Raises:
        TerminalError: it cannot be sent in again; the message says why.

    """
    try:
        base = load_topics().base_of(letter.source[0], settings.topic_prefix)
    except KeyError:
        raise TerminalError(f"{letter.source[0]} is no topic of this prefix") from None
    if letter.is_cut:
        raise TerminalError(
            "only its beginning was kept (it was too large); the original is at its source, as"
            " long as that topic keeps it"
        )
    if base == JOURNAL:
        return _retry(letter, settings)
    is_event = load_topics().event_of_topic(base) is not None and letter.reason != WEBHOOK_REASON
    try:
        if is_event:
            return _event(letter, base, settings, judged=not force)
        return _as_it_was(letter, base)
    except InvalidEvent as error:
        if force and letter.value is not None:
            topic, partition, _ = letter.source
            return _sending(letter, topic, partition, letter.key, letter.value, is_event=False)
        raise TerminalError(
            f"it is still not valid ({error.reason}: {error.detail}); --force sends it all the same"
        ) from None


def _retry(letter: Buried, settings: Settings) -> Sending:
    """A command that failed for good: ask for its next attempt, with its own id."""
    command = object_of(letter.value)
    command_id, session_id = command.get("id"), command.get("sessionId")
    known = isinstance(command_id, str) and isinstance(session_id, str)
    if letter.reason not in COMMAND_REASONS or not known:
        raise TerminalError("it holds no command that could be retried")
    data = {"sessionId": session_id, "action": "retry_command", "commandId": command_id, "by": BY}
    envelope = {"name": OperatorAction.NAME, "data": data, "id": letter.id}
    topic = load_topics().name(OPERATOR, settings.topic_prefix)
    assert isinstance(session_id, str)
    return _sending(letter, topic, None, session_id.encode(), dump(envelope), is_event=True)


def _event(letter: Buried, base: str, settings: Settings, *, judged: bool) -> Sending:
    """The event in an envelope that has the letter's id, whatever id it had."""
    value = parse_object(letter.value)
    if not is_envelope(value):
        value = {"name": load_topics().event_of_topic(base), "data": value}
    raw = dump({**value, "id": letter.id})
    if judged:
        read_event(None, raw)
    spec = load_topics().events.get(value["name"])
    topic = letter.source[0] if spec is None else settings.topic_prefix + spec.name
    session_id = value["data"].get("sessionId")
    key = session_id.encode() if isinstance(session_id, str) else letter.key
    # A keyed record lies where its producer's partitioner puts the session: all of its events do.
    partition = letter.source[1] if letter.key == key else None
    return _sending(letter, topic, partition, key, raw, is_event=True)


def _as_it_was(letter: Buried, base: str) -> Sending:
    """A record that its readers recognise by what it holds: the same bytes once more."""
    topic, partition, _ = letter.source
    raw = letter.value or b""
    if base in {TOOL_RESULTS, DEADLINES}:
        fact = read_result(raw) if base == TOOL_RESULTS else read_deadline(raw)
        key = fact.session_id.encode()
        stays = base == DEADLINES or letter.key == key
        return _sending(letter, topic, partition if stays else None, key, raw, is_event=False)
    told = parse_object(raw).get("id")
    if not isinstance(told, str):
        raise InvalidEvent("invalid_schema", "it has no `id`")
    is_command = base != OUTCOMES and load_topics().event_of_topic(base) is None
    header = ("idempotency-key" if is_command else "id", told.encode())
    return _sending(letter, topic, partition, letter.key, raw, (header,), is_event=False)


def _sending(
    letter: Buried,
    topic: str,
    partition: int | None,
    key: bytes | None,
    value: bytes,
    headers: tuple[tuple[str, bytes], ...] = (),
    *,
    is_event: bool,
) -> Sending:
    told = (*headers, (HEADER, letter.id.encode()))
    return Sending(letter, topic, partition, key, value, is_event, told)


async def plan(settings: Settings, letters: Sequence[Buried], *, force: bool = False) -> Plan:
    """Sort letters into what to send, what was sent before and what cannot be sent.

    Raises:
        RetryableError: Kafka cannot be read just now.

    """
    made = Plan()
    for letter in letters:
        try:
            made.sendings.append(prepare(letter, settings, force=force))
        except TerminalError as error:
            made.refused.append((letter, str(error)))
    known = await _sent_before(settings, made.sendings)
    made.before = [item.letter for item in made.sendings if item.letter.id in known]
    made.sendings = [item for item in made.sendings if item.letter.id not in known]
    return made


async def _sent_before(settings: Settings, sendings: Sequence[Sending]) -> set[str]:
    """The ids of what was redriven before: events in the journal, all else on its own topic."""
    journal = load_topics().name(JOURNAL, settings.topic_prefix)
    times: dict[tuple[str, int], int] = {}
    for sending in sendings:
        number = partition_for(sending.key or b"", settings.partitions)
        place = (journal, number) if sending.is_event else sending.place(settings.partitions)
        written_at = sending.letter.written_at
        times[place] = min(written_at, times.get(place, written_at))
    if not times:
        return set()
    found: set[str] = set()
    async with ranges.reader(settings) as client:
        stretches = await stretches_since(client, times)
        async with aclosing(ranges.read(client, stretches)) as lines:
            async for line in lines:
                found.update(_redriven_ids(line, in_journal=line.topic == journal))
    return found


def _redriven_ids(line: ConsumerRecord, *, in_journal: bool) -> list[str]:
    if not in_journal:
        return [value.decode(errors="replace") for name, value in line.headers if name == HEADER]
    # Parsing every entry would take most of the time, and nearly none was redriven.
    if line.value is None or b'"id":"dl:' not in line.value:
        return []
    event_id = orjson.loads(line.value)["id"]
    return [event_id] if isinstance(event_id, str) else []


async def send(
    settings: Settings, sendings: Sequence[Sending], on_sent: Callable[[int], None]
) -> list[Redriven]:
    """Send, each session's in order and each after the ack of the one before.

    `on_sent` hears how many are sent.

    Raises:
        BrokerUnreachable: Kafka did not take all; running it again completes it.

    """
    sent: list[Redriven] = []
    lines: dict[bytes, list[Sending]] = {}
    for sending in sendings:
        lines.setdefault(sending.key or b"", []).append(sending)
    producer = AIOKafkaProducer(
        **client_options(settings),
        acks="all",
        enable_idempotence=True,
        max_request_size=MAX_REQUEST_BYTES,
    )
    turns, slots = Turns(), asyncio.Semaphore(SESSIONS_AT_ONCE)

    async def send_line(key: bytes, line: Sequence[Sending]) -> None:
        async with slots, turns.of(key.decode(errors="replace")) as turn:
            for sending in line:
                await turn.wait_for(sending.topic)
                async with asyncio.timeout(SEND_LIMIT_S):
                    sent.append(await _send_one(producer, sending))
                turn.acknowledged(sending.topic)
                on_sent(len(sent))

    tasks: list[asyncio.Task[None]] = []
    try:
        async with asyncio.timeout(SEND_LIMIT_S):
            await producer.start()
        tasks = [asyncio.create_task(send_line(key, line)) for key, line in lines.items()]
        await asyncio.gather(*tasks)
    except (KafkaError, TimeoutError) as error:
        raise BrokerUnreachable(
            f"Kafka took {len(sent)} of {len(sendings)} ({error!r}). Run it again: what was sent is"
            " not sent twice"
        ) from error
    finally:
        for task in tasks:
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_LIMIT_S):
                await producer.stop()
    return sent


async def _send_one(producer: Any, sending: Sending) -> Redriven:
    at = await producer.send_and_wait(
        sending.topic,
        sending.value,
        key=sending.key,
        partition=sending.partition,
        headers=list(sending.headers),
    )
    return Redriven(sending.letter.id, at.topic, at.partition, at.offset, at.timestamp)
