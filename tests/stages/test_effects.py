"""Actions become records on their topics: where, with which key and headers, and done when."""

from typing import Any

import orjson
import pytest

from agents_stream.core.actions import (
    Action,
    BuryDeadLetter,
    IssueCommand,
    PublishEvent,
    PublishOutcome,
    encode_action,
)
from agents_stream.kafka.appender import Line
from agents_stream.kafka.consumer import Batch
from agents_stream.kafka.topics import ACTIONS, DEAD_LETTERS, OUTCOMES, partition_for
from agents_stream.stages import effects as effects_module
from agents_stream.stages.effects import Effects
from tests.kafka.fakes import Crash, Read, World

S1 = b"s-1"
HOME = partition_for(S1, 4)
COMMAND = {"id": "c-1", "tool": "crm.order.create", "attempt": 2, "inputs": {}}
OFFER = {"id": "e-1", "name": "agent/promos.offered", "data": {"sessionId": "s-1"}}


def batch(*actions: Action) -> Batch:
    """Actions as they stand on `session.actions`."""
    records = tuple(
        Read(ACTIONS, 0, offset, 0, S1, orjson.dumps(
            {"v": 1, "sessionId": "s-1", "offset": offset, "action": encode_action(action)}
        ))
        for offset, action in enumerate(actions)
    )  # fmt: skip
    return Batch(ACTIONS, 0, records, len(records) + 1, 0)


@pytest.mark.parametrize(
    ("action", "topic", "body", "header"),
    [
        (IssueCommand(COMMAND), "tool.crm.order.create", COMMAND, ("idempotency-key", b"c-1")),
        (PublishEvent(OFFER, None), "agent.promos.offered", OFFER, ("id", b"e-1")),
        (PublishOutcome({"id": "o-1"}), OUTCOMES, {"id": "o-1"}, ("id", b"o-1")),
        (
            BuryDeadLetter({"id": "d-1", "reason": "tool_failed"}),
            DEAD_LETTERS,
            {"id": "d-1", "reason": "tool_failed"},
            ("id", b"d-1"),
        ),
    ],
    ids=["command", "event", "outcome", "dead letter"],
)
async def test_every_action_has_its_topic_key_and_header(
    monkeypatch: pytest.MonkeyPatch,
    action: Action,
    topic: str,
    body: dict[str, Any],
    header: tuple[str, bytes],
) -> None:
    """SPEC §1 and §5: keyed by the session, where Java's partitioner puts it, with its id."""
    world = World.made(monkeypatch)
    await Effects(world.engine, None).work([batch(action)])
    assert world.kafka.log == {(topic, HOME): [Line(S1, orjson.dumps(body), (header,))]}
    assert world.consumer.done_offsets == {(ACTIONS, 0): 2}


async def test_an_event_of_ours_goes_where_the_sessions_events_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G5: ingress merges it with them, whatever the producers' partitioner."""
    world = World.made(monkeypatch)
    elsewhere = (HOME + 1) % 4
    await Effects(world.engine, None).work([batch(PublishEvent(OFFER, elsewhere))])
    assert set(world.kafka.log) == {("agent.promos.offered", elsewhere)}


@pytest.mark.parametrize("late", [False, True])
async def test_a_crash_leaves_nothing_done_and_repeats_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    """G1, G6: before the acks nothing is acknowledged; afterwards the same records come again."""
    world = World.made(monkeypatch)
    work = [batch(IssueCommand(COMMAND), PublishOutcome({"id": "o-1"}))]
    world.kafka.crash_at, world.kafka.crash_late = 1, late
    with pytest.raises(Crash):
        await Effects(world.engine, None).work(work)
    assert not world.consumer.done_offsets
    await Effects(world.engine, None).work(work)
    for lines in world.kafka.log.values():
        assert len(lines) == 1 + late
        assert lines[0] == lines[-1]


async def test_a_large_batch_is_published_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a piece has published is done, and a marker behind the last action as well."""
    monkeypatch.setattr(effects_module, "MAX_LINES", 2)
    world = World.made(monkeypatch)
    actions = [PublishOutcome({"id": f"o-{number}"}) for number in range(5)]
    world.kafka.crash_at = 2
    with pytest.raises(Crash):
        await Effects(world.engine, None).work([batch(*actions)])
    assert world.consumer.done_offsets == {(ACTIONS, 0): 2}
    world.kafka.log.clear()
    world.kafka.steps.clear()
    await Effects(world.engine, None).work([batch(*actions)])
    steps = [step.split()[0] for step in world.kafka.steps]
    assert steps == ["append", "done", "append", "done", "append", "done"]
    ids = [orjson.loads(line.value or b"")["id"] for line in world.kafka.lines(OUTCOMES)]
    assert ids == ["o-0", "o-1", "o-2", "o-3", "o-4"]
    assert world.consumer.done_offsets == {(ACTIONS, 0): 6}
