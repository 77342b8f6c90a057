"""What brokers tell of topics and leaders, in the place of `kafka/survey.py`'s client."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from agents_stream.kafka.survey import Survey, TopicSeen
from tests.simulation.loop import current

if TYPE_CHECKING:
    from tests.simulation.world import World

SURVEY_LIMIT_S: Final = 20.0


class SimSurveyor:
    """What the brokers say about topics and leaders, in the place of `Surveyor`."""

    def __init__(self, world: "World", _: Any) -> None:
        process = current()
        assert process is not None
        self.world, self.process = world, process

    async def start(self) -> None:
        """Connect."""
        await self.world.network.ask(self.process, "connect", lambda: None)

    async def stop(self) -> None:
        """Nothing is open."""

    async def look(self, topics: Iterable[str]) -> Survey:
        """Every topic's id and leaders."""

        def act() -> Survey:
            return Survey("cluster", {topic: self._seen(topic) for topic in names})

        names = list(topics)
        return await self.world.network.ask(self.process, "survey", act, SURVEY_LIMIT_S)

    def _seen(self, topic: str) -> TopicSeen:
        logs = self.world.cluster.topic(topic)
        epochs = {log.number: log.epoch for log in logs}
        return TopicSeen(f"id of {topic}", epochs, {log.number: log.leader for log in logs})

    async def epoch_ends(self, epochs: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        """Where leaders' epochs ended."""

        def act() -> dict[tuple[str, int], int]:
            logs = self.world.cluster.logs
            return {place: logs[place].epoch_end(epoch) for place, epoch in epochs.items()}

        return await self.world.network.ask(self.process, "survey", act, SURVEY_LIMIT_S)
