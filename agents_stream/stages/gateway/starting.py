"""What must be true before a group of the gateway may begin."""

from contextlib import aclosing

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from agents_stream.core.errors import TerminalError
from agents_stream.kafka import topic_admin
from agents_stream.kafka.ground import Ground
from agents_stream.kafka.marks import Change
from agents_stream.kafka.topics import load_topics
from agents_stream.settings import Settings
from agents_stream.stages.gateway.memory import group_of
from agents_stream.stages.gateway.memory_log import MemoryLog


async def refuse_unfit_topics(settings: Settings, names: tuple[str, ...]) -> None:
    """Refuse to start on topics that would break a guarantee. `names` are without prefix.

    Raises:
        TerminalError: they are missing, or not what `topics.yaml` asks for.
        BrokerUnreachable: Kafka does not answer.

    """
    ours = {load_topics().name(name, settings.topic_prefix) for name in names}
    wrong = [
        one.sentence
        for one in await topic_admin.check(settings)
        if one.breaks_guarantee and one.topic in ours
    ]
    if wrong:
        raise TerminalError("the gateway cannot work on these topics: " + "; ".join(wrong))


async def refuse_lost_offsets(
    settings: Settings,
    ground: Ground,
    consumer: AIOKafkaConsumer,
    topics: tuple[str, ...],
    group: str,
    memory_log: MemoryLog,
) -> None:
    """Refuse to start where the group once was and has no offsets any more.

    Kafka forgets a group that nobody used for 7 days. Begun anew it would do everything again, or
    skip what it has not done; which of the two is right, a person must say. A group that never
    began is the normal case of a first start: it takes what is there from the beginning.

    Raises:
        TerminalError: it has lost its offsets, and `START_FROM` says nothing.

    """
    if settings.start_from is not None:
        return
    tps = [
        TopicPartition(topic, number) for topic in topics for number in range(settings.partitions)
    ]
    if not await _without_offset(ground, consumer, tps):
        return
    begun: set[int] = set()
    starts: dict[int, int | None] = dict.fromkeys(range(settings.partitions))
    async with aclosing(memory_log.read(starts)) as records:
        async for record in records:
            if group_of(record) == group:
                begun.add(record.partition)
    if not begun:
        return
    # Asked again: a group commits before it writes its marker, so a marker that was read just now
    # without an offset read after it is no group that another gateway is beginning at this moment.
    lost = [tp for tp in await _without_offset(ground, consumer, tps) if tp.partition in begun]
    ends, begins = await consumer.end_offsets(tps), await consumer.beginning_offsets(tps)
    full = [tp for tp in lost if ends[tp] > begins[tp]]
    if full:
        where = ", ".join(f"{tp.topic}/{tp.partition}" for tp in full[:4])
        raise TerminalError(
            f"the consumer group {group} has lost its offsets (Kafka keeps those of an unused group"
            f" for 7 days), and there are records on {where}. Say where to go on, for this one"
            " start: AGENTS_STREAM_START_FROM=earliest performs again what the gateway's memory has"
            " forgotten, AGENTS_STREAM_START_FROM=latest performs only what comes from now on"
        )


async def _without_offset(
    ground: Ground, consumer: AIOKafkaConsumer, tps: list[TopicPartition]
) -> list[TopicPartition]:
    """The partitions without an offset, but for topics made anew: what they hold is new."""
    findings = await ground.find(consumer, tps)
    return [tp for tp, one in findings.items() if one.verdict.change is Change.FORGOTTEN]
