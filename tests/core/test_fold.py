"""What each instruction means, one by one; what flows make of them is in their own tests."""

from dataclasses import replace
from typing import Any

import pytest

from agents_stream.core import instructions as do
from agents_stream.core.actions import BuryDeadLetter, IssueCommand, PublishOutcome
from agents_stream.core.fold import Draft, EndedDeadline
from agents_stream.core.instructions import Cause
from agents_stream.core.journal import Durations, Position, Source
from agents_stream.core.reasons import Reason
from agents_stream.core.session import Deadline, FlowRun, SessionRecord

AT = Position("session.journal", 3, 50, 9_000)
CAUSE = do.Cause(8_000, AT.offset, Durations(), {})
RUN = FlowRun("awaiting_choice", 40, "c1", "w1", 7_000)
SESSION = SessionRecord(
    "s1",
    mode="m",
    state={"a": 1, "b": {"x": 1}},
    deadlines={"one": Deadline(9_999, 40)},
    flows={"promos": RUN},
)
CALL = do.CallTool(
    "whatsapp.message.send",
    {"contactId": "c1", "message": "hola"},
    flow="proactive",
    then="sent",
    run=50,
    conversation_id="c1",
    workspace_id="w1",
)


def drafted(*instructions: do.Instruction, session: SessionRecord = SESSION) -> Draft:
    """The draft that instructions leave."""
    draft = Draft(session, CAUSE, AT)
    assert draft.follow(instructions) is bool(instructions)
    return draft


def test_nothing_is_nothing() -> None:
    """No instruction, no change."""
    draft = drafted()
    assert draft.record is SESSION
    assert (draft.actions, draft.reasons, draft.ended) == ([], [], [])


def test_arming_replaces() -> None:
    """G3: "arming a name again replaces it"; the generation is the arming entry's offset."""
    draft = drafted(do.Arm("one", 12_000), do.Arm("two", 11_000))
    assert draft.record.deadlines == {"one": Deadline(12_000, 50), "two": Deadline(11_000, 50)}
    assert draft.ended == [EndedDeadline("one", 40, 9_999, "replaced")]


@pytest.mark.parametrize(
    ("instruction", "end"), [(do.Cancel("one"), "cancelled"), (do.Fire("one"), "fired")]
)
def test_a_deadline_ends_once(instruction: do.Instruction, end: Any) -> None:
    """G3: to end what has ended already says nothing a second time."""
    draft = drafted(instruction, instruction, do.Cancel("two"))
    assert draft.record.deadlines == {}
    assert draft.ended == [EndedDeadline("one", 40, 9_999, end)]


def test_a_change_sets_the_mode_and_merges_the_state() -> None:
    """SPEC §3: the state is merged at the top level; no mode leaves the mode."""
    draft = drafted(do.Change(None, {"b": 2}), do.Change("n", {"c": 3}))
    assert (draft.record.mode, draft.record.state) == ("n", {"a": 1, "b": 2, "c": 3})
    assert SESSION.state == {"a": 1, "b": {"x": 1}}


def test_a_run_is_named_by_the_entry_that_started_it() -> None:
    """A result belongs to the run that asked for it: `run` tells one from the next."""
    draft = drafted(do.Enter("promos", "s", "c2", "w2"))
    assert draft.record.flows == {"promos": FlowRun("s", 50, "c2", "w2", 8_000)}
    taken_up = drafted(do.Enter("promos", "s", "c2", "w2", run=30))
    assert taken_up.record.flows["promos"].run == 30


def test_a_step_of_another_run_is_no_step() -> None:
    """A run that is over stays so, and the present one is left alone."""
    assert drafted(do.Proceed("promos", "ordering", 40)).record.flows == {
        "promos": replace(RUN, step="ordering")
    }
    for other in (do.Proceed("promos", "x", 39), do.Proceed("data_collection", "x", 40)):
        assert drafted(other).record == SESSION


