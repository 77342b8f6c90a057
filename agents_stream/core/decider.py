"""decide(): the heart. A session's record and one journal entry give the next record and actions.

`apply()` is what the reducer calls: the bookkeeping of DESIGN §3 (already applied, duplicate,
never started, closed) around `_decide()`, which asks the flows. Both are pure: the same record
and entry give the same decision for ever (G8), and nothing here may know the clock.

The shell's duties with a decision, in this order: send the record (with the actions in its
outbox) to the changelog and wait for the ack; install it; publish the actions and wait for
their acks; only then acknowledge the entry.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import orjson

from agents_stream.core import instructions as do
from agents_stream.core.actions import (
    OWN_EVENT_PREFIX,
    Action,
    BuryDeadLetter,
    PublishOutcome,
    derive_id,
    encode_action,
)
from agents_stream.core.errors import InvalidEvent
from agents_stream.core.events import EVENTS, ToolResult, validate
from agents_stream.core.flows import data_collection, lifecycle, operator, proactive, promos, tools
from agents_stream.core.fold import Draft, EndedDeadline
from agents_stream.core.journal import OPENS_NOTHING_SINCE, Entry, Position
from agents_stream.core.message_ids import dedup_key
from agents_stream.core.reasons import Reason
from agents_stream.core.session import (
    MAX_RECENT_IDS,
    MAX_RECORD_BYTES,
    SessionRecord,
    content_size,
    empty_state,
)
from agents_stream.core.stub import stub

Rule = Callable[[SessionRecord, do.Cause], Iterator[do.Instruction]]

RULES: Mapping[str, tuple[Rule, ...]] = {
    "agent/session.started": (lifecycle.on_started,),
    "agent/session.updated": (lifecycle.on_updated,),
    "agent/data.captured": (lifecycle.on_captured,),
    "agent/customer.message": (data_collection.on_message, promos.on_message),
    "agent/collecting_data.started": (data_collection.on_started,),
    "agent/promos.offered": (promos.on_offered,),
    "agent/proactive.send": (proactive.on_send,),
    "agent/session.close": (lifecycle.on_close,),
}

_FILLED_LATER = (("workspaceId", "workspace_id"), ("conversationId", "conversation_id"))


@dataclass(frozen=True, slots=True)
class Decision:
    """What an entry leads to. `record` is None where the entry opens no session.

    `repeated`: the entry had been applied before, publish its outbox again. `actions` stand in
    the record's outbox under the entry's offset as well. `ended` lists the deadlines that it
    ended; `crash` what the decision itself died of, for the log.
    """

    record: SessionRecord | None
    actions: tuple[Action, ...] = ()
    reasons: tuple[Reason, ...] = ()
    ended: tuple[EndedDeadline, ...] = ()
    repeated: bool = False
    crash: Exception | None = field(default=None, compare=False)


def apply(record: SessionRecord | None, entry: Entry, at: Position) -> Decision:
    """Apply the journal entry at `at` to a record. Never raises for what an entry holds (G10)."""
    if record is not None and record.passed(at.offset, at.timestamp):
        return Decision(record, repeated=True)
    if record is None and entry.kind != "event":
        return Decision(None, reasons=(Reason.UNKNOWN_SESSION,))
    if record is not None and _was_seen(record, entry):
        return Decision(_moved(record, at), reasons=(Reason.DUPLICATE,))
    before = SessionRecord(entry.session_id, opened_offset=at.offset) if record is None else record
    now_ms = at.timestamp if entry.kind == "deadline" else entry.source.timestamp
    cause = do.Cause(now_ms, at.offset, entry.durations, entry.data)
    draft = Draft(before, cause, at)
    try:
        _decide(draft, entry, cause, opening=record is None)
        return _close_books(before, draft, entry, at, opening=record is None)
    except InvalidEvent as error:
        return _refuse(before, entry, at, error.reason, error.detail, Reason.INVALID_RESULT)
    except Exception as error:  # noqa: BLE001 - it is pure: it would raise for ever (G10)
        detail = f"{type(error).__name__} in the decision"
        refused = _refuse(before, entry, at, "reducer_error", detail, Reason.REDUCER_ERROR)
        return replace(refused, crash=error)


def _moved(record: SessionRecord, at: Position) -> SessionRecord:
    """The record at its new journal position, whose time never goes back.

    A broker's clock may: then the entry before would seem not to be applied, and recovery, which
    compares times first, would take an older record for the newer one.
    """
    latest = max(at.timestamp, record.journal_timestamp)
    return replace(record, journal_offset=at.offset, journal_timestamp=latest)


def _was_seen(record: SessionRecord, entry: Entry) -> bool:
    """Whether ingress appended this source record a second time.

    A lower offset with a later time is new: the topic was made anew, or a broker lost its tail.
    """
    offset, timestamp = record.seen.get(entry.source.place, (-1, -1))
    return entry.source.offset <= offset and entry.source.timestamp <= timestamp


def _decide(draft: Draft, entry: Entry, cause: do.Cause, *, opening: bool) -> None:
    before = draft.record
    if entry.kind == "result":
        draft.follow(tools.on_result(before, cause, validate(ToolResult, entry.data)))
    elif entry.kind == "deadline":
        _on_deadline(draft, entry, cause)
    elif (reason := _is_known(draft.record, entry)) is not None:
        draft.follow([do.Because(reason)])
    elif before.status == "closed":
        _on_closed(draft, entry, cause)
    else:
        _on_event(draft, entry, cause)
    changed = draft.record.mode != before.mode or _differs(draft.record.state, before.state)
    if changed and not (opening and entry.name == "agent/session.started"):
        draft.record = replace(draft.record, version=before.version + 1)
    if not (draft.actions or draft.reasons) and _is_still(before, draft.record):
        draft.reasons.append(Reason.NOTHING_CHANGED)


def _differs(one: object, other: object) -> bool:
    """JSON equality: unlike Python's, it keeps true and 1 apart."""
    if one is other:
        return False
    sort = orjson.OPT_SORT_KEYS
    return orjson.dumps(one, option=sort) != orjson.dumps(other, option=sort)


