"""The error family, split by what the caller must do (STYLE rule 6).

`InvalidEvent`: put the record into the dead letters. `RetryableError`: try again later.
`TerminalError`: record it and give up. Assertions are for our own bugs and end the process.
"""


class AgentsStreamError(Exception):
    """The root of every error that we raise on purpose."""


class InvalidEvent(AgentsStreamError):  # noqa: N818 - it says what the record is
    """A record that can never be accepted.

    `reason` is one of the codes of SPEC §2 (`invalid_json`, `invalid_schema`, `unknown_event`,
    `too_large`), `detail` a sentence for the person who sent it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class RetryableError(AgentsStreamError):
    """Something that others must mend; the same call may succeed later."""


class TerminalError(AgentsStreamError):
    """Something that no retry mends. The message says what to do."""


class BrokerUnreachable(TerminalError):  # noqa: N818 - it says what happened
    """Kafka cannot be reached within the time allowed (exit code 3)."""
