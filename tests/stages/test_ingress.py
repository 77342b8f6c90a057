"""Rounds: everything that Kafka had acknowledged when it was asked, in the order of time (G5)."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from agents_stream.core.errors import TerminalError
from agents_stream.kafka.consumer import Batch
from agents_stream.kafka.topics import DEAD_LETTERS, DEADLINES, JOURNAL, partition_for
from agents_stream.kafka.unpacking import Cut
from agents_stream.stages import ingress as ingress_module
from agents_stream.stages.ingress import Ingress
from tests.kafka.fakes import Crash, Read, World, ends_of

MESSAGES, STARTS = "agent.customer.message", "agent.session.started"
S1 = b"s-1"


class Entering:
    """An ingress over a fake Kafka; `ends` is what the brokers answer."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ingress = Ingress(world.engine, None)
        self.ends: dict[tuple[str, int], int] = {}
        self.ingress.end_offsets = ends_of(self.ends)

    @property
    def journal(self) -> list[tuple[str, int]]:
        """Which source records have been appended, in their order."""
        lines = self.world.kafka.lines(JOURNAL)
        sources = [orjson.loads(line.value or b"")["source"] for line in lines]
        return [(source["topic"], source["offset"]) for source in sources]

    async def read(self, topic: str, *records: Read, position: int | None = None) -> None:
        """Hand a fetch of partition 0 to the stage."""
        after = records[-1].offset + 1 if records else 0
        batch = Batch(topic, 0, records, after if position is None else position, 0)
        await self.ingress.work([batch])


@pytest.fixture
async def one(monkeypatch: pytest.MonkeyPatch) -> Entering:
    """An ingress that has just been assigned its partitions."""
    return Entering(World.made(monkeypatch))


def message(offset: int, at: int, **more: Any) -> Read:
    """A customer's message."""
    data = {"sessionId": "s-1", "conversationId": "c", "messageId": f"m{offset}", "content": "x"}
    return Read(MESSAGES, 0, offset, at, S1, orjson.dumps({**data, **more}))


def deadline(offset: int, at: int) -> Read:
    """A due deadline."""
    data = {"sessionId": "s-1", "name": "promos.reply", "generation": 1, "dueAt": at}
    return Read(DEADLINES, 0, offset, at, S1, orjson.dumps(data))


async def test_an_answer_that_kafka_had_beats_the_deadline_that_was_read_first(
    one: Entering,
) -> None:
    """G5: the deadline waits until everything below the ends has been read."""
    one.ends |= {(MESSAGES, 0): 1, (DEADLINES, 0): 1}
    await one.read(DEADLINES, deadline(0, at=20))
    assert one.journal == []
    assert one.world.consumer.done_offsets[DEADLINES, 0] == 0
    await one.read(MESSAGES, message(0, at=20))
    assert one.journal == [(MESSAGES, 0), (DEADLINES, 0)]
    assert one.world.consumer.done_offsets[DEADLINES, 0] == 1


async def test_what_came_after_the_question_has_a_round_of_its_own(one: Entering) -> None:
    """A round ends: a stream of messages cannot hold a deadline back for ever."""
    one.ends |= {(MESSAGES, 0): 1, (DEADLINES, 0): 1}
    await one.read(DEADLINES, deadline(0, at=20))
    one.ends[MESSAGES, 0] = 2
    await one.read(MESSAGES, message(0, at=10), message(1, at=15))
    assert one.journal == [(MESSAGES, 0), (DEADLINES, 0), (MESSAGES, 1)]


async def test_a_marker_that_arrives_later_leaves_no_event_waiting(one: Entering) -> None:
    """G11: the round whose last position was a marker's ends when the marker is passed."""
    one.ends |= {(STARTS, 0): 1, (MESSAGES, 0): 2}  # a message and a commit marker
    await one.read(MESSAGES, message(0, at=10), position=1)
    await one.read(STARTS, Read(STARTS, 0, 0, 5, S1, b"{}"), position=1)
    assert one.journal == [(MESSAGES, 0)]
    await one.read(MESSAGES, position=2)
    one.ends |= {(DEADLINES, 0): 1}
    await one.read(DEADLINES, deadline(0, at=20))
    assert one.journal == [(MESSAGES, 0), (DEADLINES, 0)]
    one.ends |= {(MESSAGES, 0): 3}
    await one.read(MESSAGES, message(2, at=30))
    assert one.journal[-1] == (MESSAGES, 2)


