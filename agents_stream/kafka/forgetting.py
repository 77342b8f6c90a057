"""When a closed session may leave the table: once nothing old can name it any more.

A stub is kept so that what comes a second time is recognised (G2). What can come a second time is
what Kafka still holds: entries of the journal, read again by a worker that lost its offsets, and
records of the inputs, appended again by a paused one. Of each of these topics the record says how
far it has come; once all of them begin beyond that, nothing is left that it could recognise. Its
journal is empty then too, so that its replay and what stands agree: nothing (G8).

The tombstone is written like a row: by the owner of the partition, between two passes, with the
fence's stamp, acknowledged before the row is taken out. A worker that was paused cannot put an old
row behind it: whatever it believes is older than MIN_AGE_MS, and the fence refuses it after 5 s.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from aiokafka.structs import TopicPartition

from agents_stream.core.session import SessionRecord

MIN_AGE_MS: Final = 86_400_000
"""A day: beyond all that a paused worker, or brokers' clocks that disagree, could make of it."""

TOMBSTONES_KEPT_MS: Final = 43_200_000
"""Half of the changelog's `delete.retention.ms`: what is younger has its tombstones still."""


def may_leave(
    record: SessionRecord, journal_begin: int, begins: Mapping[str, int], now_ms: int
) -> bool:
    """Whether nothing that Kafka still holds names this session.

    `begins` gives the first offset of each source partition (`topic/number`); of one that is not
    there any more nothing can come.
    """
    if record.status == "open" or record.pending or record.deadlines or record.flows:
        return False  # an order under way may still have to be told (SPEC §4)
    if now_ms - record.journal_timestamp < MIN_AGE_MS:
        return False
    if record.journal_offset >= journal_begin:
        return False
    return all(begins.get(place, math.inf) > offset for place, (offset, _) in record.seen.items())


async def must_be_read_anew(
    reader: Any, tp: TopicPartition, found: int, end: int, now_ms: int
) -> bool:
    """Whether rows on disk, complete up to `found`, are not to be read on from there.

    Sessions may have left since, and compaction drops a tombstone after a while: then nothing
    tells that its row must go. Beyond the end the changelog tells nothing at all.
    """
    if found >= end:
        return found > end
    since_ms = max(0, now_ms - TOMBSTONES_KEPT_MS)
    young = (await reader.offsets_for_times({tp: since_ms}))[tp]
    return young is None or bool(found < young.offset)
