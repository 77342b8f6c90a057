"""Beginning anew in place: a process that has lost Kafka waits for it, with nobody to restart it.

What is lost is Kafka, or the group's word that we are still a member; the cure is a restart, since
all state is in Kafka. A process that something watches ends with exit code 3 and is started again.
Any other executes its program anew: the same process id, arguments and variables, nothing kept but
the number of deaths in a row. From its second life on it waits for Kafka without a limit.

A process that never was ready ends: whoever starts it should hear of a wrong address.
"""

import os
import signal
import sys
import time
from typing import Final

import structlog

from agents_stream.core.errors import BrokerUnreachable
from agents_stream.kafka.connection import require_broker
from agents_stream.settings import Settings

log = structlog.get_logger()

VARIABLE: Final = "AGENTS_STREAM_DEATHS"
STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
HEALTHY_S: Final = 30.0
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0


class Resumption:
    """What a process knows of its earlier lives. `allowed`: nobody else starts it again."""

    def __init__(self, *, allowed: bool) -> None:
        self.deaths = int(os.environ.pop(VARIABLE, "0"))
        self._allowed = allowed
        self._ready_at: float | None = None

    @property
    def pause_s(self) -> float:
        """How long to wait before this life does anything, in seconds."""
        if self.deaths == 0:
            return 0.0
        return float(min(FIRST_PAUSE_S * 2.0 ** (self.deaths - 1), LONGEST_PAUSE_S))

    async def require_broker(self, settings: Settings, limit_s: float) -> None:
        """Wait until Kafka answers; in a later life as long as that takes.

        Raises:
            BrokerUnreachable: this is the first life, and it did not within `limit_s`.

        """
        while True:
            try:
                await require_broker(settings, limit_s)
            except BrokerUnreachable as error:
                if self.deaths == 0:
                    raise
                log.warning("waiting for Kafka", why=str(error))
            else:
                return

    def settings_of_this_life(self, settings: Settings) -> Settings:
        """What was said for one start (START_FROM) answers no question of a later life."""
        return settings if self.deaths == 0 else settings.model_copy(update={"start_from": None})

    def ready(self) -> None:
        """Note that this life has come so far that it works."""
        self._ready_at = time.monotonic()

    def begin_anew(self) -> None:
        """Do not return, unless this process is to end."""
        if not self._allowed or (self._ready_at is None and self.deaths == 0):
            return
        lived_s = 0.0 if self._ready_at is None else time.monotonic() - self._ready_at
        deaths = 1 if lived_s >= HEALTHY_S else self.deaths + 1
        log.warning("beginning anew: it waits for Kafka", deaths_in_a_row=deaths)
        sys.stdout.flush()
        # Taken again by the next life once it has its handlers: a stop is never lost in between.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        os.environ[VARIABLE] = str(deaths)
        try:
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves
        except OSError as error:
            log.warning("cannot begin anew", error=str(error))