@pytest.mark.parametrize(
    ("run", "flows"), [(40, {}), (39, {"promos": RUN}), (None, {"promos": RUN})]
)
def test_an_outcome_ends_its_own_run_only(run: int | None, flows: dict[str, FlowRun]) -> None:
    """SPEC §5's outcome, at the time of the cause; of another run it ends nothing."""
    draft = drafted(do.Finish("promos", "failed", "order_failed", "w9", run, {"unknown": True}))
    assert draft.record.flows == flows
    (outcome,) = draft.actions
    assert isinstance(outcome, PublishOutcome)
    assert {key: value for key, value in outcome.outcome.items() if key != "id"} == {
        "sessionId": "s1",
        "workspaceId": "w9",
        "flow": "promos",
        "status": "failed",
        "action": "order_failed",
        "at": 8_000,
        "unknown": True,
    }


def test_a_call_is_issued_and_pending() -> None:
    """SPEC §5: the command goes out as attempt 1 and stays pending until it is settled."""
    draft = drafted(CALL)
    (command,) = draft.record.pending.values()
    assert (command.state, command.attempt) == ("awaiting", 1)
    assert draft.actions == [IssueCommand(command.to_wire("s1"))]
    assert draft.follow([do.Settle(command.id)])
    assert draft.record.pending == {}


def test_a_paused_session_holds_its_commands() -> None:
    """SPEC §4: while a session is paused, commands wait; released, it is the same attempt."""
    draft = drafted(CALL, session=replace(SESSION, paused=True))
    (command,) = draft.record.pending.values()
    assert (command.state, draft.actions, draft.reasons) == ("held", [], [Reason.PAUSED])
    draft.follow([do.Lifecycle({"paused": False}), do.Reissue(command.id)])
    assert draft.actions == [IssueCommand(replace(command, state="awaiting").to_wire("s1"))]


def test_a_command_is_issued_again_as_the_next_attempt() -> None:
    """SPEC §5: the id stays, the attempt, the time and the offset are new."""
    first = drafted(CALL)
    (command,) = first.record.pending.values()
    later = Draft(first.record, replace(CAUSE, now_ms=8_500), replace(AT, offset=60))
    later.follow([do.Reissue(command.id, redriven=True)])
    (action,) = later.actions
    assert isinstance(action, IssueCommand)
    assert action.command["id"] == command.id
    assert [action.command[key] for key in ("attempt", "issuedAt", "asOf")] == [2, 8_500, 60]
    assert later.record.pending[command.id].redriven


def test_every_id_of_a_decision_is_its_own() -> None:
    """G6: a held command takes its id though no action of it is seen yet."""
    draft = drafted(
        CALL,
        CALL,
        do.Finish("promos", "failed", "x", None),
        do.Publish("agent/promos.offered", {}),
        session=replace(SESSION, paused=True),
    )
    first, second = draft.record.pending.values()
    draft.follow([do.Bury("tool_failed", "x", first)])
    outcome, _, letter = draft.actions
    assert isinstance(outcome, PublishOutcome)
    assert isinstance(letter, BuryDeadLetter)
    (event_id,) = draft.record.own_events
    ids = [first.id, second.id, outcome.outcome["id"], letter.letter["id"]]
    assert len({*ids, event_id.removeprefix("agents-stream:")}) == 5


def test_the_letter_of_a_refused_record_is_bounded() -> None:
    """SPEC §2: a value above 1 MiB by its beginning; the outbox must fit its topic."""
    source = Source("tool.results", 0, 7, 1_000, keyed=True)
    at = Position("j", 0, 1, 2_000)
    draft = Draft(SessionRecord("s1"), Cause(1_000, 1, Durations(), {}), at)
    small = draft.refusal("r", "d", {"x": "y"}, source)
    large = draft.refusal("r", "d", {"x": ["ñ" * 1_000] * 1_000}, source)
    assert "truncated" not in small
    assert large["truncated"] is True
    assert 256 * 1024 - 3 <= len(large["value"].encode()) <= 256 * 1024
    assert large["size"] == len('{"x":[]}') + 1_000 * 2_003 - 1
