"""Guards every fetch of a consumer: nothing is read past a place where the log is another one.

aiokafka goes on silently where it should not. An offset out of range is "reset" to the beginning;
a broker that came back without its unflushed tail, and was written on since, has new records below
the consumer's position that nobody would ever read. Here each answer is looked at before aiokafka
sees it (KIP-320, from the outside): the leader epoch stands in the head of every batch, and when
it rises the new leader is asked where the old epoch ended. Below our position means that what we
have read is gone. After any error the topics' ids are compared, since a topic that was deleted and
made anew begins with an error too.
"""

import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

from aiokafka.errors import KafkaError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import TopicPartition

from agents_stream.kafka.survey import NO_EPOCH, Place, Surveyor

_HEAD: Final = struct.Struct(">qiib")  # base offset, length, leader epoch, magic
_BEFORE_BATCH: Final = 12  # the base offset and the length itself are not in the length
_V2: Final = 2
_OUT_OF_RANGE: Final = 1
MAX_RISES: Final = 32


class GroundChanged(Exception):  # noqa: N818 - it says what happened
    """What was read is not what the log holds now. The message says it to a person."""


class Epochs:
    """From which offset on a partition's records have which leader epoch; the last few rises."""

    def __init__(self, epoch: int = NO_EPOCH) -> None:
        self._rises: list[tuple[int, int]] = [(-1, epoch)]

    @property
    def last(self) -> int:
        """The newest epoch seen."""
        return self._rises[-1][1]

    def note(self, base_offset: int, epoch: int) -> None:
        """A batch that begins there has this epoch."""
        if epoch != self.last:
            self._rises.append((base_offset, epoch))
            del self._rises[:-MAX_RISES]

    def below(self, offset: int) -> int:
        """The epoch of the record just below an offset; NO_EPOCH where it is not known."""
        for start, epoch in reversed(self._rises):
            if start < offset:
                return epoch
        return NO_EPOCH


