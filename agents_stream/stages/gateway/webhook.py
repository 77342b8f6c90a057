"""The engine's webhook: what we publish for engines that have no Kafka client.

Each record of `agent.outcomes`, and each `agent/promos.offered` that is our own, is posted as it
stands on its topic, signed, in the order of its session, up to four times. What fails then goes to
the dead letters (`webhook_failed`), and the session goes on. docs/engine-webhook.md is for those
who receive it. A consumer group of its own: a dead engine delays no command.
"""

import asyncio
import hmac
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, TypeGuard

import orjson
import structlog
from aiokafka.structs import ConsumerRecord
from pydantic import SecretStr

from agents_stream.core.actions import OWN_EVENT_PREFIX
from agents_stream.core.events import PromosOffered
from agents_stream.core.retry import MAX_ATTEMPTS, MAX_BACKOFF_MS, backoff_delay_ms
from agents_stream.kafka.topics import OUTCOMES, PROMOS_OFFERED, load_topics
from agents_stream.settings import Settings
from agents_stream.stages.gateway import metrics
from agents_stream.stages.gateway.consuming import Job, Turn
from agents_stream.stages.gateway.dead import DeadLetters
from agents_stream.stages.gateway.memory import marker_of
from agents_stream.stages.gateway.memory_log import MemoryLog, wall_ms
from agents_stream.stages.gateway.performer import limits_of
from agents_stream.stages.tools.catalog import Endpoint, is_header_text
from agents_stream.stages.tools.http_call import Answer, HttpCaller, Reply
from agents_stream.stages.tools.results import is_success, may_be_repeated, retry_after_ms

log = structlog.get_logger()

EVENT_HEADER: Final = "x-agents-stream-event"
ID_HEADER: Final = "x-agents-stream-id"
SIGNATURE_HEADER: Final = "x-agents-stream-signature"
FAILED: Final = "webhook_failed"
_TARGET: Final = "engine"
_UNREADABLE: Final = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """One record for the engine. `event` names its kind, `id` is the record's own."""

    event: str
    id: str
    session_id: str
    body: bytes


