"""When what died is started again, and when one gives up. Pure.

The pause doubles from FIRST_PAUSE_S to LONGEST_PAUSE_S with each death in a row; who has lived for
HEALTHY_S begins anew. MAX_QUICK_DEATHS in a row mean that another start will not help either. A
death for want of Kafka is not its own: it counts for nothing, and is tried again for ever.
"""

import signal
from typing import Final

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0
HEALTHY_S: Final = 30.0
MAX_QUICK_DEATHS: Final = 10
UNREACHABLE: Final = 3


class Restarts:
    """Counts the deaths of one process."""

    def __init__(self) -> None:
        self.deaths_in_a_row = 0

    def pause_s(self, lived_s: float, code: int = 1) -> float | None:
        """Note a death after `lived_s`; say how long to wait before the next start, or None."""
        if code == UNREACHABLE:
            return FIRST_PAUSE_S
        if lived_s >= HEALTHY_S:
            self.deaths_in_a_row = 0
        self.deaths_in_a_row += 1
        if self.deaths_in_a_row >= MAX_QUICK_DEATHS:
            return None
        doublings = self.deaths_in_a_row - 1
        return float(min(FIRST_PAUSE_S * 2**doublings, LONGEST_PAUSE_S))


def exit_words(code: int) -> str:
    """Say how a process ended, from its return code as Python gives it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
