"""Kafka and processes as seen from outside."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import ConsumerRecord

from agents_stream.kafka import ranges
from agents_stream.settings import Settings


async def until(condition: Callable[[], Any], why: Callable[[], str], seconds: float) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not seen within {seconds} s: {why()}")
        await asyncio.sleep(0.05)


async def configure(admin: AIOKafkaAdminClient, topic: str, config: Mapping[str, str]) -> None:
    """Give a topic these settings, and no others, while it is in use."""
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs=dict(config))
    await admin.alter_configs([resource])


async def read_all(settings: Settings, topic: str, partitions: int) -> list[ConsumerRecord]:
    """Everything on a topic."""
    async with ranges.reader(settings, "read_uncommitted") as client:
        spans = await ranges.bounds(client, [(topic, number) for number in range(partitions)])
        return [record async for record in ranges.read(client, spans)]
