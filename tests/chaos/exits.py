"""Which ends of a process a fault explains. Everything else is a finding.

A process that was told to end must end as told. One that ends by itself must say why, in words
that fit a fault which it can have felt: the broker was away, or it had been paused.
"""

import signal
from collections.abc import Iterable
from typing import Final

from tests.chaos.history import Exit, FaultDone

# How long after the broker answers again a process may still end because of its absence, by what
# it says: the fence is met at once, an ack is awaited for half a minute, a start waits for 25 s,
# and the watchdog sees what stands still for a minute.
BROKER_ECHO_MS: Final = {
    "refused a record of the table as too old": 12_000,
    "watchdog:": 75_000,
    "": 40_000,
}
PAUSE_ECHO_MS: Final = 12_000
BROKER_FAULTS: Final = {"broker_kill", "broker_stop", "broker_pause"}
# A process that is still loading Python has not heard of signals yet.
YOUNG_S: Final = 3.0
KILLS: Final = dict.fromkeys(("worker_kill", "worker_crash", "gateway_kill", "gateway_crash"), -9)

# Words that are clear. What is a fault of ours by its own account is never explained.
CLEAR: Final = (
    "worker ends itself:",
    "no Kafka answers",
    "does not answer any more",
    "stopped answering",
)
# A broker that is killed loses nothing that it acknowledged: whoever says so is wrong.
NEVER: Final = (
    "this is a fault of agents-stream",
    "AssertionError",
    "Traceback",
    "lost its tail",
    "made anew",
    "lost its offsets",
)


def why_unexplained(one: Exit, faults: Iterable[FaultDone]) -> str | None:
    """Why no fault explains an exit; None where one does."""
    done = list(faults)
    if one.cause is not None:
        return _not_as_told(one, done)
    if any(words in one.words for words in NEVER):
        return "a fault of its own"
    if one.code not in {1, 3}:
        return "an exit code that it has no reason for"
    if not any(words in one.words for words in CLEAR):
        return "no clear words"
    if any(_felt(one, fault) for fault in done):
        return None
    return "no fault explains it"


def _not_as_told(one: Exit, done: list[FaultDone]) -> str | None:
    """A kill ends with -9, a wish with 0; without a broker a clean stop may not be possible."""
    wanted = KILLS.get(one.cause or "", 0)
    if one.code == wanted:
        return None
    if wanted == 0 and one.code == -signal.SIGTERM and one.lived_s < YOUNG_S:
        return None
    broker = [fault for fault in done if fault.kind in BROKER_FAULTS]
    if wanted == 0 and one.code in {1, 3} and any(_felt(one, fault) for fault in broker):
        return None
    return f"told to end by {one.cause}, which gives {wanted}"


def _felt(one: Exit, fault: FaultDone) -> bool:
    if fault.kind in BROKER_FAULTS:
        echo_ms = next(ms for words, ms in BROKER_ECHO_MS.items() if words in one.words)
        return fault.began_at_ms <= one.at_ms <= fault.ended_at_ms + echo_ms
    if fault.kind in {"worker_pause", "gateway_pause"} and fault.target == one.process:
        return fault.began_at_ms <= one.at_ms <= fault.ended_at_ms + PAUSE_ECHO_MS
    return False
