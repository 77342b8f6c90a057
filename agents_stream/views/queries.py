"""What can be asked: filters, limits and cursors, from the words of a query string and back.

A cursor is the last place that a page has dealt with, never a position in somebody's memory:
any worker can go on from it, also after a rebalance.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args

import orjson

from agents_stream.core.session import SessionRecord
from agents_stream.views.http import Rejection
from agents_stream.views.reads import LetterPlace

SESSIONS_LIMIT: Final = 50
TIMERS_LIMIT: Final = 100
LETTERS_LIMIT: Final = 100
TIMELINE_LIMIT: Final = 500
MAX_LIMIT: Final = 500
MAX_WORD: Final = 1_024
"""The longest value of a filter, in characters; a session's id has at most 256 bytes."""

MAX_CURSOR: Final = 4_096

Status = Literal["open", "closed"]
Order = Literal["asc", "desc"]
Words = Mapping[str, str]
TimerPlace = tuple[int, str, str]
"""(due time in ms, session id, name): the order of the timers."""

_FLAGS: Final = {"true": True, "false": False}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class SessionQuery:
    """Which sessions; `after` is the id that the page before ended with."""

    status: str | None = None
    mode: str | None = None
    workspace: str | None = None
    text: str = ""
    limit: int = SESSIONS_LIMIT
    after: str = ""

    def matches(self, record: SessionRecord) -> bool:
        """Whether a session passes the filters; `text` may be part of any of its three ids."""
        if self.status is not None and record.status != self.status:
            return False
        if self.mode is not None and record.mode != self.mode:
            return False
        if self.workspace is not None and record.workspace_id != self.workspace:
            return False
        needle = self.text.casefold()
        ids = (record.session_id, record.conversation_id, record.contact_id)
        return any(item is not None and needle in item.casefold() for item in ids)

    def words(self) -> dict[str, str]:
        """The query as another worker is asked it."""
        words = {"status": self.status, "mode": self.mode, "workspace": self.workspace}
        given = {name: value for name, value in words.items() if value is not None}
        if self.after:
            given["cursor"] = sessions_cursor(self.after)
        return {**given, "q": self.text, "limit": str(self.limit)}


@dataclass(frozen=True, slots=True)
class TimerQuery:
    """Which timers: those due before `before_ms`, beyond the place `after`."""

    before_ms: int | None = None
    limit: int = TIMERS_LIMIT
    after: TimerPlace | None = None

    def words(self) -> dict[str, str]:
        """The query as another worker is asked it."""
        given = {"limit": str(self.limit)}
        if self.before_ms is not None:
            given["before"] = str(self.before_ms)
        if self.after is not None:
            given["cursor"] = timers_cursor(self.after)
        return given


@dataclass(frozen=True, slots=True)
class TimelineQuery:
    """Which part of a timeline: `limit` items beyond the offset `edge`.

    `asc`: the oldest after `edge`, oldest first. `desc`: the newest before it, newest first.
    `changes`: each item also tells what became of timers and mode.
    """

    limit: int = TIMELINE_LIMIT
    edge: int | None = None
    order: Order = "asc"
    changes: bool = False

    def words(self) -> dict[str, str]:
        """The query as another worker is asked it."""
        given = {"limit": str(self.limit), "order": self.order}
        if self.changes:
            given["changes"] = "true"
        if self.edge is not None:
            given["cursor"] = timeline_cursor(self.edge)
        return given


@dataclass(frozen=True, slots=True)
class LetterQuery:
    """Which dead letters: the newest of those below `before`."""

    limit: int = LETTERS_LIMIT
    before: LetterPlace | None = None


def sessions_query(words: Words) -> SessionQuery:
    """Read the query of `/api/sessions`.

    Raises:
        Rejection: 400, with the parameter that is wrong.

    """
    status = _word(words, "status")
    if status is not None and status not in get_args(Status):
        raise _bad("status", "is open or closed")
    after = _place(words, "sessions", str)
    return SessionQuery(
        status=status,
        mode=_word(words, "mode"),
        workspace=_word(words, "workspace"),
        text=_word(words, "q") or "",
        limit=_limit(words, SESSIONS_LIMIT),
        after=after[0] if after else "",
    )


def timers_query(words: Words) -> TimerQuery:
    """Read the query of `/api/timers`.

    Raises:
        Rejection: 400, with the parameter that is wrong.

    """
    before = _word(words, "before")
    after = _place(words, "timers", int, str, str)
    return TimerQuery(
        before_ms=None if before is None else _moment("before", before),
        limit=_limit(words, TIMERS_LIMIT),
        after=None if after is None else (after[0], after[1], after[2]),
    )


