"""Asking a worker over HTTP (SPEC §8), as the reading commands do."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import quote

import httpx
import orjson
import typer

from agents_stream.core.errors import RetryableError, TerminalError
from agents_stream.settings import Settings

ANSWER_LIMIT_S: Final = 20.0
CONNECT_LIMIT_S: Final = 5.0
MAX_PAGES: Final = 20_000

Words = Mapping[str, str | None]


class WorkerUnreachable(RetryableError):  # noqa: N818 - it says what happened
    """The worker does not answer, or not now (exit code 3)."""


class WorkerApi:
    """One worker; it answers for the whole cluster. Use as a context manager.

    Args:
        settings: the token, and where a worker is by default.
        url: where the worker is, if elsewhere.

    """

    def __init__(self, settings: Settings, url: str | None) -> None:
        self._url = (url or settings.listen_url).rstrip("/")
        if not self._url.startswith(("http://", "https://")):
            raise typer.BadParameter(f"--url {self._url} is no http:// or https:// address")
        headers = {"Accept": "application/json"}
        if settings.auth_token is not None:
            headers["Authorization"] = f"Bearer {settings.auth_token.get_secret_value()}"
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(ANSWER_LIMIT_S, connect=CONNECT_LIMIT_S),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._client.close()

    def get(self, path: str, words: Words | None = None) -> bytes:
        """The body of an answer, as it came.

        Raises:
            WorkerUnreachable: no answer, or one that says "not now".
            TerminalError: the worker refused, or there is no such thing.
            typer.BadParameter: it did not understand a parameter.

        """
        query = {name: value for name, value in (words or {}).items() if value is not None}
        try:
            answer = self._client.get(self._url + path, params=query)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise WorkerUnreachable(
                f"no worker answers at {self._url} ({_said(error)}). Start one with `agents-stream"
                " worker` or `agents-stream up`, or say where it is with --url"
            ) from None
        if answer.status_code != HTTPStatus.OK:
            raise _refusal(self._url, answer)
        return self._checked(answer)

    def pages(self, path: str, words: Words, *, every: bool) -> bytes | dict[str, Any]:
        """A list: one page as it came, or with `every` all of them in one."""
        first = self.get(path, words)
        if not every:
            return first
        page: dict[str, Any] = orjson.loads(first)
        items = list(page["items"])
        for _ in range(MAX_PAGES):
            if page["nextCursor"] is None:
                return {**page, "items": items}
            page = orjson.loads(self.get(path, {**words, "cursor": page["nextCursor"]}))
            items += page["items"]
        raise TerminalError(f"the list has more than {MAX_PAGES} pages: narrow it down")

    def _checked(self, answer: httpx.Response) -> bytes:
        """The body, if it is a JSON object; another program may listen there."""
        try:
            if isinstance(orjson.loads(answer.content), dict):
                return answer.content
        except orjson.JSONDecodeError:
            pass
        raise WorkerUnreachable(f"what answers at {self._url} is no worker: set --url to one")


def session_path(session_id: str) -> str:
    """The path of a session."""
    return f"/api/sessions/{quote(session_id, safe='')}"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _refusal(url: str, answer: httpx.Response) -> Exception:
    message = _message(answer)
    if answer.status_code == HTTPStatus.BAD_REQUEST:
        return typer.BadParameter(message)
    if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return WorkerUnreachable(f"the worker at {url} cannot answer now: {message}")
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        return TerminalError(
            f"the worker at {url} refused: {message}. Set AGENTS_STREAM_AUTH_TOKEN to its token"
        )
    return TerminalError(message)


def _message(answer: httpx.Response) -> str:
    try:
        return str(orjson.loads(answer.content)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
