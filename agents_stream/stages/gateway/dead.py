"""Putting records into `agent.dead_letters`, in the form that all stages share."""

from typing import Final

import orjson
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.structs import ConsumerRecord

from agents_stream.kafka.topics import DEAD_LETTERS, load_topics
from agents_stream.settings import Settings
from agents_stream.stages.dead_letters import letter_key, letter_of
from agents_stream.stages.gateway import metrics

log = structlog.get_logger()

MAX_DETAIL_CHARS: Final = 500


class DeadLetters:
    """Buries records of the topics that the gateway reads."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer) -> None:
        self._topic = load_topics().name(DEAD_LETTERS, settings.topic_prefix)
        self._producer = producer

    async def bury(self, record: ConsumerRecord, reason: str, detail: str) -> None:
        """Publish a dead letter about a record, keyed as the record was, and wait for its ack."""
        letter = letter_of(record, reason, detail[:MAX_DETAIL_CHARS])
        key = letter_key(record.key)
        await self._producer.send_and_wait(self._topic, value=orjson.dumps(letter), key=key)
        metrics.dead_letters.labels(reason=reason).inc()
        log.warning(
            "record_buried",
            reason=reason,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
        )
