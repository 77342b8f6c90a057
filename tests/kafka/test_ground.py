"""Looking again: what has changed is said once, in words that tell what to do."""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from agents_stream.kafka.fetch_guard import GroundChanged
from agents_stream.kafka.ground import Ground
from agents_stream.kafka.marks import Change, decode_mark
from agents_stream.kafka.survey import Place, Survey, TopicSeen
from agents_stream.settings import Settings

JOURNAL, CHANGELOG = "journal", "changelog"


class FakeSurveyor:
    """What the brokers say."""

    def __init__(self) -> None:
        self.cluster_id = "c"
        self.topics = {
            name: TopicSeen(f"{name}-1", {0: 1}, {0: 1}) for name in (JOURNAL, CHANGELOG)
        }
        self.ends: dict[Place, int] = {}

    async def start(self) -> None:
        """Nothing to connect."""

    async def look(self, _topics: Iterable[str]) -> Survey:
        """Tell."""
        return Survey(self.cluster_id, dict(self.topics))

    async def epoch_ends(self, epochs: Mapping[Place, int]) -> dict[Place, int]:
        """Where they ended."""
        return {place: self.ends[place] for place in epochs if place in self.ends}

    def change(self, topic: str, topic_id: str, epochs: dict[int, int]) -> None:
        """Let a topic be another one."""
        self.topics[topic] = TopicSeen(topic_id, epochs, dict.fromkeys(epochs, 1))


class FakeGroup:
    """A group's committed offsets, and the log's ends."""

    def __init__(self) -> None:
        self.committed: dict[TopicPartition, OffsetAndMetadata] = {}
        self.ends: dict[TopicPartition, int] = {}
        self._coordinator = self

    async def fetch_committed_offsets(self, tps: Iterable[TopicPartition]) -> Any:
        """As the coordinator tells."""
        return {tp: self.committed.get(tp, OffsetAndMetadata(-1, "")) for tp in tps}

    async def beginning_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """All begin at zero."""
        return dict.fromkeys(tps, 0)

    async def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Where they end."""
        return {tp: self.ends.get(tp, 10) for tp in tps}


@pytest.fixture
async def world() -> SimpleNamespace:
    """A ground that has been looked at once."""
    words: list[str] = []
    ground = Ground(
        Settings(partitions=1), (JOURNAL, CHANGELOG), (JOURNAL, CHANGELOG), words.append
    )
    surveyor = FakeSurveyor()
    ground._surveyor = surveyor  # type: ignore[assignment]
    await ground.start()
    return SimpleNamespace(ground=ground, surveyor=surveyor, words=words)


async def test_what_is_as_it_was_is_nothing_to_tell(world: SimpleNamespace) -> None:
    """A new leader alone is no change."""
    world.surveyor.change(JOURNAL, "journal-1", {0: 7})
    await world.ground.refresh()


async def test_every_change_has_its_words(world: SimpleNamespace) -> None:
    """Another cluster, another topic, more partitions; a topic that is gone for good."""
    world.surveyor.change(JOURNAL, "journal-2", {0: 0})
    with pytest.raises(GroundChanged, match="journal was deleted and made anew"):
        await world.ground.refresh()
    world.surveyor.change(JOURNAL, "journal-1", {0: 1, 1: 0})
    with pytest.raises(GroundChanged, match="has 2 partitions now, should be 1"):
        await world.ground.refresh()
    world.surveyor.cluster_id = "d"
    with pytest.raises(GroundChanged, match="another Kafka cluster"):
        await world.ground.refresh()
    world.surveyor.cluster_id = "c"
    del world.surveyor.topics[JOURNAL]
    await world.ground.refresh()  # a broker that has just come up may not know it yet
    await world.ground.refresh()
    with pytest.raises(GroundChanged, match="journal was deleted"):
        await world.ground.refresh()


async def test_what_we_wrote_must_be_there_under_a_new_leader(world: SimpleNamespace) -> None:
    """G1: the changelog has no reader while the worker runs; its tail may go unnoticed."""
    place = (CHANGELOG, 0)
    world.ground.writes(place, 5)
    world.ground.wrote(CHANGELOG, 0, 8)
    world.surveyor.change(CHANGELOG, "changelog-1", {0: 2})
    world.surveyor.ends[place] = 8
    await world.ground.refresh()
    world.ground.wrote(CHANGELOG, 0, 9)
    world.surveyor.change(CHANGELOG, "changelog-1", {0: 3})
    world.surveyor.ends[place] = 8
    with pytest.raises(GroundChanged, match="1 records that Kafka had acknowledged are gone"):
        await world.ground.refresh()


async def test_what_we_write_to_a_new_leader_is_not_missed_in_the_earlier_ones_part(
    world: SimpleNamespace,
) -> None:
    """G11: a worker that outlives a broker's restart and writes on ends of no loss.

    Seen in chaos: "lost its tail: 25 records that Kafka had acknowledged are gone", when 25 had
    been written between the broker's return and the next look.
    """
    place = (CHANGELOG, 0)
    world.ground.writes(place, 5)
    world.ground.wrote(CHANGELOG, 0, 8)
    world.surveyor.change(CHANGELOG, "changelog-1", {0: 2})
    world.ground.wrote(CHANGELOG, 0, 33)
    ends = {1: 8, 2: 33}  # the earlier leader's part, and the log under the new one

    async def epoch_ends(epochs: Mapping[Place, int]) -> dict[Place, int]:
        world.ground.wrote(CHANGELOG, 0, 40)  # on and on, while the answer is under way
        return {asked: ends[epoch] for asked, epoch in epochs.items()}

    world.surveyor.epoch_ends = epoch_ends
    await world.ground.refresh()
    assert world.ground.written[place] == (2, 40)


async def test_the_marks_of_others_tell_of_a_topic_whose_offsets_are_gone(
    world: SimpleNamespace,
) -> None:
    """Kafka forgets a topic's offsets with the topic."""
    journal, changelog = TopicPartition(JOURNAL, 0), TopicPartition(CHANGELOG, 0)
    group = FakeGroup()
    mark = world.ground.mark((CHANGELOG, 0), 4)
    group.committed[changelog] = OffsetAndMetadata(4, mark)
    findings = await world.ground.find(group, [journal, changelog])
    assert findings[journal].verdict.change is Change.FORGOTTEN
    assert findings[changelog].verdict.change is None
    assert world.ground.is_current(decode_mark(mark), CHANGELOG)
    world.surveyor.change(JOURNAL, "journal-2", {0: 0})
    world.ground.survey = await world.surveyor.look([])  # as after a restart
    findings = await world.ground.find(group, [journal, changelog])
    assert findings[journal].verdict.change is Change.MADE_ANEW
    assert findings[changelog].verdict.change is None
    assert not world.ground.is_current(decode_mark(mark), CHANGELOG)


async def test_before_the_first_look_nothing_is_known() -> None:
    """Then nothing is marked and nothing refused."""
    ground = Ground(Settings(), (), (), print)
    assert ground.mark((JOURNAL, 0), 3) == ""
    assert ground.incarnation(JOURNAL) == "unknown"
    await ground.refresh()
