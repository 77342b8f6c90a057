"""What many tests share: one embedded broker for the run, and settings apart for each test."""

import asyncio
import os
import random
import secrets
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from agents_stream.kafka import embedded
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.embedded import BrokerInfo
from agents_stream.settings import Settings

PORT_ATTEMPTS = 50

# A machine that is busy with other things makes no property false.
hypothesis.settings.register_profile("ours", deadline=None)
hypothesis.settings.load_profile("ours")


def free_port() -> int:
    """Find a port that is free now and that the system gives to no outgoing connection."""
    for _ in range(PORT_ATTEMPTS):
        port = random.randint(20_000, 32_000)
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no free port in {PORT_ATTEMPTS} attempts")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the broker, so that `-m "not kafka"` runs without it."""
    for item in items:
        if {"broker", "kafka_settings"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("kafka")


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> None:
    """Forget the AGENTS_STREAM_* variables of whoever runs the tests; they end with the process."""
    for name in [name for name in os.environ if name.startswith("AGENTS_STREAM_")]:
        del os.environ[name]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerInfo]:
    """Run one embedded broker of this test run, with the user's own cache of jars."""
    settings = Settings(
        bootstrap_servers=f"127.0.0.1:{free_port()}", data_dir=tmp_path_factory.mktemp("broker")
    )
    info = embedded.start(settings)
    yield info
    embedded.stop(settings)


@pytest.fixture
def kafka_settings(broker: BrokerInfo, tmp_path: Path) -> Iterator[Settings]:
    """Give settings apart for one test: topics, groups, data and port are its own; times short."""
    settings = Settings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=f"t{secrets.token_hex(4)}.",
        data_dir=tmp_path / "data",
        partitions=4,
        web_port=free_port(),
        data_reply_timeout=2_000,
        promos_delay=1_000,
        promos_reply_timeout=2_000,
        retry_backoff=100,
    )
    yield settings
    with ThreadPoolExecutor(1) as apart:  # the test's event loop is none of this clean-up's
        apart.submit(lambda: asyncio.run(_delete_topics(settings))).result()


async def _delete_topics(settings: Settings) -> None:
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        names = await admin.list_topics()
        mine = [name for name in names if name.startswith(settings.topic_prefix)]
        if mine:
            await admin.delete_topics(mine)
    finally:
        await admin.close()