async def test_a_hand_full_of_what_came_after_the_question_locks_nothing(one: Entering) -> None:
    """G11: the topic is at its limit and not read on, so the round must not wait for it."""
    clock = one.world.engine.clock
    late = clock.now_ms() + 20
    one.ends |= {(MESSAGES, 0): 9}  # the answer took its time: more came while it was asked
    await one.read(MESSAGES, message(0, at=late))
    assert one.journal == [(MESSAGES, 0)], "asked again until the record is older than the question"
    assert one.world.consumer.done_offsets[MESSAGES, 0] == 1


async def test_a_topic_not_heard_of_yet_holds_the_round_back(one: Entering) -> None:
    """G5: after an assignment the positions come one by one."""
    one.ends |= {(MESSAGES, 0): 7, (DEADLINES, 0): 1}
    await one.read(DEADLINES, deadline(0, at=20))
    assert one.journal == []
    await one.read(MESSAGES, position=7)  # nothing to read: all of it was done before
    assert one.journal == [(DEADLINES, 0)]


async def test_the_sources_are_done_after_the_journals_ack(one: Entering) -> None:
    """G1: a crash before, during or after the append loses nothing."""
    one.ends |= {(MESSAGES, 0): 1}
    for late in (False, True):
        one.world.kafka.appends, one.world.kafka.crash_at = 0, 1
        one.world.kafka.crash_late = late
        again = Entering(one.world)
        again.ends |= one.ends
        with pytest.raises(Crash):
            await again.read(MESSAGES, message(0, at=10))
        assert one.world.consumer.done_offsets == {}
    one.world.kafka.crash_at = 0
    again = Entering(one.world)
    again.ends |= one.ends
    await again.read(MESSAGES, message(0, at=10))
    assert one.world.kafka.steps[-2 - len(again.ingress.inputs) :][1] == f"append {JOURNAL}"
    assert one.world.consumer.done_offsets[MESSAGES, 0] == 1


async def test_what_cannot_be_accepted_goes_to_the_dead_letters_and_is_done(one: Entering) -> None:
    """G10: whatever it is; the good record behind it is accepted."""
    bad = [
        None,
        b"",
        b"\xff",
        b"[]",
        b"{" * 100,
        b'{"name":"agent/unknown","data":{"sessionId":"s-1"}}',
        b'{"sessionId":""}',
        b"x" * (1024 * 1024 + 1),
        orjson.dumps({"sessionId": "\0" * 100_000}),
    ]
    records = [Read(MESSAGES, 0, number, 5, S1, value) for number, value in enumerate(bad)]
    one.ends |= {(MESSAGES, 0): len(bad) + 1}
    await one.read(MESSAGES, *records, message(len(bad), at=6))
    assert one.journal == [(MESSAGES, len(bad))]
    letters = [orjson.loads(line.value or b"") for line in one.world.kafka.lines(DEAD_LETTERS)]
    assert [letter["source"]["offset"] for letter in letters] == list(range(len(bad)))
    assert {letter["reason"] for letter in letters} == {
        "invalid_json",
        "invalid_schema",
        "unknown_event",
        "too_large",
    }
    assert one.world.consumer.done_offsets[MESSAGES, 0] == len(bad) + 1


async def test_a_giant_key_stops_nothing(one: Entering) -> None:
    """G10: the letter's own key is cut, or the broker would refuse it for ever."""
    giant = b"k" * 20_000_000
    one.ends |= {(MESSAGES, 0): 1}
    await one.read(MESSAGES, Read(MESSAGES, 0, 0, 5, giant, b"no json"))
    [line] = one.world.kafka.lines(DEAD_LETTERS)
    assert line.key == giant[:4096]
    assert len(line.value or b"") < 100_000


