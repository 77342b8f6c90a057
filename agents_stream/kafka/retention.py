"""How long Kafka keeps what sessions were made of, against the age of the oldest open one.

A session whose first entries are gone goes on, but nobody can replay, prove or repair it. That is
a choice of whoever runs the system; here it is told in time.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import structlog

from agents_stream.kafka import metrics, ranges
from agents_stream.kafka.engine import Engine
from agents_stream.kafka.topic_admin import read_configs
from agents_stream.kafka.topics import JOURNAL, load_topics

log = structlog.get_logger()

_DAY_MS: Final = 86_400_000
_CONSEQUENCES: Final = {
    "journal": "sessions that outlive it cannot be replayed, proved or repaired",
    "inputs": "what a worker finds after an outage that long is not all that there was",
}


@dataclass(frozen=True, slots=True)
class Oldest:
    """The open session of a partition whose journal begins first; `touched_at_ms`: and ends."""

    session_id: str
    partition: int
    opened_offset: int
    touched_at_ms: int


async def watch(engine: Engine, oldest: Iterable[Oldest], now_ms: int) -> list[str]:
    """Set the metrics, and warn of each retention that is shorter than the oldest open session.

    Returns:
        Which are: `journal`, `inputs`.

    """
    kept_ms = await kept(engine)
    for name, milliseconds in kept_ms.items():
        metrics.RETENTION_SECONDS.labels(topics=name).set(milliseconds / 1_000)
    ages = [(await _opened_at(engine, one), one) for one in oldest]
    if not ages:
        metrics.OLDEST_OPEN_SECONDS.set(0)
        return []
    opened_at_ms, eldest = min(ages, key=lambda pair: pair[0])
    age_ms = max(0, now_ms - opened_at_ms)
    metrics.OLDEST_OPEN_SECONDS.set(age_ms / 1_000)
    short = [name for name, milliseconds in kept_ms.items() if milliseconds < age_ms]
    for name in short:
        log.warning(
            "retention is shorter than the oldest open session",
            topics=name,
            kept_days=round(kept_ms[name] / _DAY_MS, 1),
            oldest_days=round(age_ms / _DAY_MS, 1),
            session=eldest.session_id,
            consequence=_CONSEQUENCES[name],
        )
    return short


async def kept(engine: Engine) -> dict[str, float]:
    """For how long (ms) the cluster keeps the journal, and the input that it keeps shortest."""
    topics = load_topics()
    prefix = engine.settings.topic_prefix
    journal = topics.name(JOURNAL, prefix)
    inputs = [topics.name(spec.name, prefix) for spec in topics.inputs]
    configs = await read_configs(engine.settings, [journal, *inputs])
    return {
        "journal": _retention_ms(configs[journal]),
        "inputs": min(_retention_ms(configs[name]) for name in inputs),
    }


def _retention_ms(config: Mapping[str, str]) -> float:
    milliseconds = int(config["retention.ms"])
    return math.inf if milliseconds < 0 else milliseconds


async def _opened_at(engine: Engine, one: Oldest) -> int:
    """When a session's first entry was written; where it is gone, at the latest."""
    place = engine.topic(JOURNAL), one.partition
    async with ranges.reader(engine.settings) as client:
        begin, end = (await ranges.bounds(client, [place]))[place]
        start = max(begin, one.opened_offset)
        # The next record may be further on: an offset may be that of a transaction's marker.
        async with aclosing(ranges.read(client, {place: (start, end)})) as lines:
            async for line in lines:
                return min(int(line.timestamp), one.touched_at_ms)
    return one.touched_at_ms
