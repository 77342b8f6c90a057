"""A short siege in CI; `make hostile RECORDS=1000000` is the long one."""

from agents_stream.settings import Settings
from tests.hostile.kinds import HEAVY, MANY
from tests.hostile.siege import besiege

RECORDS = 20_000
SEED = 20_260_131


async def test_hostile_records_are_buried_or_applied_and_stop_nothing(
    kafka_settings: Settings,
) -> None:
    """G10, G1, G11: each record once in the journal or the letters; canaries sing; memory bounded.

    The worker is never restarted: that would hide what it died of.
    """
    times = {"data_reply_timeout": 60_000, "promos_reply_timeout": 2_000}
    report = await besiege(kafka_settings.model_copy(update=times), RECORDS, SEED)
    assert report.faults == []
    assert set(MANY) | set(HEAVY) <= set(report.sent.kinds)
    assert report.sent.count >= RECORDS
    assert not {reason for _, reason in report.buried} & {"reducer_error"}
    assert report.canaries > 2
