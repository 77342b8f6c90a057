"""The worker's metrics, in Prometheus' default registry. Labels are closed lists, never ids."""

from collections.abc import Iterable
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_MS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.5, 5, 30, 300)

LETTER_REASONS: Final = (
    "invalid_json",
    "invalid_schema",
    "unknown_event",
    "too_large",
    "invalid_timestamp",
    "reducer_error",
    "retries_exhausted",
    "tool_failed",
    "tool_unknown",
)
"""What a worker buries for."""

INPUTS: Final = Counter(
    "agents_stream_journal_entries", "Records accepted into the journal", ["name"]
)
KEYLESS: Final = Counter("agents_stream_keyless_records", "Accepted records without a key")
DEAD_LETTERS: Final = Counter(
    "agents_stream_dead_letters", "Records and commands put into the dead letters", ["reason"]
)
for _reason in LETTER_REASONS:
    # At zero from the start: of a series that begins with its first letter no increase is seen.
    DEAD_LETTERS.labels(reason=_reason)
LETTERS_WRITTEN: Final = Gauge(
    "agents_stream_dead_letters_written",
    "Records ever written to agent.dead_letters, by workers and gateways, at the last look",
)
DECISIONS: Final = Counter(
    "agents_stream_decisions", "Journal entries decided on", ["kind", "name"]
)
REASONS: Final = Counter(
    "agents_stream_reasons", "Why a decision did nothing, or less than one may think", ["reason"]
)
ACTIONS: Final = Counter("agents_stream_actions", "Actions published by effects", ["type"])
DEADLINES_ENDED: Final = Counter(
    "agents_stream_deadlines_ended", "Deadlines that ended", ["name", "end"]
)
LATENESS: Final = Histogram(
    "agents_stream_deadline_lateness_seconds",
    "From the due time to the deadline's place in the journal",
    buckets=_MS,
)
PENDING_TIMERS: Final = Gauge("agents_stream_pending_timers", "Deadlines in the wheels")
SESSIONS: Final = Gauge("agents_stream_session_records", "Rows in this worker's table")
RECOVERY_SECONDS: Final = Gauge("agents_stream_recovery_seconds", "The last recovery's duration")
FORGOTTEN: Final = Counter(
    "agents_stream_sessions_forgotten", "Closed sessions that left the table of this worker"
)
OLDEST_OPEN_SECONDS: Final = Gauge(
    "agents_stream_oldest_open_session_seconds",
    "For how long the oldest open session of this worker has been known, at the last look",
)
RETENTION_SECONDS: Final = Gauge(
    "agents_stream_retention_seconds",
    "For how long the cluster keeps the journal, and the input that it keeps shortest",
    ["topics"],
)
GROUND_CHANGES: Final = Counter(
    "agents_stream_ground_changes",
    "Partitions that were not as the group had left them",
    ["topic", "change"],
)
RECORDS_LOST: Final = Counter(
    "agents_stream_records_lost", "Records that Kafka deleted before they were read", ["topic"]
)


def count_losses_of(topics: Iterable[str]) -> None:
    """Show what was lost of these topics from the start on, as zero: a loss is then an increase."""
    for topic in topics:
        RECORDS_LOST.labels(topic=topic)
