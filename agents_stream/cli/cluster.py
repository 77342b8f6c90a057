"""What commands that read or write Kafka themselves ask of it first."""

from typing import Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from agents_stream.core.errors import RetryableError, TerminalError
from agents_stream.kafka.connection import client_options, require_broker
from agents_stream.kafka.topics import load_topics
from agents_stream.settings import Settings

BROKER_LIMIT_S: Final = 8.0
"""How long a command waits for a broker that does not answer."""


async def as_in_cluster(settings: Settings, *names: str) -> Settings:
    """The settings with the partition count that the topics `names` really have.

    Raises:
        BrokerUnreachable: Kafka does not answer.
        TerminalError: a topic is missing, or their counts differ.

    """
    await require_broker(settings, BROKER_LIMIT_S)
    wanted = [load_topics().name(name, settings.topic_prefix) for name in names]
    counts = await _partition_counts(settings)
    missing = [name for name in wanted if name not in counts]
    if missing:
        raise TerminalError(
            f"{', '.join(missing)} is missing in Kafka at {settings.bootstrap_servers}: create the"
            " topics with `agents-stream topics apply`, or set AGENTS_STREAM_TOPIC_PREFIX to theirs"
        )
    different = {counts[name] for name in wanted}
    if len(different) > 1:
        raise TerminalError(
            f"{', '.join(wanted)} have different numbers of partitions: `agents-stream topics"
            " check` says more"
        )
    return settings.model_copy(update={"partitions": different.pop()})


async def _partition_counts(settings: Settings) -> dict[str, int]:
    """How many partitions each topic has. Asks for all: asking for one could create it."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        return {one["topic"]: len(one["partitions"]) for one in await admin.describe_topics()}
    except KafkaError as error:
        raise RetryableError(
            f"Kafka at {settings.bootstrap_servers} does not answer: {error!r}"
        ) from error
    finally:
        await admin.close()
