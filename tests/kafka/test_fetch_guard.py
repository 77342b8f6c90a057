"""A fetch that shows another log than the one that was read is never delivered."""

import struct
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import TopicPartition

from agents_stream.kafka.fetch_guard import Epochs, FetchGuard, heads
from agents_stream.kafka.survey import NO_EPOCH, Survey, TopicSeen

PLACE = ("journal", 0)


def batches(*heads_of: tuple[int, int]) -> bytes:
    """Batches of two records each, by base offset and leader epoch; only their heads matter."""
    body = bytes(40)
    return b"".join(
        struct.pack(">qiib", base, len(body) + 5, epoch, 2) + body for base, epoch in heads_of
    )


class Cluster:
    """What the brokers would say, and a consumer that fetches."""

    def __init__(self) -> None:
        self.ends: dict[Any, int] = {}
        self.topic_id = "one"
        self.cluster_id = "c"
        self.answers: list[Any] = []
        self.words: list[str] = []
        self._client = SimpleNamespace(send=self._send)
        self.state = SimpleNamespace(has_valid_position=True, position=0)
        assignment = SimpleNamespace(tps={TopicPartition(*PLACE)}, state_value=lambda _: self.state)
        self._subscription = SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
        self.guard = FetchGuard(self, self.words.append)  # type: ignore[arg-type]
        self.guard.watch(self)
        self.guard.begin({"journal": "one"}, {PLACE: 1}, "c")

    async def _send(self, _node: int, _request: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def epoch_ends(self, epochs: Any) -> dict[Any, int]:
        """Where the epochs asked for ended."""
        return {place: self.ends[place, epoch] for place, epoch in epochs.items()}

    async def look(self, _topics: Any) -> Survey:
        """The topic as it is now."""
        return Survey(self.cluster_id, {"journal": TopicSeen(self.topic_id, {0: 1}, {0: 1})})

    async def fetch(self, position: int, data: bytes, code: int = 0) -> bool:
        """Fetch at a position; whether it would be delivered."""
        self.state.position = position
        partition: tuple[Any, ...] = (0, code, 99, 99, [], data)
        self.answers.append(SimpleNamespace(topics=[("journal", [partition])]))
        request = FetchRequest(1, 1, 1, 1, [("journal", [(0, position, 1)])])
        try:
            await self._client.send(1, request)
        except KafkaError:
            return False
        return True


async def test_a_new_leader_that_has_everything_is_believed() -> None:
    """A rolling restart of the brokers raises the epoch and loses nothing."""
    cluster = Cluster()
    cluster.ends[PLACE, 1] = 4
    assert await cluster.fetch(2, batches((2, 1), (4, 2)))
    assert await cluster.fetch(6, batches((6, 2)))
    assert cluster.words == []
    assert cluster.guard.epoch_below(PLACE, 4) == 1
    assert cluster.guard.epoch_below(PLACE, 5) == 2


async def test_what_was_written_over_a_lost_tail_is_not_delivered() -> None:
    """G1: records 3 to 5 were read and are gone; those that stand there now were never read."""
    cluster = Cluster()
    cluster.ends[PLACE, 1] = 3
    assert not await cluster.fetch(6, batches((6, 3)))
    assert "lost its tail" in cluster.words[0]


async def test_a_batch_that_lies_across_the_position_is_of_the_same_leader() -> None:
    """Where it is another's, what stands just below our position is not what was read."""
    cluster = Cluster()
    assert await cluster.fetch(3, batches((2, 1)))
    assert not await cluster.fetch(5, batches((4, 2)))


async def test_an_offset_out_of_range_is_no_reset() -> None:
    """Aiokafka would begin at the beginning and say nothing."""
    cluster = Cluster()
    assert not await cluster.fetch(7, b"", code=1)
    assert "has no offset 7 any more" in cluster.words[0]


async def test_a_topic_made_anew_is_known_by_its_id() -> None:
    """It begins with an error; the new topic may have grown past our position since."""
    cluster = Cluster()
    assert await cluster.fetch(3, batches((3, 1)))
    cluster.topic_id = "two"
    cluster.answers.append(KafkaError("the connection broke"))
    with pytest.raises(KafkaError):
        await cluster._client.send(1, FetchRequest(1, 1, 1, 1, []))
    assert not await cluster.fetch(5, batches((5, 1)))
    assert "made anew" in cluster.words[0]


@pytest.mark.parametrize("code", [0, 1])
async def test_another_cluster_is_called_so(code: int) -> None:
    """Its topics are others too, and its offsets out of range: the cause is what is said."""
    cluster = Cluster()
    cluster.cluster_id, cluster.topic_id = "d", "two"
    cluster.guard._suspect = True
    assert not await cluster.fetch(3, batches((3, 1)), code)
    assert "another Kafka cluster answers" in cluster.words[0]


async def test_an_answer_that_nobody_will_use_is_not_looked_at() -> None:
    """A rebalance moved the position while the fetch was under way."""
    cluster = Cluster()
    cluster.answers.append(
        SimpleNamespace(topics=[("journal", [(0, 1, 99, 99, [], batches((0, 0)))])])
    )
    cluster.state.position = 9
    await cluster._client.send(1, FetchRequest(1, 1, 1, 1, [("journal", [(0, 3, 1)])]))
    assert cluster.words == []


def test_the_heads_of_whatever_came() -> None:
    """The last batch of a fetch may be cut off anywhere."""
    data = batches((0, 1), (2, 2))
    assert list(heads(data)) == [(0, 1), (2, 2)]
    for cut in range(len(data)):
        assert list(heads(data[:cut])) in ([], [(0, 1)], [(0, 1), (2, 2)])


def test_the_epoch_below_an_offset() -> None:
    """It goes into the mark of a commit, which lags behind what was fetched."""
    epochs = Epochs()
    assert epochs.below(4) == NO_EPOCH
    epochs.note(4, 1)
    epochs.note(8, 2)
    assert [epochs.below(offset) for offset in (4, 5, 8, 9)] == [NO_EPOCH, 1, 1, 2]
    for number in range(100):
        epochs.note(10 + number, 3 + number)
    assert epochs.below(9) == NO_EPOCH
