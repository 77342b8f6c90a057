"""The views of the whole cluster: any worker answers for any session, it asks the owner.

A question to one session goes to its owner. A list goes to every worker and is merged; it is
whole or it is refused, since a list with a silent gap is worse than none. A question that came
from another worker is answered from this one's own table or refused, never passed on again:
while partitions move, two workers may each take the other for the owner.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from http import HTTPStatus
from typing import Final, TypeVar
from urllib.parse import quote

import httpx
import orjson
import structlog
from pydantic import SecretStr

from agents_stream.views.forms import Json
from agents_stream.views.http import Rejection
from agents_stream.views.local import LocalViews, Page
from agents_stream.views.queries import (
    LetterQuery,
    SessionQuery,
    TimelineQuery,
    TimerQuery,
    sessions_cursor,
    sessions_place,
    timer_place,
    timers_cursor,
    timers_place,
)
from agents_stream.views.reads import Member, Reads

log = structlog.get_logger()

FORWARDED: Final = "X-Agents-Stream-Forwarded"
"""Marks a question that one worker asks another."""

CONNECT_LIMIT_S: Final = 2.0
ANSWER_LIMIT_S: Final = 10.0
MAX_CONNECTIONS: Final = 64
MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024

_PASSED_ON: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND})

Place = TypeVar("Place", str, tuple[int, str, str])


class Peers:
    """HTTP to the other workers. Use between `open` and `close`.

    Args:
        token: the `AUTH_TOKEN` that all workers share.
        limit_s: how long an answer may take in all.

    """

    def __init__(self, token: SecretStr | None, limit_s: float = ANSWER_LIMIT_S) -> None:
        self._token = token
        self._limit_s = limit_s
        self._client: httpx.AsyncClient | None = None

    def open(self) -> None:
        """Be ready to ask."""
        headers = {FORWARDED: "1"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(self._limit_s, connect=min(CONNECT_LIMIT_S, self._limit_s)),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            trust_env=False,  # workers talk to each other, not through anybody's proxy
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def ask(self, url: str, path: str, words: Mapping[str, str]) -> Json:
        """Ask the worker at `url`; its refusals become ours.

        Raises:
            Rejection: what the worker refused, or 503 because it gave no usable answer.

        """
        assert self._client is not None, "the peers are asked before open()"
        try:
            async with (
                asyncio.timeout(self._limit_s),
                self._client.stream("GET", url + path, params=words) as response,
            ):
                body = await _read_bounded(url, response)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            log.warning("worker_unavailable", url=url, error=type(error).__name__)
            said = f"The worker at {url} does not answer ({type(error).__name__})"
            raise Rejection(503, "worker_unavailable", said) from error
        return _understand(url, response.status_code, body)


class ClusterViews:
    """The views of all workers together, as this one can gather them."""

    def __init__(self, reads: Reads, local: LocalViews, peers: Peers) -> None:
        self._reads = reads
        self._local = local
        self._peers = peers

    async def session(self, session_id: str) -> Json:
        """One session, from its owner."""
        owner = self._owner(session_id)
        if owner.is_self:
            return await self._local.session(session_id)
        return await self._peers.ask(owner.url, _session_path(session_id), {})

    async def timeline(self, session_id: str, query: TimelineQuery) -> Page:
        """The timeline of a session, from its owner."""
        owner = self._owner(session_id)
        if owner.is_self:
            return await self._local.timeline(session_id, query)
        path = f"{_session_path(session_id)}/timeline"
        return await self._page_of(owner.url, path, query.words())

    async def sessions(self, query: SessionQuery) -> Page:
        """Sessions of all workers in the order of their ids."""
        self._require_owners()
        pages = await self._gather("/api/sessions", self._local.sessions(query), query.words())
        edges = [sessions_place(page.next_cursor) for page in pages if page.next_cursor]
        # While a partition moves, two workers may show a session: the later state counts.
        newest: dict[str, Json] = {}
        for item in (item for page in pages for item in page.items):
            known = newest.get(item["sessionId"])
            if known is None or known["journalOffset"] < item["journalOffset"]:
                newest[item["sessionId"]] = item
        items, edge = merge(newest, edges, query.limit)
        return Page(items, None if edge is None else sessions_cursor(edge))

    async def timers(self, query: TimerQuery) -> Page:
        """Deadlines of all workers in the order of their due times."""
        self._require_owners()
        pages = await self._gather("/api/timers", self._local.timers(query), query.words())
        edges = [timers_place(page.next_cursor) for page in pages if page.next_cursor]
        found = {timer_place(item): item for page in pages for item in page.items}
        items, edge = merge(found, edges, query.limit)
        return Page(items, None if edge is None else timers_cursor(edge))

    async def dead_letters(self, query: LetterQuery) -> Page:
        """Dead letters need no asking: every worker reads the whole topic."""
        return await self._local.dead_letters(query)

    async def cluster(self) -> Json:
        """Every worker with its tables. One that does not answer is shown with the error."""
        known = await self._local.cluster()
        members = await asyncio.gather(*(self._look_at(item, known) for item in known["members"]))
        return {**known, "members": list(members)}

    async def _look_at(self, member: Json, own: Json) -> Json:
        told = own
        if not member["self"]:
            try:
                told = await self._peers.ask(member["url"], "/api/cluster", {"scope": "local"})
            except Rejection as refusal:
                return {**member, "ready": False, "missing": str(refusal), "tables": []}
        return {**member, **{name: told.get(name) for name in ("ready", "missing", "tables")}}

    def _owner(self, session_id: str) -> Member:
        partition = self._reads.partition_of(session_id)
        for member in self._reads.members():
            if partition in member.partitions:
                return member
        raise _no_owner([partition])

    async def _gather(
        self, path: str, own: Awaitable[Page], words: Mapping[str, str]
    ) -> list[Page]:
        """The same page of every worker.

        Raises:
            Rejection: 503, with every worker that gave none.

        """
        others = [member.url for member in self._reads.members() if not member.is_self]
        asked = (self._page_of(url, path, {**words, "scope": "local"}) for url in others)
        answers = await asyncio.gather(own, *asked, return_exceptions=True)
        refusals = [answer for answer in answers if isinstance(answer, Rejection)]
        if refusals:
            said = "; ".join(str(refusal) for refusal in refusals)
            raise Rejection(503, refusals[0].code, f"The list would not be whole: {said}")
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if isinstance(answer, Page)]

    async def _page_of(self, url: str, path: str, words: Mapping[str, str]) -> Page:
        answer = await self._peers.ask(url, path, words)
        try:
            return Page(list(answer["items"]), answer["nextCursor"])
        except (KeyError, TypeError) as error:
            raise _not_understood(url) from error

    def _require_owners(self) -> None:
        owned = {partition for member in self._reads.members() for partition in member.partitions}
        if moving := sorted(set(range(self._reads.partition_count())) - owned):
            raise _no_owner(moving)


def merge(
    found: Mapping[Place, Json], edges: list[Place], limit: int
) -> tuple[list[Json], Place | None]:
    """The first `limit` items, and the place up to which the list is now complete.

    A worker that has more to give vouches only for what lies up to its own edge, so nothing
    beyond the lowest edge may be shown yet.
    """
    edge = min(edges, default=None)
    places = sorted(place for place in found if edge is None or place <= edge)
    if len(places) > limit:
        places = places[:limit]
        edge = places[-1]
    return [found[place] for place in places], edge


def _session_path(session_id: str) -> str:
    # The dots too: as "." or ".." alone they would be taken for steps between folders.
    return f"/api/sessions/{quote(session_id, safe='').replace('.', '%2E')}"


def _no_owner(partitions: Iterable[int]) -> Rejection:
    told = ", ".join(str(partition) for partition in partitions)
    said = f"No worker owns partition {told} just now: a rebalance is under way, ask again"
    return Rejection(503, "owner_unavailable", said)


async def _read_bounded(url: str, response: httpx.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            said = f"The worker at {url} answers more than {MAX_ANSWER_BYTES} bytes"
            raise Rejection(503, "worker_unavailable", said)
    return bytes(body)


def _understand(url: str, status: int, body: bytes) -> Json:
    """An answer of the worker at `url`, or its refusal as ours."""
    try:
        answer = orjson.loads(body)
        if status == HTTPStatus.OK and isinstance(answer, dict):
            return answer
        code, message = str(answer["error"]["code"]), str(answer["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise _not_understood(url, status) from error
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        said = f"The worker at {url} refuses this one: give all workers the same AUTH_TOKEN"
        raise Rejection(503, "worker_unavailable", said)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        raise Rejection(503, code, f"The worker at {url}: {message}")
    if status in _PASSED_ON:
        raise Rejection(status, code, message)
    raise _not_understood(url, status)


def _not_understood(url: str, status: int = 200) -> Rejection:
    said = f"The worker at {url} answered {status} and something that is not understood"
    return Rejection(503, "worker_unavailable", said)
