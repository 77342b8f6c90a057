"""The guarantees of the decider, for whatever may happen in whatever order.

One checker for each guarantee, and one story-teller for all of them: what happens is drawn as lines
of a transcript (see `transcript.py`), so that a failure prints a story to read.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from agents_stream.core.actions import encode_action
from agents_stream.core.decider import Decision
from agents_stream.core.journal import Entry, Position, decode_entry
from agents_stream.core.session import SessionRecord
from tests.core.telling import TEXTS
from tests.core.transcript import SESSION, Conversation, decide, replayed, substance

# `TIMER` and `COMMAND` stand for one that the session has at that moment, chosen by the number.
OFTEN = [
    "due",
    "due",
    "customer.message",
    "collecting_data.started",
    "promos.offered",
    "promos.offered",
    "proactive.send",
    "succeeded COMMAND",
    "succeeded COMMAND",
    "failed retryable COMMAND",
    "failed retryable COMMAND",
]
SOMETIMES = [
    "own",
    "data.captured complete",
    "+90s customer.message",
    "failed COMMAND",
    "unknown COMMAND",
    "succeeded COMMAND attempt=1",
    "failed retryable COMMAND attempt=1",
    "operator fire_timer TIMER",
    "operator fire_timer TIMER",
    "operator retry_command COMMAND",
    "operator retry_command COMMAND",
    "operator pause",
    "operator resume",
    "+15m operator resume",
]
RARELY = [
    "session.close",
    "session.started",
    "session.started id=one",
    "session.updated",
    'session.updated {"expectedVersion": 2, "mode": "m"}',
    'session.updated {"state": {"datos_capturados": {}}}',
    'data.captured {"nombre": ""}',
    "collecting_data.started id=two",
    'customer.message {"messageId": "m"}',
    "operator cancel_timer TIMER",
    "succeeded COMMAND attempt=9",
    "succeeded COMMAND",
    "early",
    "stale",
    "again 3",
]
lines = st.sampled_from([*OFTEN * 4, *SOMETIMES * 2, *RARELY])
Story = list[tuple[str, int]]
stories = st.integers(0, 50).flatmap(
    lambda size: st.lists(st.tuples(lines, st.integers(0, 3)), min_size=size, max_size=size)
)


class Step(NamedTuple):
    """One entry of a story and what it led to."""

    before: SessionRecord | None
    entry: Entry
    at: Position
    decision: Decision
    after: SessionRecord | None


@settings(max_examples=120, deadline=None)
@given(stories, st.booleans(), st.integers(0, 50))
def test_every_guarantee_holds_in_every_story(story: Story, starts: object, count: int) -> None:
    """G2, G3, G4, G6, G7, G8, G10 and SPEC §§3-4, each with its checker below."""
    conversation = Conversation()
    if starts:
        conversation.play("session.started")
    for line, number in story:
        if (resolved := filled_in(conversation, line, number)) is not None:
            conversation.play(resolved)
    assert replayed(conversation.journal) == conversation.record, "G8"
    check_what_is_delivered_again(conversation, count)
    check_ids(conversation.decisions)
    for step in steps_of(conversation):
        check_deadlines_end_once(step)
        check_no_deadline_fires_early(step)
        check_orders_exist(step)
        check_version(step)
        check_reasons(step)
        check_outbox(step)
        check_ways_on(step)
        check_outcomes(step)
        check_silence(step)
    check_what_is_appended_again(conversation, count)


def filled_in(conversation: Conversation, line: str, number: int) -> str | None:
    """A line with a timer or a command that there is; none: it does not happen."""
    record = conversation.record or SessionRecord(SESSION)
    for word, choices in (
        ("TIMER", list(record.deadlines)),
        ("COMMAND", [f"@{conversation.commands.index(item) + 1}" for item in record.pending]),
    ):
        if word in line:
            if not choices:
                return None
            line = line.replace(word, choices[number % len(choices)])
    return line


def steps_of(conversation: Conversation) -> Iterator[Step]:
    """A story entry by entry."""
    before: SessionRecord | None = None
    for decision, (raw, at) in zip(conversation.decisions, conversation.journal, strict=True):
        yield Step(before, decode_entry(raw), at, decision, decision.record)
        before = decision.record


def bodies(decision: Decision, kind: str) -> list[dict[str, Any]]:
    """The commands, events, outcomes or dead letters of a decision."""
    encoded = [encode_action(action) for action in decision.actions]
    return [line["body"] for line in encoded if line["type"] == kind]


def check_what_is_delivered_again(conversation: Conversation, number: int) -> None:
    """G2: a journal entry that comes again changes nothing; its outbox is as it was."""
    record = conversation.record
    if record is None:
        return
    raw, at = conversation.journal[number % len(conversation.journal)]
    assert decide(record, raw, at) == Decision(record, repeated=True)


def check_what_is_appended_again(conversation: Conversation, count: int) -> None:
    """G2: any suffix of the source records, appended a second time, moves the position only.

    A session remembers nothing of results that came before it was opened: those are told from
    new ones by their command, and only `seen` takes note of them.
    """
    before, decided = conversation.record, len(conversation.decisions)
    conversation.again(min(count, decided))
    for decision in conversation.decisions[decided:]:
        assert decision.actions == ()
        assert decision.ended == ()
    after = conversation.record
    assert (before is None) is (after is None)
    if before and after:
        assert substance(replace(after, seen=before.seen)) == substance(before)


def check_ids(decisions: list[Decision]) -> None:
    """G6: a command's id stands for its attempts, every other id for one thing."""
    ids: Counter[object] = Counter()
    commands: set[str] = set()
    for decision in decisions:
        commands |= set(decision.record.pending) if decision.record else set()
        for kind in ("event", "outcome", "dead_letter"):
            ids.update(body["id"].removeprefix("agents-stream:") for body in bodies(decision, kind))
        ids.update((body["id"], body["attempt"]) for body in bodies(decision, "command"))
    ids.update(commands)
    assert set(ids.values()) <= {1}


