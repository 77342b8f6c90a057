"""effects: actions become commands, events, outcomes and dead letters on their topics.

It keeps nothing. After a crash it publishes again what it had not acknowledged, with the same ids.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, assert_never

import orjson
from aiokafka.structs import ConsumerRecord

from agents_stream.core.actions import (
    Action,
    BuryDeadLetter,
    IssueCommand,
    PublishEvent,
    PublishOutcome,
    decode_action,
)
from agents_stream.kafka import metrics
from agents_stream.kafka.appender import Appender, Line, Pending
from agents_stream.kafka.consumer import Batch
from agents_stream.kafka.engine import Engine
from agents_stream.kafka.stage import BatchStage
from agents_stream.kafka.topics import DEAD_LETTERS, OUTCOMES, load_topics, partition_for

MAX_LINES: Final = 2_000


class Effects(BatchStage):
    """The side-effect workers' publishing half; `gateway` performs the commands."""

    name = "effects"

    def __init__(self, engine: Engine, app: Any) -> None:
        super().__init__(engine, app)
        self._appender = Appender(engine.settings, engine.clock, engine.watchdog)
        self._event_topics = {
            name: engine.topic(spec.name) for name, spec in load_topics().events.items()
        }

    async def start(self) -> None:
        """Connect."""
        await self._appender.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._appender.stop()

    async def work(self, batches: Sequence[Batch]) -> None:
        """Publish what the batches hold, wait for the acks, acknowledge."""
        pending = Pending()
        count = 0
        for batch in batches:
            for record in batch.records:
                self._publish(pending, record)
                count += 1
                if count >= MAX_LINES:
                    await self._appender.append(pending)
                    self.moved()
                    self.consumer.done(batch.topic, batch.partition, record.offset + 1)
                    pending, count = Pending(), 0
        if pending.lines:
            await self._appender.append(pending)
        for batch in batches:
            self.consumer.done(batch.topic, batch.partition, batch.position)

    def _publish(self, pending: Pending, record: ConsumerRecord) -> None:
        line = orjson.loads(record.value)
        action = decode_action(line["action"])
        metrics.ACTIONS.labels(type=line["action"]["type"]).inc()
        key = line["sessionId"].encode()
        topic, body, headers = self._address(action)
        place = partition_for(key, self.engine.settings.partitions)
        if isinstance(action, PublishEvent) and action.partition is not None:
            place = action.partition
        pending.add(topic, place, Line(key, orjson.dumps(body), headers))

    def _address(
        self, action: Action
    ) -> tuple[str, Mapping[str, Any], tuple[tuple[str, bytes], ...]]:
        """Where an action goes, what is written there, and its headers."""
        match action:
            case IssueCommand(command):
                topic = self.engine.topic(f"tool.{command['tool']}")
                return topic, command, (("idempotency-key", command["id"].encode()),)
            case PublishEvent(envelope):
                return self._event_topics[envelope["name"]], envelope, _id(envelope)
            case PublishOutcome(outcome):
                return self.engine.topic(OUTCOMES), outcome, _id(outcome)
            case BuryDeadLetter(letter):
                metrics.DEAD_LETTERS.labels(reason=letter["reason"]).inc()
                return self.engine.topic(DEAD_LETTERS), letter, _id(letter)
            case _:
                assert_never(action)


def _id(body: Mapping[str, Any]) -> tuple[tuple[str, bytes], ...]:
    return (("id", body["id"].encode()),)