def _is_still(before: SessionRecord, after: SessionRecord) -> bool:
    return replace(after, state=before.state) == before and not _differs(after.state, before.state)


def _is_known(record: SessionRecord, entry: Entry) -> Reason | None:
    """Why an event does not count a second time, if so."""
    if _is_ours(entry) and entry.event_id not in record.own_events:
        known = record.status == "open" and dedup_key(entry) in record.recent_ids
        return Reason.DUPLICATE if known else Reason.STALE_EVENT
    key = dedup_key(entry)
    return Reason.DUPLICATE if key is not None and key in record.recent_ids else None


def _is_ours(entry: Entry) -> bool:
    """Whether we published an event ourselves: only offers, with an id of our own form.

    A producer's other events may have any id.
    """
    ours = (entry.event_id or "").startswith(OWN_EVENT_PREFIX)
    return ours and entry.name == "agent/promos.offered"


def _on_event(draft: Draft, entry: Entry, cause: do.Cause) -> None:
    if told := _told(draft.record, entry):
        draft.follow([do.Lifecycle(told)])
    if entry.name == "agent/operator.action":
        operator.act(draft, cause)
        return
    # Every rule sees the session as the event found it; a list, so that none sees another's work.
    followed = [list(rule(draft.record, cause)) for rule in RULES[entry.name]]
    if not draft.follow(step for steps in followed for step in steps):
        draft.follow([do.Because(Reason.NOT_WAITING)])


def _told(record: SessionRecord, entry: Entry) -> dict[str, str]:
    """What an event says about a session that does not know it yet; extra fields say nothing.

    A `session.started` fills in its participants itself, and that only once.
    """
    if entry.name == "agent/session.started":
        return {}
    declared = EVENTS[entry.name].model_fields
    return {
        name: entry.data[wire]
        for wire, name in _FILLED_LATER
        if name in declared and getattr(record, name) is None
    }


def _on_closed(draft: Draft, entry: Entry, cause: do.Cause) -> None:
    """A closed session takes one event only: a new start, which opens it afresh."""
    if entry.name != "agent/session.started":
        draft.follow([do.Because(Reason.SESSION_CLOSED)])
        return
    closed = draft.record
    # An order that was under way at the close may still turn out to exist: it must be told.
    orders = {
        command_id: command
        for command_id, command in closed.pending.items()
        if command.tool == promos.ORDER_TOOL
    }
    draft.record = SessionRecord(
        session_id=closed.session_id,
        version=closed.version,
        state=empty_state(),
        pending=orders,
        seen=closed.seen,
        recent_ids=closed.recent_ids,
        home=closed.home,
        opened_offset=closed.opened_offset,
        journal_offset=closed.journal_offset,
        journal_timestamp=closed.journal_timestamp,
        outbox=closed.outbox,
    )
    draft.follow(lifecycle.on_started(draft.record, cause))


