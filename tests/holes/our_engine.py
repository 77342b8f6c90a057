"""Our engine with one plain stage over one topic: `python -m tests.holes.our_engine`.

What `blocking` in `plain_faust.py` is with Faust as it comes. The whole worker would not do: what
its stages append wakes the long poll of the consumer that they share.
"""

import asyncio
import time
from collections.abc import Sequence

import structlog

from agents_stream.kafka.consumer import Batch
from agents_stream.kafka.engine import Engine, create_app
from agents_stream.kafka.stage import BatchStage
from agents_stream.kafka.table import TABLE_NAME
from agents_stream.kafka.topics import SESSIONS_CHANGELOG
from agents_stream.settings import Settings

TOPIC = "agent.session.updated"

log = structlog.get_logger()


class Blocking(BatchStage):
    """Holds the event loop for 0.4 s when an event says so."""

    name = "blocking"

    async def work(self, batches: Sequence[Batch]) -> None:
        """Say how long each event has been in Kafka."""
        for batch in batches:
            for record in batch.records:
                waited_ms = time.time() * 1_000 - record.timestamp
                log.info("handled", offset=record.offset, waited_ms=round(waited_ms))
                if record.value == b"block":
                    log.info("held")
                    time.sleep(0.4)  # noqa: ASYNC251 - the point of it
            self.consumer.done(batch.topic, batch.partition, batch.position)


async def main() -> None:
    """Run it until it is killed."""
    settings = Settings()
    engine = Engine(settings)
    # A worker learns the brokers' time from a record of its own before it joins the group.
    engine.clock.observe(round(time.time() * 1_000))
    app = create_app(engine)
    app.Table(
        TABLE_NAME,
        key_type=bytes,
        value_type=bytes,
        partitions=settings.partitions,
        changelog_topic=app.topic(
            engine.topic(SESSIONS_CHANGELOG), key_type=bytes, value_type=bytes
        ),
    )
    stage = Blocking(engine, app)
    channel = app.topic(engine.topic(TOPIC), key_type=bytes, value_type=bytes)
    app.agent(channel, name=stage.name)(stage.run)
    await app.start()
    log.info("started")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