class FetchGuard:
    """Stands between an aiokafka consumer and its client.

    `changed` is called with the words of what happened; the fetch that showed it is never
    delivered. `held` is awaited before each fetch: until the starting points are decided.
    """

    def __init__(
        self,
        surveyor: Surveyor,
        changed: Callable[[str], None],
        held: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._surveyor = surveyor
        self._changed = changed
        self._held = held
        self._epochs: dict[Place, Epochs] = {}
        self._ids: dict[str, str] = {}
        self._cluster_id = ""
        self._suspect = False

    def watch(self, consumer: Any) -> None:
        """Look at every fetch of a started aiokafka consumer from now on."""
        client = consumer._client  # noqa: SLF001 - aiokafka has no public hook
        original = client.send

        async def send(node_id: Any, request: Any, **kwargs: Any) -> Any:
            if not isinstance(request, FetchRequest):
                return await original(node_id, request, **kwargs)
            if self._held is not None:
                await self._held()
            try:
                answer = await original(node_id, request, **kwargs)
            except KafkaError:
                self._suspect = True
                raise
            try:
                await self._examine(consumer, request, answer)
            except GroundChanged as error:
                self._changed(str(error))
                raise KafkaError(str(error)) from error
            return answer

        client.send = send

    def begin(
        self, ids: Mapping[str, str], epochs: Mapping[Place, int], cluster_id: str = ""
    ) -> None:
        """These partitions begin anew, with their topics and the epochs below their positions."""
        self._cluster_id = cluster_id
        self._ids |= ids
        self._epochs |= {place: Epochs(epoch) for place, epoch in epochs.items()}

    def epoch_below(self, place: Place, offset: int) -> int:
        """The leader epoch of the record below an offset, for the mark of a commit."""
        epochs = self._epochs.get(place)
        return NO_EPOCH if epochs is None else epochs.below(offset)

    async def _examine(self, consumer: Any, request: Any, answer: Any) -> None:
        asked = {
            (topic, partition): offset
            for topic, partitions in request.topics
            for partition, offset, *_ in partitions
        }
        for topic, partitions in answer.topics:
            for partition, code, _highwater, *data in partitions:
                place = topic, partition
                if not _is_current(consumer, place, asked[place]):
                    continue
                if code:
                    self._suspect = True
                if code == _OUT_OF_RANGE:
                    await self._examine_ids()
                    raise GroundChanged(_out_of_range(place, asked[place]))
                if not code and data[-1]:
                    await self._examine_batches(place, asked[place], data[-1])
        if self._suspect and self._ids:
            await self._examine_ids()

    async def _examine_batches(self, place: Place, position: int, data: bytes) -> None:
        epochs = self._epochs.get(place)
        if epochs is None:
            return
        for base_offset, epoch in heads(data):
            if epoch == epochs.last:
                continue
            if epoch < epochs.last:
                self._suspect = True
                await self._examine_ids()
                raise GroundChanged(_tail_lost(place, position))
            if epochs.last != NO_EPOCH and base_offset >= position:
                ends = await self._surveyor.epoch_ends({place: epochs.last})
                if ends.get(place, 0) < position:
                    raise GroundChanged(_tail_lost(place, position))
            elif epochs.last != NO_EPOCH:
                raise GroundChanged(_tail_lost(place, position))
            epochs.note(base_offset, epoch)
            position = max(position, base_offset)

    async def _examine_ids(self) -> None:
        """After an error: are they still the same topics? One that is missing says so itself."""
        seen = await self._surveyor.look(self._ids)
        if self._cluster_id and seen.cluster_id != self._cluster_id:
            raise GroundChanged(another_cluster(self._cluster_id, seen.cluster_id))
        for topic, topic_id in self._ids.items():
            now = seen.topic_id(topic)
            if now is not None and now != topic_id:
                raise GroundChanged(made_anew(topic))
        self._suspect = False


def heads(data: bytes) -> Iterator[tuple[int, int]]:
    """The base offset and the leader epoch of each batch in a fetch's answer."""
    at = 0
    while at + _HEAD.size <= len(data):
        base_offset, length, epoch, magic = _HEAD.unpack_from(data, at)
        if magic < _V2 or length <= 0:
            return
        yield base_offset, epoch
        at += _BEFORE_BATCH + length


def _is_current(consumer: Any, place: Place, offset: int) -> bool:
    """Whether aiokafka will use this part of the answer at all."""
    subscription = consumer._subscription.subscription  # noqa: SLF001 - as its fetcher does
    assignment = None if subscription is None else subscription.assignment
    tp = TopicPartition(*place)
    if assignment is None or tp not in assignment.tps:
        return False
    state = assignment.state_value(tp)
    return bool(state.has_valid_position and state.position == offset)


def another_cluster(before: str, now: str) -> str:
    """Words for a cluster that was replaced under a running process."""
    return (
        f"another Kafka cluster answers at this address: it was {before}, now it is {now}. Check "
        "AGENTS_STREAM_BOOTSTRAP_SERVERS and what it resolves to. Nothing is carried over from one "
        "cluster to the other"
    )


def made_anew(topic: str) -> str:
    """Words for a topic that was replaced under a running process."""
    return (
        f"{topic} was deleted and made anew while this process ran. What it held and nobody had "
        "read is gone. At its restart the process says what follows from that"
    )


def _out_of_range(place: Place, offset: int) -> str:
    return (
        f"{place[0]}/{place[1]} has no offset {offset} any more: the topic was made anew, a broker "
        "lost its tail, or records were deleted before they were read. At its restart the process "
        "says which, and goes on where that loses nothing"
    )


def _tail_lost(place: Place, offset: int) -> str:
    return (
        f"{place[0]}/{place[1]} lost its tail: records below offset {offset} that were read are "
        "gone, and others stand in their place (a broker stopped hard before it had written them "
        "to disk). The process reads again from where the log is another one"
    )
