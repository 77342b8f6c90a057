"""Replaying a session's journal, with an eye on the guarantees: the pure half of `audit`."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

import orjson

from agents_stream.core.actions import Action, IssueCommand, PublishOutcome
from agents_stream.core.decider import Decision, apply
from agents_stream.core.flows.promos import CREATED_TEXT, ORDER_TOOL
from agents_stream.core.journal import Entry, Position
from agents_stream.core.reasons import Reason
from agents_stream.core.session import PendingCommand, SessionRecord, encode_record
from agents_stream.core.stub import stub

MAX_VIOLATIONS: Final = 1_000
MAX_SHOWN_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class Difference:
    """A field of a record that is not what the replay gives; both as clipped JSON."""

    field: str
    stands: str
    replayed: str


@dataclass(frozen=True, slots=True)
class Violation:
    """A session for which a guarantee does not hold. `offset` is that of the journal."""

    session_id: str
    guarantee: str
    detail: str
    partition: int
    offset: int | None = None
    differences: tuple[Difference, ...] = ()


@dataclass(slots=True)
class Report:
    """What was looked at, and what does not hold. `violations` keeps the first MAX_VIOLATIONS."""

    sessions: int = 0
    entries: int = 0
    armed: int = 0
    fired: int = 0
    cancelled: int = 0
    replaced: int = 0
    standing: int = 0
    commands: int = 0
    commands_ended: int = 0
    commands_pending: int = 0
    order_messages: int = 0
    published: int = 0
    not_provable: int = 0
    violation_count: int = 0
    violations: list[Violation] = field(default_factory=list)

    def add(self, violation: Violation) -> None:
        """Keep a violation."""
        self.violation_count += 1
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(violation)

    def to_json(self) -> dict[str, Any]:
        """The report as `audit --json` prints it."""
        return {
            "ok": self.violation_count == 0,
            "sessions": self.sessions,
            "entries": self.entries,
            "deadlines": {
                "armed": self.armed,
                "fired": self.fired,
                "cancelled": self.cancelled,
                "replaced": self.replaced,
                "standing": self.standing,
            },
            "commands": {
                "issued": self.commands,
                "ended": self.commands_ended,
                "pending": self.commands_pending,
            },
            "orderMessages": self.order_messages,
            "published": self.published,
            "notProvable": self.not_provable,
            "violationCount": self.violation_count,
            "violations": [
                {
                    "sessionId": item.session_id,
                    "guarantee": item.guarantee,
                    "detail": item.detail,
                    "partition": item.partition,
                    "offset": item.offset,
                    "differences": [asdict(one) for one in item.differences],
                }
                for item in self.violations
            ],
        }


@dataclass(slots=True)
class Replay:
    """One session, as its journal tells it up to now."""

    session_id: str
    partition: int
    report: Report
    announced: set[str]
    record: SessionRecord | None = None
    standing: dict[tuple[str, int], int] = field(default_factory=dict)
    orders: dict[str, int] = field(default_factory=dict)
    order_ids: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    on_actions: Callable[[str, Iterable[Action], Position], None] | None = None

    def follow(self, entry: Entry, at: Position) -> None:
        """Apply one entry and check what it did."""
        self._note_success(entry)
        decision = apply(self.record, entry, at)
        self._check_deadlines(decision, at.offset)
        self._check_commands(decision, at.offset)
        self._check_ends(entry, decision, at.offset)
        if self.on_actions is not None:
            self.on_actions(self.session_id, decision.actions, at)
        # The outbox is the reducer's bookkeeping (DESIGN §3); nothing here would ever empty it.
        self.record = None if decision.record is None else replace(decision.record, outbox={})

    def violated(
        self,
        guarantee: str,
        detail: str,
        offset: int | None,
        differences: Iterable[Difference] = (),
    ) -> None:
        """Report that a guarantee does not hold for this session."""
        self.report.add(
            Violation(
                self.session_id, guarantee, detail, self.partition, offset, tuple(differences)
            )
        )

    def _check_deadlines(self, decision: Decision, offset: int) -> None:
        """Each end belongs to an armed deadline; what neither ended nor stands has vanished."""
        for ended in decision.ended:
            if self.standing.pop((ended.name, ended.generation), None) is None:
                if ended.generation != offset:
                    self.violated("G3", f"{ended.name} ended twice, or was never armed", offset)
                self.report.armed += 1  # armed and ended by the same entry
            match ended.end:
                case "fired":
                    self.report.fired += 1
                case "cancelled":
                    self.report.cancelled += 1
                case "replaced":
                    self.report.replaced += 1
        after = {} if decision.record is None else decision.record.deadlines
        stands = {(name, one.generation): one.due_at_ms for name, one in after.items()}
        for name, generation in stands.keys() - self.standing.keys():
            if generation != offset:
                self.violated("G3", f"{name} stands again after its end", offset)
            self.report.armed += 1
        for name, _ in self.standing.keys() - stands.keys():
            self.violated("G3", f"{name} vanished without an end", offset)
        self.standing = stands

    def _note_success(self, entry: Entry) -> None:
        """Remember an order that a result proves to exist, if it was asked for."""
        if entry.kind != "result" or entry.data.get("status") != "succeeded":
            return
        attempts = self.orders.get(entry.data.get("commandId", ""), 0)
        attempt = entry.data.get("attempt")
        if isinstance(attempt, int) and 1 <= attempt <= attempts:
            order_id = (entry.data.get("outputs") or {}).get("id")
            self.order_ids.add(str(order_id))

    def _check_commands(self, decision: Decision, offset: int) -> None:
        for action in decision.actions:
            if not isinstance(action, IssueCommand) or decision.record is None:
                continue
            command_id = action.command["id"]
            command = decision.record.pending.get(command_id)
            if action.command["tool"] == ORDER_TOOL:
                self.orders[command_id] = action.command["attempt"]
            elif action.command["inputs"].get("message") == CREATED_TEXT:
                self.announced.add(command_id)
                self.report.order_messages += 1
                order_id = str(command.extra.get("orderId")) if command else "unknown"
                # An engine may use the same words in a message of its own: then it must know.
                of_engine = command is not None and command.flow == "proactive"
                if not of_engine and order_id not in self.order_ids:
                    detail = f"the customer is told of the order {order_id}, which nothing proves"
                    self.violated("G7", detail, offset)

    def _check_ends(self, entry: Entry, decision: Decision, offset: int) -> None:
        """Each command begins once and ends once: with its result, or with its session."""
        before = {} if self.record is None else self.record.pending
        after = {} if decision.record is None else decision.record.pending
        for command_id in after.keys() - before.keys():
            self.report.commands += 1
            if command_id in self.ended:
                self.violated("G6", f"the command {command_id} stands again after its end", offset)
        for command_id, command in before.items():
            stands = after.get(command_id)
            failed = stands is not None and stands.state == "failed" != command.state
            if stands is not None and not failed:
                continue
            if stands is None:
                self.ended.add(command_id)
                self.report.commands_ended += command.state != "failed"
            else:
                self.report.commands_ended += 1
            wrong = self._wrong_end(entry, decision, command)
            if wrong is not None:
                self.violated("G6", f"the command {command_id} {wrong}", offset)

    def _wrong_end(self, entry: Entry, decision: Decision, command: PendingCommand) -> str | None:
        """What is wrong with the end of a command, if anything is."""
        assert self.record is not None
        assert decision.record is not None
        if self.record.status != decision.record.status or command.state == "failed":
            return None  # the session closed or was opened afresh, or it had ended before
        answered = entry.kind == "result" and entry.data.get("commandId") == command.id
        if not answered and entry.name != "agent/operator.action":
            return "vanished without a result"
        outcomes = [
            action
            for action in decision.actions
            if isinstance(action, PublishOutcome) and action.outcome["flow"] == command.flow
        ]
        goes_on = command.then == "ordered" and command.id not in decision.record.pending
        run_over = command.state == "orphaned" or Reason.RUN_ENDED in decision.reasons
        fewest = 0 if goes_on or run_over else 1
        if fewest <= len(outcomes) <= 1:
            return None
        return f"ended with {len(outcomes)} outcomes"

    def compare(self, stands: SessionRecord) -> None:
        """Compare what stands with the replay up to its place in the journal (G8, G3)."""
        live = stub(replace(stands, outbox={}))
        if self.record is not None and is_same(live, self.record):
            return
        differences = list(_differences(live, self.record))
        if not differences:
            return
        names = ", ".join(item.field for item in differences)
        detail = f"the record is not what its journal gives: {names}"
        self.violated("G8", detail, stands.journal_offset, differences)
        armed = {(name, one.generation) for name, one in stands.deadlines.items()}
        for name, _ in self.standing.keys() - armed:
            self.violated("G3", f"{name} neither ended nor stands", stands.journal_offset)


def is_same(stands: SessionRecord, replayed: SessionRecord) -> bool:
    """Whether a record is its replay, but for what it owes: the outbox is bookkeeping.

    Records of closed sessions that an older version wrote still hold their state.
    """
    ours, theirs = (stub(replace(record, outbox={})) for record in (stands, replayed))
    return encode_record(ours) == encode_record(theirs)


def _differences(live: SessionRecord, replayed: SessionRecord | None) -> Iterable[Difference]:
    """The fields that differ as JSON; unlike Python, JSON keeps true and 1 apart."""
    for item in fields(SessionRecord):
        ours = _json(getattr(live, item.name))
        theirs = b"nothing" if replayed is None else _json(getattr(replayed, item.name))
        if ours != theirs:
            yield Difference(item.name, _clipped(ours), _clipped(theirs))


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


def _clipped(raw: bytes) -> str:
    text = raw.decode()
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."