def timeline_query(words: Words) -> TimelineQuery:
    """Read the query of `/api/sessions/{id}/timeline`.

    Raises:
        Rejection: 400, with the parameter that is wrong.

    """
    edge = _place(words, "timeline", int)
    order = _word(words, "order") or "asc"
    if order not in get_args(Order):
        raise _bad("order", "is asc or desc")
    changes = _word(words, "changes") or "false"
    if changes not in _FLAGS:
        raise _bad("changes", "is true or false")
    return TimelineQuery(
        limit=_limit(words, TIMELINE_LIMIT),
        edge=edge[0] if edge else None,
        order="desc" if order == "desc" else "asc",
        changes=_FLAGS[changes],
    )


def letters_query(words: Words) -> LetterQuery:
    """Read the query of `/api/dead-letters`.

    Raises:
        Rejection: 400, with the parameter that is wrong.

    """
    place = _place(words, "letters", int, int, int)
    before = None if place is None else (place[0], place[1], place[2])
    return LetterQuery(_limit(words, LETTERS_LIMIT), before)


def sessions_cursor(session_id: str) -> str:
    """The cursor of what follows a session id."""
    return _cursor("sessions", session_id)


def timers_cursor(place: TimerPlace) -> str:
    """The cursor of what follows a timer."""
    return _cursor("timers", *place)


def timeline_cursor(offset: int) -> str:
    """The cursor of what lies beyond a journal offset."""
    return _cursor("timeline", offset)


def letters_cursor(place: LetterPlace) -> str:
    """The cursor of what is older than a dead letter."""
    return _cursor("letters", *place)


def sessions_place(cursor: str) -> str:
    """The session id in a cursor; what other workers say is checked like anything else."""
    return sessions_query({"cursor": cursor}).after


def timers_place(cursor: str) -> TimerPlace:
    """The place of a timer in a cursor.

    Raises:
        Rejection: 400, the cursor is none of ours.

    """
    place = timers_query({"cursor": cursor}).after
    if place is None:
        raise _bad("cursor", "is empty")
    return place


def timer_place(item: Mapping[str, Any]) -> TimerPlace:
    """The place of an item of `/api/timers`."""
    return (_moment("dueAt", item["dueAt"]), item["sessionId"], item["name"])


def _cursor(*place: str | int) -> str:
    return urlsafe_b64encode(orjson.dumps(place)).decode().rstrip("=")


def _place(words: Words, kind: str, *types: type) -> list[Any] | None:
    """What the cursor in a query holds after its kind."""
    text = words.get("cursor", "")
    if not text:
        return None
    fault = _bad("cursor", "is none of this list: take the nextCursor of its last page")
    if len(text) > MAX_CURSOR:
        raise fault
    try:
        place = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError as error:  # no base64, no JSON: both are ValueErrors
        raise fault from error
    if not isinstance(place, list) or [type(item) for item in place] != [str, *types]:
        raise fault
    if place[0] != kind:
        raise fault
    return place[1:]


def _word(words: Words, name: str) -> str | None:
    """A filter's value; an empty one is none."""
    value = words.get(name, "")
    if len(value) > MAX_WORD:
        raise _bad(name, f"is at most {MAX_WORD} characters long")
    return value or None


def _limit(words: Words, default: int) -> int:
    """How many items; more than `MAX_LIMIT` are not given at once, the cursor leads on."""
    text = words.get("limit", "")
    if not text:
        return default
    # isascii: int() would take the digits of every script.
    if not (text.isascii() and text.isdigit()) or not text.strip("0"):
        raise _bad("limit", f"is a whole number from 1 to {MAX_LIMIT}")
    return min(int(text[:9]), MAX_LIMIT) if len(text) <= MAX_WORD else MAX_LIMIT


def _moment(name: str, text: str) -> int:
    """A time in ms since the epoch: written so, or as ISO 8601 (UTC unless it says otherwise)."""
    if text.isascii() and text.removeprefix("-").isdigit():
        if len(text) > len(str(2**53)):
            raise _bad(name, "is too far away")
        return int(text)
    try:
        # A "+" of an offset that was not percent-encoded arrives as a space.
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        raise _bad(name, "is a time: ISO 8601 or milliseconds since the epoch") from None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(milliseconds=1)


def _bad(name: str, rule: str) -> Rejection:
    return Rejection(400, "bad_request", f"{name} {rule}")