async def test_an_event_is_filed_under_its_session_whatever_its_key(one: Entering) -> None:
    """SPEC §2: a key that is null or another is accepted."""
    one.ends |= {(MESSAGES, 0): 3}
    keyless = Read(MESSAGES, 0, 0, 5, None, message(0, 5).value)
    other = Read(MESSAGES, 0, 1, 5, b"other", message(1, 5).value)
    await one.read(MESSAGES, keyless, other, message(2, at=5))
    lines = one.world.kafka.lines(JOURNAL)
    assert {line.key for line in lines} == {S1}
    keyed = [orjson.loads(line.value or b"")["source"]["keyed"] for line in lines]
    assert keyed == [False, False, True]
    place = (JOURNAL, partition_for(S1, one.world.engine.settings.partitions))
    assert len(one.world.kafka.log[place]) == 3


async def test_a_topic_that_goes_back_ends_the_process(one: Entering) -> None:
    """FAUST.md: a topic made anew goes silent in Faust; a restart reads it from its beginning."""
    one.ends |= {(MESSAGES, 0): 6}
    await one.read(MESSAGES, message(5, at=10))
    with pytest.raises(TerminalError, match="made anew"):
        await one.read(MESSAGES, message(0, at=20))


async def test_a_revoke_forgets_what_is_in_hand(one: Entering) -> None:
    """G1: what was not acknowledged is read again, from the committed offset."""
    one.ends |= {(MESSAGES, 0): 1, (DEADLINES, 0): 1}
    await one.read(DEADLINES, deadline(0, at=20))
    one.world.engine.on_revoked()
    await one.read(MESSAGES, message(0, at=10))
    await one.read(DEADLINES, deadline(0, at=20))
    assert one.journal == [(MESSAGES, 0), (DEADLINES, 0)]


