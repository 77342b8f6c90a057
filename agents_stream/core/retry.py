"""When the next attempt goes out (SPEC §5): a pure function of what failed, and of nothing else.

Replaying the journal must find the same time again (G8), and commands that failed together must not
all come back together. So the spread is derived from the command's id and the attempt's number.
"""

from hashlib import sha256

MAX_ATTEMPTS = 4
"""The first attempt and three retries."""

MAX_BACKOFF_MS = 5 * 60 * 1000
"""Our own backoff grows no further than this."""

MAX_RETRY_AFTER_MS = 24 * 60 * 60 * 1000
"""A tool that asks for more is asked again after this."""

_MAX_DOUBLINGS = 32
_SPREAD_BITS = 64


def next_attempt_at_ms(
    command_id: str, attempt: int, result_at_ms: int, backoff_ms: int, retry_after_ms: int | None
) -> int:
    """Return when attempt `attempt + 1` goes out, given that `attempt` (from 1) has failed.

    `result_at_ms` is the time of the result's record, `backoff_ms` the setting RETRY_BACKOFF,
    `retry_after_ms` what the tool asked for. Whether there is a next attempt at all is not asked
    here: see `MAX_ATTEMPTS`.
    """
    return result_at_ms + backoff_delay_ms(command_id, attempt, backoff_ms, retry_after_ms)


def backoff_delay_ms(seed: str, attempt: int, backoff_ms: int, retry_after_ms: int | None) -> int:
    """Return how long to wait after attempt `attempt` (from 1) has failed.

    That is `backoff_ms` x 2**(attempt-1) x (1 to 1.5, from `seed` and `attempt`), at most
    MAX_BACKOFF_MS; or `retry_after_ms`, at most MAX_RETRY_AFTER_MS, where that is longer. Absurd
    numbers are taken as the nearest sensible ones: a tool's answer must not stop its session.
    """
    number = min(max(attempt, 1), _MAX_DOUBLINGS)
    base_ms = min(max(backoff_ms, 0), MAX_BACKOFF_MS) << (number - 1)
    digest = sha256(f"{seed}\0{number}".encode("utf-8", "surrogatepass")).digest()
    spread = int.from_bytes(digest[: _SPREAD_BITS // 8], "big")
    delay_ms = base_ms + (base_ms * spread >> (_SPREAD_BITS + 1))
    asked_ms = min(retry_after_ms or 0, MAX_RETRY_AFTER_MS)
    return max(min(delay_ms, MAX_BACKOFF_MS), asked_ms)
