"""One checker per guarantee of SPEC §6. Each yields what it finds broken.

They look at logs and at the tools' books, and at what customers know that they sent; where they
need to know what had to be decided, they replay the journal with the decider (G8 says they may),
and prove from outside what they can: that each field sent is in the state, that each message asked
for went out once, that who answered in time was not treated as silent.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson

from agents_stream.core.actions import OWN_EVENT_PREFIX
from agents_stream.core.message_ids import dedup_key
from agents_stream.kafka.topics import (
    ACTIONS,
    DEAD_LETTERS,
    OUTCOMES,
    PROMOS_OFFERED,
    load_topics,
)
from tests.simulation.customers import POISON, Told
from tests.simulation.history import Applied, History
from tests.simulation.outside import (
    TOOL_TOPICS,
    orders_exist,
    performed_once,
    same_ids,
    sent_once,
    told_events_are_in_the_state,
)
from tests.simulation.plan import SHORT_MEMORY

Checker = Callable[[History], Iterator[str]]
_ANSWERED: Final = ("data_collection.reply", "promos.reply")
_KNOWN_ENDS: Final = re.compile(
    r"killed|stopped|the lights go out|worker stopped while it was starting"
    r"|Kafka refused a record of the table as too old|.*KafkaTimeoutError|BrokerUnreachable"
    # Asleep between the question for the offsets and that for the ends, in its first generation.
    r"|the group agents-stream has no committed offset on session.actions"
    r"|a stage did not finish its batch within|the worker did not stop within|watchdog: "
)
BACK_S: Final = 45.0


def lost(history: History) -> Iterator[str]:
    """G1: what is in an input is applied or in the dead letters, and all that it owes is out."""
    letters = {letter.get("id") for letter in history.values(DEAD_LETTERS)}
    journalled = {
        (one.source.topic, one.source.partition, one.source.offset)
        for entries in history.applied.values()
        for one in entries
    }
    for place, record in history.inputs.items():
        if record.at_ms > history.world.drained_ms:
            continue  # the workers were being stopped
        buried = "dl:{}/{}/{}".format(*place) in letters
        if buried == (place in journalled):
            yield f"G1: {place} is {'in both' if buried else 'neither applied nor buried'}"
    for session, entries in history.applied.items():
        final, last = history.final.get(session), entries[-1]
        if last.decision.record is None:
            continue
        if final is None or final.journal_offset < last.offset:
            at = None if final is None else final.journal_offset
            yield f"G1: {session} stands at {at}, its journal at {last.offset}"
    yield from _published(history)


def _published(history: History) -> Iterator[str]:
    """Each action decided is on `session.actions` and on its own topic, and nothing else is."""
    owed = {
        orjson.dumps([session, one.offset, action])
        for session, entries in history.applied.items()
        for one in entries
        for action in one.actions
    }
    out = {
        orjson.dumps([line["sessionId"], line["offset"], line["action"]])
        for line in history.values(ACTIONS)
    }
    for line in sorted(owed - out):
        yield f"G1: decided and never published: {line.decode()[:200]}"
    for line in sorted(out - owed):
        yield f"G6: published and never decided: {line.decode()[:200]}"
    topics = (*TOOL_TOPICS, OUTCOMES, PROMOS_OFFERED, DEAD_LETTERS)
    performed = {orjson.dumps(value) for topic in topics for value in history.values(topic)}
    for line in sorted(owed):
        if orjson.dumps(orjson.loads(line)[2]["body"]) not in performed:
            yield f"G1: owed and never out: {line.decode()[:200]}"


def written_before_done(history: History) -> Iterator[str]:
    """G1: an action is published only when the record that owes it is in the changelog."""
    told_without_record = {
        (session, one.offset)
        for session, entries in history.applied.items()
        for one in entries
        if one.decision.record is None
    }
    for line in history.world.cluster.records(ACTIONS):
        action = orjson.loads(line.value or b"{}")
        if (action["sessionId"], action["offset"]) in told_without_record:
            continue
        rows = history.rows[action["sessionId"]]
        if not any(
            record.journal_offset >= action["offset"] and row.at_ms <= line.at_ms
            for row, record in rows
        ):
            yield f"G1: {action['sessionId']} acted at {action['offset']} before it was written"


def applied_twice(history: History) -> Iterator[str]:
    """G2: no source record, no id and no message counts twice."""
    for session, entries in history.applied.items():
        places: Counter[object] = Counter()
        keys: Counter[object] = Counter()
        for one in entries:
            if one.entry.kind == "event" and one.first and one.decision.record is not None:
                source = one.entry.source
                places[source.topic, source.partition, source.offset] += 1
                if history.world.plan.shape.remembered_ids > SHORT_MEMORY or _is_ours(one):
                    keys[dedup_key(one.entry) or object()] += 1
        for what, count in (places + keys).items():
            if count > 1:
                yield f"G2: {session} applied {what} {count} times"


def _is_ours(one: Applied) -> bool:
    return (one.entry.event_id or "").startswith(OWN_EVENT_PREFIX)


def deadlines_end_once(history: History) -> Iterator[str]:
    """G3: an armed deadline stands, or was ended by one entry, once; in the end none stands."""
    for session, entries in history.applied.items():
        ends: Counter[object] = Counter()
        for one in entries:
            after = one.decision.record
            before = {} if one.before is None else one.before.deadlines
            standing = {} if after is None else after.deadlines
            gone = {
                (name, at.generation)
                for name, at in before.items()
                if name not in standing or standing[name].generation != at.generation
            }
            ended = [(end.name, end.generation) for end in one.decision.ended]
            ends.update(ended)
            if one.entry.kind == "deadline" and one.before is not None:
                named, generation = one.entry.data["name"], one.entry.data["generation"]
                stands = before.get(named)
                stale = stands is None or stands.generation != generation
                if one.first and stale != ("stale_deadline" in one.decision.reasons):
                    yield f"G3: {session} at {one.offset}: {named}/{generation} was not stale"
            if set(ended) != gone:
                yield f"G3: {session} at {one.offset}: {gone} went, {ended} were told"
        for what, count in ends.items():
            if count > 1:
                yield f"G3: {session}: {what} ended {count} times"
        if (final := history.final.get(session)) is not None and final.deadlines:
            yield f"G3: {session} still waits for {dict(final.deadlines)}"


def fired(history: History) -> Iterator[tuple[str, Applied, Any]]:
    """Every deadline that fired because its time had come."""
    for session, entries in history.applied.items():
        for one in entries:
            for end in one.decision.ended:
                if end.end == "fired" and one.entry.kind == "deadline":
                    yield session, one, end


def never_early(history: History) -> Iterator[str]:
    """G4: fired at or after its due time; and the due time is what the arming entry makes it."""
    slack = max(history.world.plan.shape.skews_ms) + 1
    for session, one, end in fired(history):
        if one.source.timestamp < end.due_at_ms or one.source.at_ms < end.due_at_ms - slack:
            yield f"G4: {session}: {end.name} fired {end.due_at_ms - one.source.timestamp} ms early"
        armed = next((e for e in history.applied[session] if e.offset == end.generation), None)
        span_ms = _span_ms(history, end.name)
        if armed is None:
            yield f"G3: {session}: {end} was armed by nothing"
        elif (
            span_ms is not None
            and armed.entry.kind == "event"  # else it counts from the firing (SPEC §4)
            and armed.source.timestamp + span_ms != end.due_at_ms
        ):
            yield f"G4: {session}: {end} was armed for another time by {armed.entry.name}"


def _span_ms(history: History, name: str) -> int | None:
    """How long a deadline is armed for; None for a retry's."""
    shape = history.world.plan.shape
    spans = {
        "data_collection.reply": shape.data_reply_ms,
        "data_collection.promos": shape.promos_delay_ms,
        "promos.reply": shape.promos_reply_ms,
    }
    return spans.get(name)