def _on_deadline(draft: Draft, entry: Entry, cause: do.Cause) -> None:
    name = entry.data["name"]
    deadline = draft.record.deadlines.get(name)
    if deadline is None or deadline.generation != entry.data["generation"]:
        draft.follow([do.Because(Reason.STALE_DEADLINE)])
    elif entry.source.timestamp < deadline.due_at_ms:
        draft.follow([do.Because(Reason.EARLY_DEADLINE)])
    elif draft.record.paused:
        draft.follow([do.Because(Reason.PAUSED)])
    else:
        operator.fire(draft, name, cause)


def _close_books(
    before: SessionRecord, draft: Draft, entry: Entry, at: Position, *, opening: bool
) -> Decision:
    """The bookkeeping that every applied entry leaves, and the limit on what it may add."""
    if (
        entry.kind == "event"
        and draft.record is not before
        and content_size(draft.record) > MAX_RECORD_BYTES
        and content_size(draft.record) > content_size(before)
    ):
        if opening and entry.rules >= OPENS_NOTHING_SINCE:
            return _reject_opening(entry)
        return _reject_growth(before, entry, at)
    record = _keep_books(draft.record, entry, at, tuple(draft.actions))
    return Decision(record, tuple(draft.actions), tuple(draft.reasons), tuple(draft.ended))


def _keep_books(
    record: SessionRecord, entry: Entry, at: Position, actions: tuple[Action, ...]
) -> SessionRecord:
    source = entry.source
    key = dedup_key(entry)
    recent = record.recent_ids
    if key is not None and key not in recent:
        recent = (*recent, key)[-MAX_RECENT_IDS:]
    outbox = record.outbox
    if actions:
        outbox = {**outbox, at.offset: tuple(encode_action(action) for action in actions)}
    # The latest time, as for the journal's position: a broker's clock may go back.
    _, latest = record.seen.get(source.place, (-1, -1))
    kept = replace(
        _moved(record, at),
        seen={**record.seen, source.place: (source.offset, max(source.timestamp, latest))},
        recent_ids=recent,
        own_events=tuple(item for item in record.own_events if item != entry.event_id),
        home=source.partition if _shows_home(entry) else record.home,
        outbox=outbox,
    )
    return stub(kept)


def _shows_home(entry: Entry) -> bool:
    """Whether an event shows in which partition the session's producers write.

    An operator's tool may have another partitioner than the producers: it shows nothing.
    """
    return entry.kind == "event" and entry.source.keyed and entry.name != "agent/operator.action"


def _reject_growth(before: SessionRecord, entry: Entry, at: Position) -> Decision:
    """SPEC §3: an event that would make the record too large changes nothing but says so."""
    draft = Draft(before, do.Cause(entry.source.timestamp, at.offset, entry.durations, {}), at)
    draft.follow(
        [
            do.Because(Reason.STATE_TOO_LARGE),
            do.Finish("session", "rejected", "state_too_large", before.workspace_id),
        ]
    )
    record = _keep_books(draft.record, entry, at, tuple(draft.actions))
    assert all(isinstance(action, PublishOutcome) for action in draft.actions)
    return Decision(record, tuple(draft.actions), tuple(draft.reasons))


def _reject_opening(entry: Entry) -> Decision:
    """SPEC §3: what changes nothing opens no session either, so there is no record to tell.

    Nothing remembers the source record then. If ingress appends it twice the outcome comes twice,
    so its id is derived from that record and not from its place in the journal (G6).
    """
    source = entry.source
    at = Position(source.topic, source.partition, source.offset, source.timestamp)
    told_by = SessionRecord(entry.session_id)
    draft = Draft(told_by, do.Cause(source.timestamp, source.offset, entry.durations, {}), at)
    draft.follow([do.Finish("session", "rejected", "state_too_large", None)])
    (action,) = draft.actions
    assert isinstance(action, PublishOutcome)
    outcome_id = derive_id(f"{entry.session_id}\0{source.place}", at.timestamp, at.offset, 0)
    outcome = PublishOutcome({**action.outcome, "id": outcome_id})
    return Decision(None, (outcome,), (Reason.STATE_TOO_LARGE,))


def _refuse(
    before: SessionRecord, entry: Entry, at: Position, code: str, detail: str, reason: Reason
) -> Decision:
    """What cannot be decided now never can. Nothing changes, and the dead letters keep it.

    Unlike the letter of a failed command, this one names the record that came in.
    """
    draft = Draft(before, do.Cause(entry.source.timestamp, at.offset, entry.durations, {}), at)
    value = entry.data
    if entry.kind == "event":
        value = {"name": entry.name, "data": entry.data, "id": entry.event_id, "ts": entry.sent_at}
    action = BuryDeadLetter(draft.refusal(code, detail, value, entry.source))
    record = _keep_books(before, entry, at, (action,))
    return Decision(record, (action,), (reason,))
