"""Why nothing happened, or why less happened than one may think: a closed list of codes.

An operator's first question is "why did nothing happen?"; every decision that does nothing
states one of these. docs/reasons.md explains each.
"""

from enum import StrEnum


class Reason(StrEnum):
    """The reason codes of the decider. Their spelling is part of the timeline's contract."""

    DUPLICATE = "duplicate"
    STALE_EVENT = "stale_event"
    STALE_DEADLINE = "stale_deadline"
    EARLY_DEADLINE = "early_deadline"
    PAUSED = "paused"
    NOT_PAUSED = "not_paused"
    ALREADY_STARTED = "already_started"
    SESSION_CLOSED = "session_closed"
    UNKNOWN_SESSION = "unknown_session"
    VERSION_CONFLICT = "version_conflict"
    STATE_TOO_LARGE = "state_too_large"
    NOTHING_CHANGED = "nothing_changed"
    NOT_WAITING = "not_waiting"
    ORDER_IN_PROGRESS = "order_in_progress"
    CONTACT_UNKNOWN = "contact_unknown"
    UNKNOWN_COMMAND = "unknown_command"
    UNKNOWN_ATTEMPT = "unknown_attempt"
    SETTLED_ATTEMPT = "settled_attempt"
    RUN_ENDED = "run_ended"
    INVALID_RESULT = "invalid_result"
    NO_SUCH_DEADLINE = "no_such_deadline"
    NO_SUCH_COMMAND = "no_such_command"
    REDUCER_ERROR = "reducer_error"
