"""The workers' group from outside: what a coordinator that does not know is never taken for."""

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import GroupAuthorizationFailedError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from agents_stream import worker_group
from agents_stream.core.errors import RetryableError
from agents_stream.settings import Settings
from agents_stream.worker_group import committed_offsets, member_count

LOADING = 14
SETTINGS = Settings()


class Admin:
    """An admin client whose coordinator answers with these error codes, one after the other."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)
        self.closed = False

    async def start(self) -> None:
        """Nothing to connect."""

    async def close(self) -> None:
        """Note it."""
        self.closed = True

    async def describe_consumer_groups(self, groups: list[str]) -> list[Any]:
        """A group of two; of none while it is being loaded."""
        code = self.codes.pop(0) if self.codes else 0
        members = [] if code else ["one", "two"]
        return [SimpleNamespace(groups=[(code, groups[0], "Stable", "", "", members, 0)])]

    async def list_consumer_group_offsets(self, _group: str) -> dict[TopicPartition, Any]:
        """What a loaded group has committed."""
        offsets = {0: 5, 1: -1}
        return {TopicPartition("t", n): OffsetAndMetadata(at, "") for n, at in offsets.items()}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for seconds."""
    monkeypatch.setattr(worker_group, "PAUSE_S", 0)


async def test_a_group_that_is_being_loaded_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither are its members gone nor its offsets: `timers rebuild` rests on both."""
    admin = Admin(LOADING, LOADING)
    monkeypatch.setattr(worker_group, "AIOKafkaAdminClient", lambda **_: admin)
    assert await member_count(SETTINGS) == 2
    admin.codes = [LOADING]
    assert await committed_offsets(SETTINGS) == {("t", 0): 5}
    assert admin.closed


@pytest.mark.parametrize("codes", [[LOADING] * 100, [GroupAuthorizationFailedError.errno]])
async def test_a_group_that_cannot_be_known(
    monkeypatch: pytest.MonkeyPatch, codes: list[int]
) -> None:
    """After a while, or where it is forbidden, it is an error and never an empty group."""
    monkeypatch.setattr(worker_group, "AIOKafkaAdminClient", lambda **_: Admin(*codes))
    with pytest.raises(RetryableError, match="group"):
        await member_count(SETTINGS)