class Webhook:
    """The handler of the topics that the engine is told of."""

    def __init__(
        self,
        settings: Settings,
        endpoint: Endpoint,
        memory_log: MemoryLog,
        dead_letters: DeadLetters,
    ) -> None:
        names, prefix = load_topics(), settings.topic_prefix
        self._outcomes = names.name(OUTCOMES, prefix)
        self.group = webhook_group(settings)
        self.topics: tuple[str, ...] = (self._outcomes, names.name(PROMOS_OFFERED, prefix))
        self._log = memory_log
        self._dead_letters = dead_letters
        self._secret = settings.engine_webhook_secret
        self._backoff_ms = settings.retry_backoff
        self._slots = asyncio.Semaphore(settings.tool_concurrency)
        self._caller = HttpCaller(
            endpoint, limits_of(settings), settings.tool_concurrency, reuse=True
        )

    async def close(self) -> None:
        """Close the connections to the engine."""
        await self._caller.close()

    async def open(self, numbers: set[int]) -> None:
        """Nothing has to be ready: the engine deduplicates by the id."""

    async def begin(self, numbers: set[int]) -> None:
        """Write down that the group has begun there."""
        for number in numbers:
            key, value = marker_of(self.group)
            await self._log.append(number, key, value)

    def job_for(self, record: ConsumerRecord) -> Job | None:
        """Tell the engine of an outcome or of an event of ours; of others' events nothing."""
        try:
            value = orjson.loads(record.value or b"")
        except orjson.JSONDecodeError:
            value = None
        if record.topic != self._outcomes:
            notice = _own_event(record, value)
            return None if notice is None else self._job(record, notice)
        notice = _outcome(record, value)
        if notice is None:
            detail = "an outcome is a JSON object with the strings `id` and `sessionId`"
            return Job(
                _UNREADABLE, lambda _: self._dead_letters.bury(record, "invalid_schema", detail)
            )
        return self._job(record, notice)

    def _job(self, record: ConsumerRecord, notice: Notice) -> Job:
        return Job(notice.session_id, lambda turn: self._tell(record, notice, turn))

    async def _tell(self, record: ConsumerRecord, notice: Notice, turn: Turn) -> None:
        """Post until it is taken, refused for good, or MAX_ATTEMPTS are used up."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            reply = await self._post(notice, turn)
            if isinstance(reply, Answer) and is_success(reply.status):
                self._note(notice, attempt, "succeeded")
                return
            if isinstance(reply, Answer) and not may_be_repeated(reply.status):
                break
            if attempt < MAX_ATTEMPTS:
                self._note(notice, attempt, "retried")
                await asyncio.sleep(self._delay_ms(notice, attempt, reply) / 1000)
        self._note(notice, attempt, "failed")
        await self._dead_letters.bury(record, FAILED, f"{notice.event}: {_said(reply)}")

    async def _post(self, notice: Notice, turn: Turn) -> Reply:
        async with self._slots:
            await turn.own()
            headers = {EVENT_HEADER: notice.event, ID_HEADER: notice.id}
            if self._secret is not None:
                headers[SIGNATURE_HEADER] = sign(self._secret, notice.body, int(time.time()))
            began = time.monotonic()
            with metrics.in_flight.labels(target=_TARGET).track_inprogress():
                reply = await self._caller.post(notice.body, headers)
            metrics.http_seconds.labels(target=_TARGET).observe(time.monotonic() - began)
            return reply

    def _delay_ms(self, notice: Notice, attempt: int, reply: Reply) -> int:
        """The same backoff as a command's; but a lane that waits holds its partition back."""
        header = reply.retry_after if isinstance(reply, Answer) else None
        asked_ms = min(retry_after_ms(header, wall_ms()) or 0, MAX_BACKOFF_MS)
        return backoff_delay_ms(notice.id, attempt, self._backoff_ms, asked_ms)

    def _note(self, notice: Notice, attempt: int, status: str) -> None:
        metrics.webhooks.labels(event=notice.event, status=status).inc()
        log.info(
            "engine_told",
            webhook_event=notice.event,
            session_id=notice.session_id,
            id=notice.id,
            attempt=attempt,
            status=status,
        )


def webhook_group(settings: Settings) -> str:
    """Give the webhook's own consumer group."""
    return f"{settings.gateway_group_id}-webhook"


def sign(secret: SecretStr, body: bytes, at_s: int) -> str:
    """Sign a body: `t=<unix seconds>,v1=<hex HMAC-SHA256 of "t.body">`."""
    signed = b"%d." % at_s + body
    digest = hmac.new(secret.get_secret_value().encode(), signed, sha256).hexdigest()
    return f"t={at_s},v1={digest}"


def _outcome(record: ConsumerRecord, value: Any) -> Notice | None:
    if not isinstance(value, dict):
        return None
    notice_id, session_id = value.get("id"), value.get("sessionId")
    if not (_is_id(notice_id) and isinstance(session_id, str) and session_id):
        return None
    return Notice(OUTCOMES, notice_id, session_id, record.value)


def _own_event(record: ConsumerRecord, value: Any) -> Notice | None:
    """The event, if we published it: its id says so. Bare data is never ours."""
    if not isinstance(value, dict) or value.get("name") != PromosOffered.NAME:
        return None
    notice_id, data = value.get("id"), value.get("data")
    if not _is_id(notice_id) or not notice_id.startswith(OWN_EVENT_PREFIX):
        return None
    session_id = data.get("sessionId") if isinstance(data, dict) else None
    if not isinstance(session_id, str) or not session_id:
        return None
    return Notice(PromosOffered.NAME, notice_id, session_id, record.value)


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and is_header_text(value)


def _said(reply: Reply) -> str:
    if isinstance(reply, Answer):
        return f"the engine answered {reply.status} {reply.phrase}".strip()
    return f"{type(reply).__name__}: {reply.why}"
