"""What a reply means: the result of one attempt, as it goes to `tool.results` (SPEC §5).

Pure: a reply and the time in, a JSON object out. The table of statuses is issue 3's:

| reply                                  | WhatsApp            | CRM                 |
| -------------------------------------- | ------------------- | ------------------- |
| 2xx                                    | succeeded           | succeeded, with id  |
| 2xx without a usable `id`              | succeeded           | unknown             |
| 2xx whose body was cut off             | succeeded           | failed, retryable   |
| 408, 425, 429, 5xx                     | failed, retryable   | failed, retryable   |
| any other status, redirects too        | failed for good     | failed for good     |
| nothing was sent                       | failed, retryable   | failed, retryable   |
| sent, and no answer came               | unknown             | failed, retryable   |

An order that was answered with 2xx but without an id probably exists: `failed` would be a lie, and
asking again with the same key would bring the same answer. `unknown` says so to whoever looks.
"""

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, Literal, assert_never

import orjson

from agents_stream.core.envelope import read_result
from agents_stream.core.errors import InvalidEvent
from agents_stream.core.retry import MAX_RETRY_AFTER_MS
from agents_stream.stages.tools.catalog import Tool
from agents_stream.stages.tools.http_call import Answer, NoAnswer, NotSent, Reply

MAX_MESSAGE_CHARS: Final = 300
MAX_BODY_CHARS_TOLD: Final = 200

NOT_SENT: Final = "not_sent"
NO_ANSWER: Final = "no_answer"
INTERRUPTED: Final = "interrupted"
ANSWER_CUT: Final = "answer_cut"
NO_ORDER_ID: Final = "no_order_id"

_RETRYABLE: Final = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_EARLY,
        HTTPStatus.TOO_MANY_REQUESTS,
    }
)

Status = Literal["succeeded", "failed", "unknown"]
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Attempt:
    """Whose result it is."""

    command_id: str
    session_id: str
    tool: str
    number: int

    @property
    def key(self) -> str:
        """The attempt's name in the gateway's memory."""
        return f"{self.command_id}/{self.number}"


def judge(tool: Tool, attempt: Attempt, reply: Reply, now_ms: int) -> Result:
    """Say what a reply means. `now_ms` is for a Retry-After that names a date."""
    match reply:
        case Answer():
            return _judge_answer(tool, attempt, reply, now_ms)
        case NotSent(why):
            message = f"Nothing was sent: {why}"
            return failed(attempt, NOT_SENT, message, retryable=True)
        case NoAnswer(why):
            message = f"The request was sent and no answer came: {why}"
            if tool.idempotent:
                return failed(attempt, NO_ANSWER, message, retryable=True)
            return unknown(attempt, NO_ANSWER, message)
        case _:
            assert_never(reply)


def may_be_repeated(status: int) -> bool:
    """Whether an answer of this HTTP status asks for another attempt."""
    return status in _RETRYABLE or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def is_success(status: int) -> bool:
    """Whether this HTTP status is one of the 2xx."""
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


def retry_after_ms(header: str | None, now_ms: int) -> int | None:
    """Read a Retry-After header, seconds or a date, as milliseconds from now; None for neither."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return min(int(text[:12]) * 1000, MAX_RETRY_AFTER_MS)
    try:
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        wait_ms = round(date.timestamp() * 1000) - now_ms
    except (ValueError, OverflowError):
        return None
    return min(max(wait_ms, 0), MAX_RETRY_AFTER_MS)


def failed(
    attempt: Attempt, code: str, message: str, *, retryable: bool, after_ms: int | None = None
) -> Result:
    """A result that says: it was not done."""
    error = {"code": code, "message": message[:MAX_MESSAGE_CHARS]}
    return _result(attempt, "failed", retryable=retryable, after_ms=after_ms, error=error)


def unknown(attempt: Attempt, code: str, message: str) -> Result:
    """A result that says: it may have been done, and nobody can tell."""
    error = {"code": code, "message": message[:MAX_MESSAGE_CHARS]}
    return _result(attempt, "unknown", error=error)


def interrupted(attempt: Attempt) -> Result:
    """The result of an attempt that was started, and whose end nobody wrote down."""
    return unknown(
        attempt,
        INTERRUPTED,
        "The gateway was interrupted between starting the request and noting its answer",
    )


def _judge_answer(tool: Tool, attempt: Attempt, answer: Answer, now_ms: int) -> Result:
    if is_success(answer.status):
        return _succeed(tool, attempt, answer)
    retryable = may_be_repeated(answer.status)
    after_ms = retry_after_ms(answer.retry_after, now_ms) if retryable else None
    told = _told(answer.body)
    message = f"The tool answered {answer.status} {answer.phrase}".strip()
    return failed(
        attempt,
        f"http_{answer.status}",
        f"{message}: {told}" if told else message,
        retryable=retryable,
        after_ms=after_ms,
    )


def _succeed(tool: Tool, attempt: Attempt, answer: Answer) -> Result:
    outputs = {} if answer.cut else _json_object(answer.body)
    result = _result(attempt, "succeeded", outputs=outputs)
    if _is_readable(result):
        return result
    if not tool.gives_id:
        return _result(attempt, "succeeded")
    if answer.cut and tool.idempotent:
        message = f"The tool answered {answer.status}, and its answer broke off"
        return failed(attempt, ANSWER_CUT, message, retryable=True)
    return unknown(
        attempt,
        NO_ORDER_ID,
        f"The tool answered {answer.status} without an `id` in a JSON object: the order probably"
        " exists, and nobody knows which it is",
    )


def _json_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object; what is none tells nothing that a program could use."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_readable(result: Result) -> bool:
    """Whether ingress will take this result. Asked of the one reader that ingress uses.

    What it refuses would go to the dead letters, and the command would wait for ever.
    """
    try:
        read_result(orjson.dumps(result))
    except (InvalidEvent, orjson.JSONEncodeError):
        return False
    return True


def _told(body: bytes) -> str:
    """The beginning of what the tool said about an error, on one line."""
    text = body[: 4 * MAX_BODY_CHARS_TOLD].decode("utf-8", "replace")
    return " ".join(text.split())[:MAX_BODY_CHARS_TOLD]


def _result(
    attempt: Attempt,
    status: Status,
    *,
    retryable: bool = False,
    after_ms: int | None = None,
    outputs: dict[str, Any] | None = None,
    error: dict[str, str] | None = None,
) -> Result:
    return {
        "commandId": attempt.command_id,
        "sessionId": attempt.session_id,
        "tool": attempt.tool,
        "attempt": attempt.number,
        "status": status,
        "retryable": retryable,
        "retryAfterMs": after_ms,
        "outputs": outputs or {},
        "error": error,
    }