async def test_a_backlog_is_appended_piece_by_piece(
    one: Entering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G11: no slice of the event loop lets the heartbeats wait; the order stays."""
    monkeypatch.setattr(ingress_module, "MAX_LINES", 10)
    one.ends |= {(MESSAGES, 0): 25, (DEADLINES, 0): 1}
    await one.read(MESSAGES, *(message(number, at=number) for number in range(25)))
    await one.read(DEADLINES, deadline(0, at=12))
    assert one.world.kafka.steps.count(f"append {JOURNAL}") == 3
    order = sorted([(n, 0, (MESSAGES, n)) for n in range(25)] + [(12, 1, (DEADLINES, 0))])
    assert one.journal == [place for _, _, place in order]


async def test_a_rebalance_cuts_a_backlog_short_and_acknowledges_nothing_of_it(
    one: Entering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G1: the next owner appends it again, and the sessions know what they have seen."""
    monkeypatch.setattr(ingress_module, "MAX_LINES", 10)
    one.ends |= {(MESSAGES, 0): 25}
    append = one.ingress.appender.append

    async def then_revoked(pending: Any) -> Any:
        one.world.consumer.flow_active = False
        return await append(pending)

    one.ingress.appender.append = then_revoked  # type: ignore[method-assign]
    await one.read(MESSAGES, *(message(number, at=number) for number in range(25)))
    assert len(one.journal) == 10
    assert (MESSAGES, 0) not in one.world.consumer.done_offsets


async def test_the_longest_journal_entry_fits(one: Entering) -> None:
    """G10: no accepted event grows beyond the journal's limit: numbers grow the most."""
    numbers = b"[" + b"1e15," * 209_000 + b"1]"
    value = (
        b'{"sessionId":"s-1","conversationId":"c","messageId":"m","content":"","n":%b}' % numbers
    )
    assert 1_000_000 < len(value) <= 1024 * 1024
    one.ends |= {(MESSAGES, 0): 1}
    await one.read(MESSAGES, Read(MESSAGES, 0, 0, 5, S1, value))
    [line] = one.world.kafka.lines(JOURNAL)
    assert len(line.value or b"") < 4 * 1024 * 1024 - 10_000


async def test_a_time_that_no_broker_gave_holds_up_nothing(one: Entering) -> None:
    """G10: somebody set a topic to CreateTime; a record of the year 3000 must not wait for it."""
    future = 32_503_680_000_000
    stamped = replace(message(0, at=future), timestamp_type=0)
    one.ends |= {(MESSAGES, 0): 2, (DEADLINES, 0): 1}
    one.world.engine.clock.observe(30)
    await one.read(DEADLINES, deadline(0, at=12))
    await one.read(MESSAGES, stamped, message(1, at=10))
    assert one.journal == [(MESSAGES, 1), (DEADLINES, 0)]
    [letter] = [orjson.loads(line.value or b"") for line in one.world.kafka.lines(DEAD_LETTERS)]
    assert (letter["reason"], letter["source"]["offset"]) == ("invalid_timestamp", 0)
    assert letter["source"]["timestamp"] == future
    assert one.world.consumer.done_offsets[MESSAGES, 0] == 2


@pytest.mark.parametrize(
    "value", [Cut(b"x" * 9, 20_000_000, "ab"), Cut(b"{", 2**30), Cut(b"", None)]
)
async def test_a_value_that_was_not_unpacked_whole_is_too_large(one: Entering, value: Cut) -> None:
    """SPEC §2: by its beginning, with its size and digest as far as anybody looked."""
    one.ends |= {(MESSAGES, 0): 1}
    await one.read(MESSAGES, Read(MESSAGES, 0, 0, 5, S1, value))
    [letter] = [orjson.loads(line.value or b"") for line in one.world.kafka.lines(DEAD_LETTERS)]
    assert letter["reason"] == "too_large"
    assert letter["value"].encode() == bytes(value)
    assert (letter["truncated"], letter["size"]) == (True, value.size)
    assert letter["sha256"] == value.sha256


async def test_a_giant_key_is_not_hashed_whole(
    one: Entering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G10: hashing 20 MB in Python takes longer than the group waits for a heartbeat."""
    hashed: list[int] = []

    def counting(key: bytes, count: int) -> int:
        hashed.append(len(key))
        return partition_for(key, count)

    monkeypatch.setattr(ingress_module, "partition_for", counting)
    one.ends |= {(MESSAGES, 0): 1}
    await one.read(MESSAGES, Read(MESSAGES, 0, 0, 5, b"k" * 20_000_000, b"no json"))
    assert hashed == [4096]


async def test_large_letters_go_piece_by_piece(one: Entering) -> None:
    """G11: a thousand letters of a megabyte are never in memory at once."""
    records = [Read(MESSAGES, 0, number, 5, S1, b"x" * (1024 * 1024)) for number in range(20)]
    one.ends |= {(MESSAGES, 0): 20}
    await one.read(MESSAGES, *records)
    assert one.world.kafka.steps.count(f"append {DEAD_LETTERS}") == 3
    assert len(one.world.kafka.lines(DEAD_LETTERS)) == 20


async def test_the_log_has_a_line_for_many_letters(one: Entering) -> None:
    """Whoever sends rubbish cannot fill the disk with our log."""
    records = [Read(MESSAGES, 0, number, 5, S1, b"rubbish") for number in range(500)]
    one.ends |= {(MESSAGES, 0): 500}
    with capture_logs() as lines:
        await one.read(MESSAGES, *records)
    assert [line["count"] for line in lines if line["event"] == "dead letter"] == [500]


async def test_every_acked_piece_is_progress(
    one: Entering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G11: a backlog that takes longer than the watchdog waits is no worker that stands still."""
    monkeypatch.setattr(ingress_module, "MAX_LINES", 10)
    told: list[int] = []
    one.ingress.moved = lambda: told.append(len(one.journal))
    one.ends |= {(MESSAGES, 0): 25}
    await one.read(MESSAGES, *(message(number, at=number) for number in range(25)))
    assert told == [10, 20, 25]