def check_deadlines_end_once(step: Step) -> None:
    """G3: a deadline that was armed still stands, or the decision tells its end, once."""
    standing, now = (
        {(name, at.generation, at.due_at_ms) for name, at in record.deadlines.items()}
        if record
        else set[tuple[str, int, int]]()
        for record in (step.before, step.after)
    )
    ended = [(end.name, end.generation, end.due_at_ms) for end in step.decision.ended]
    assert set(ended) == standing - now
    assert len(ended) == len(set(ended))


def check_no_deadline_fires_early(step: Step) -> None:
    """G4: not before its time by the broker's clock, and not in a pause, but by hand."""
    asked = step.entry.data.get("action")
    for end in step.decision.ended:
        if end.end == "fired" and asked != "fire_timer":
            assert step.entry.source.timestamp >= end.due_at_ms
            assert step.before
            assert not step.before.paused or asked == "resume"


def check_orders_exist(step: Step) -> None:
    """G7: "He creado tu pedido" is asked for once per order that succeeded, by its success."""
    created = next(text for text, name in TEXTS.items() if name == "CREATED")
    earlier = step.before.pending if step.before else {}
    pending = step.after.pending if step.after else {}
    told = {
        command.id: command
        for command in pending.values()
        if command.id not in earlier and command.inputs.get("message") == created
    }
    for command in told.values():
        assert (step.entry.kind, step.entry.data["status"]) == ("result", "succeeded")
        order = earlier[step.entry.data["commandId"]]
        assert order.tool == "crm.order.create"
        assert order.id not in pending
        assert command.extra["orderId"] == step.entry.data["outputs"]["id"]
    for command_out in bodies(step.decision, "command"):
        if command_out["inputs"].get("message") == created:
            assert command_out["id"] in {*earlier, *told}


def check_version(step: Step) -> None:
    """SPEC §3: 1 at the start, raised by exactly one by what changes mode or state."""
    before, after = step.before or SessionRecord(SESSION), step.after
    if after is not None:
        closes = (before.status, after.status) == ("open", "closed")
        forgets = closes and after.state == {}  # a stub: what is not kept has not changed
        changed = before.mode != after.mode or (before.state != after.state and not forgets)
        starts = step.before is None and step.entry.name == "agent/session.started"
        assert after.version - before.version == (changed and not starts)


def check_reasons(step: Step) -> None:
    """A decision that does nothing says why, and none of these stories finds a bug (G10)."""
    assert step.decision.crash is None
    assert not {"reducer_error", "invalid_result"} & set(step.decision.reasons)
    if step.after is None:
        assert step.decision.reasons
    elif step.before is not None and not step.decision.actions:
        position = {
            name: getattr(step.after, name)
            for name in ("journal_offset", "journal_timestamp", "seen", "recent_ids", "own_events")
        }
        nothing = replace(step.before, home=step.after.home, **position) == step.after
        assert step.decision.reasons or not nothing


def check_outbox(step: Step) -> None:
    """DESIGN §3 step 4: a crash after the record is written loses no action."""
    owed = step.after.outbox.get(step.at.offset, ()) if step.after else ()
    assert list(owed) == [encode_action(action) for action in step.decision.actions]


def check_ways_on(step: Step) -> None:
    """SPEC §4: each step of a flow waits for its deadline or its command, and nothing else does."""
    if step.after is None:
        return
    waits = {
        ("data_collection", "awaiting_reply"): "data_collection.reply",
        ("data_collection", "awaiting_promos"): "data_collection.promos",
        ("promos", "awaiting_choice"): "promos.reply",
    }
    asks = {"asking": "asked", "ordering": "ordered", "telling": "told"}
    commands, expected = step.after.pending.values(), set[str]()
    for name, run in step.after.flows.items():
        if (name, run.step) in waits:
            expected.add(waits[name, run.step])
        else:
            way_on = [c for c in commands if c.run == run.run and c.then == asks[run.step]]
            assert [c.state in ("awaiting", "retrying", "held") for c in way_on] == [True]
    expected |= {f"retry:{command.id}" for command in commands if command.state == "retrying"}
    assert set(step.after.deadlines) == expected


def check_outcomes(step: Step) -> None:
    """SPEC §4: a run that is over has published its outcome, in the decision that ended it."""
    before = step.before.flows if step.before else {}
    after = step.after.flows if step.after else {}
    for name, run in before.items():
        if name not in after or after[name].run != run.run:
            assert name in [end["flow"] for end in bodies(step.decision, "outcome")]


def check_silence(step: Step) -> None:
    """SPEC §4: a closed session asks for nothing any more, a paused one holds what it asks."""
    if step.after is None:
        return
    states = {command.state for command in step.after.pending.values()}
    if step.after.status == "closed":
        assert not step.after.deadlines
        assert not step.after.flows
        assert states <= {"orphaned"}
    if step.after.status == "closed" or step.after.paused:
        assert not bodies(step.decision, "command")
    else:
        assert "held" not in states
