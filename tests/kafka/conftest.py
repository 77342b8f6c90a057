"""What tests of changed ground share: a broker of their own, which they kill."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents_stream.kafka import embedded
from agents_stream.settings import Settings
from tests.conftest import free_port
from tests.kafka.ground_world import ForgetfulBroker


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForgetfulBroker]:
    """A broker of this module, which tests kill."""
    broker = ForgetfulBroker(
        Settings(
            bootstrap_servers=f"127.0.0.1:{free_port()}",
            data_dir=tmp_path_factory.mktemp("forgetful"),
        )
    )
    broker.start()
    yield broker
    embedded.stop(broker.settings)


@pytest.fixture
def ground(forgetful: ForgetfulBroker, tmp_path: Path) -> Settings:
    """Topics of one partition, apart for one test."""
    return Settings(
        bootstrap_servers=forgetful.settings.bootstrap_servers,
        topic_prefix=f"g{secrets.token_hex(4)}.",
        data_dir=tmp_path / "data",
        partitions=1,
        data_reply_timeout=1_500,
        promos_delay=1_000,
        promos_reply_timeout=2_000,
        retry_backoff=100,
    )