def answers_win(history: History) -> Iterator[str]:
    """G5: who answered before the due time, and after the question, is not treated as silent."""
    answers: dict[str, list[Any]] = defaultdict(list)
    known: set[tuple[str, str]] = set()
    for told in history.world.customers.told:
        for partition, offset in told.offsets:
            record = history.inputs.get((told.topic, partition, offset))
            if record is None or told.topic != "agent.customer.message":
                continue
            key = _identity(record.value)
            if key is None or (told.session, key) in known:
                continue
            known.add((told.session, key))
            if record.key is not None:
                answers[told.session].append(record)
    slack = history.tolerance_ms
    for session, _, end in fired(history):
        if end.name not in _ANSWERED:
            continue
        armed = next(e for e in history.applied[session] if e.offset == end.generation)
        for answer in answers[session]:
            after = answer.at_ms >= armed.source.at_ms + slack
            if after and answer.timestamp < end.due_at_ms - slack + 1:
                by = end.due_at_ms - answer.timestamp
                yield f"G5: {session} answered {by} ms before {end.name} fired all the same"


def _identity(value: bytes | None) -> str | None:
    """How a customer's message is recognised; None if the value is none."""
    try:
        envelope = orjson.loads(value or b"")
        return str(envelope.get("id") or envelope["data"]["messageId"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def in_order(history: History) -> Iterator[str]:
    """SPEC §2 and G5: what came a millisecond later is applied later, across topics."""
    for session, entries in history.applied.items():
        latest: dict[int, float] = {}
        for one in entries:
            if not one.counts or not one.entry.source.keyed:
                continue
            number, at_ms = one.source.partition, one.source.at_ms
            if at_ms < latest.get(number, 0.0) - history.tolerance_ms:
                by = latest[number] - at_ms
                yield f"G5: {session}: {one.entry.name} was applied {by:.1f} ms too late"
            latest[number] = max(latest.get(number, 0.0), at_ms)


def in_exact_order(history: History) -> Iterator[str]:
    """SPEC §2: (timestamp, rank, offset), where the brokers' clocks agree."""
    if history.world.plan.shape.spread_ms:
        return
    ranks = {spec.name: rank for rank, spec in enumerate(load_topics().inputs)}
    for session, entries in history.applied.items():
        latest: dict[int, tuple[int, int, int]] = {}
        for one in entries:
            source = one.entry.source
            if one.counts and source.keyed:
                key = (source.timestamp, ranks[source.topic], source.offset)
                if key < latest.get(source.partition, key):
                    yield f"G5: {session}: {one.entry.name} at {key} after {latest}"
                latest[source.partition] = max(key, latest.get(source.partition, key))


def nothing_is_left(history: History) -> Iterator[str]:
    """G11: in the end no command waits for a result, a retry or a resume."""
    for session, record in history.final.items():
        for command in record.pending.values():
            if command.state in {"awaiting", "retrying", "held"}:
                yield f"G11: {session} still has a command that is {command.state}"


def records_are_replays(history: History) -> Iterator[str]:
    """G8: every row ever written is the replay of the journal up to its place, but the outbox."""
    for what in history.differing:
        yield f"G8: the record of {what} is not the replay"


def nothing_undone(history: History) -> Iterator[str]:
    """G9: no row of the changelog is older than one before it: nobody wrote over a successor."""
    for session, rows in history.rows.items():
        highest = (-1, -1)
        for stored, record in rows:
            position = (record.journal_timestamp, record.journal_offset)
            if position < highest:
                yield f"G9: {stored.by} wrote {session} at {position}, after {highest}"
            highest = max(highest, position)


def bad_input_is_buried(history: History) -> Iterator[str]:
    """G10: what is none of ours is in the dead letters, once it counts; what kills too."""
    letters = history.values(DEAD_LETTERS)
    reasons = {letter.get("id"): letter["reason"] for letter in letters}
    for told in history.world.customers.told:
        for partition, offset in told.offsets:
            if told.step.what == "bad":
                yield from _not_buried(told, reasons, f"dl:{told.topic}/{partition}/{offset}")
    poisoned = {
        told.session for told in history.world.customers.told if told.step.what == "poison"
    } - {told.session for told in history.world.customers.told if told.step.what == "close"}
    failed = {letter["key"] for letter in letters if letter["reason"] == "reducer_error"}
    for session in sorted(poisoned - failed):
        yield f"G10: {session} had an event on which the decision fails, and no letter says so"
    for entries in history.applied.values():
        for one in entries:
            if one.decision.crash is not None and one.entry.data.get("content") != POISON:
                yield f"G10: the decision failed: {one.decision.crash!r}"


def _not_buried(told: Told, reasons: dict[Any, Any], letter_id: str) -> Iterator[str]:
    if not str(reasons.get(letter_id)).startswith(("invalid", "unknown")):
        yield f"G10: {told.value!r} is not in the dead letters"


def nobody_ends_without_cause(history: History) -> Iterator[str]:
    """G11: a process ends for a known cause, and in calm weather not at all."""
    world = history.world
    for host in [*world.workers, *world.gateways]:
        for at_s, reason in host.ends:
            if _KNOWN_ENDS.match(reason) is None:
                yield f"G11: {host.name} ended: {reason}"
            elif at_s > world.calm_since + BACK_S and not reason.startswith(("stopped", "the li")):
                yield f"G11: {host.name} ended in calm weather: {reason}"


CHECKERS: Final[tuple[Checker, ...]] = (
    lost,
    written_before_done,
    told_events_are_in_the_state,
    applied_twice,
    sent_once,
    deadlines_end_once,
    never_early,
    answers_win,
    in_order,
    in_exact_order,
    nothing_is_left,
    same_ids,
    performed_once,
    orders_exist,
    records_are_replays,
    nothing_undone,
    bad_input_is_buried,
    nobody_ends_without_cause,
)


def check(history: History) -> list[str]:
    """Everything that does not hold."""
    return [found for checker in CHECKERS for found in checker(history)]
