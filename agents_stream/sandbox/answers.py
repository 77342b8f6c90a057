"""What an HTTP answer of the sandbox looks like: the shapes of SPEC §8, as JSON."""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from agents_stream.core.errors import AgentsStreamError

Model = TypeVar("Model", bound=BaseModel)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_PROBLEMS_TOLD = 5


class Rejection(AgentsStreamError):  # noqa: N818 - it says what happened
    """A request that is answered with an error.

    `status` is the HTTP status, `code` a word for programs, the message a sentence for people.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def json_answer(
    body: object, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Answer `body` as JSON."""
    return web.Response(
        body=orjson.dumps(body),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def error_answer(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Answer `{"error": {"code", "message"}}`."""
    return json_answer({"error": {"code": code, "message": message}}, status, headers)


def list_answer(
    items: list[dict[str, Any]], next_cursor: str | None = None, **more: object
) -> web.Response:
    """Answer `{"items": [...], "nextCursor": ...}`, with `more` beside it."""
    return json_answer({"items": items, "nextCursor": next_cursor, **more})


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn a rejection, ours or aiohttp's (404, 405, 413), into the JSON form of an error."""
    try:
        return await handler(request)
    except Rejection as refusal:
        return error_answer(refusal.status, refusal.code, str(refusal))
    except web.HTTPException as refusal:
        if refusal.status < HTTPStatus.BAD_REQUEST:
            raise
        code = HTTPStatus(refusal.status).phrase.lower().replace(" ", "_")
        allow = refusal.headers.get("Allow")
        headers = {"Allow": allow} if allow else None
        return error_answer(refusal.status, code, refusal.text or refusal.reason, headers)


async def read_json_bytes(request: web.Request) -> bytes:
    """Read the body of a request that must say that it is JSON.

    Raises:
        Rejection: 415, the content type is another. (A form of a foreign page cannot send JSON
            without the browser asking us first.)

    """
    if request.content_type != "application/json":
        raise Rejection(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "Send JSON with the header Content-Type: application/json",
        )
    return await request.read()


def problems(error: ValidationError) -> str:
    """Say what is wrong with a body, field by field, without repeating its values."""
    told = [
        f"{'.'.join(str(part) for part in item['loc']) or 'body'}: {item['msg']}"
        for item in error.errors(include_input=False, include_url=False, include_context=False)
    ]
    hidden = len(told) - MAX_PROBLEMS_TOLD
    more = f"; and {hidden} more" if hidden > 0 else ""
    return "; ".join(told[:MAX_PROBLEMS_TOLD]) + more


async def read_model(request: web.Request, model: type[Model]) -> Model:
    """Read the body of a request as `model`.

    Raises:
        Rejection: 415 for another content type, 400 for a body that is no such thing.

    """
    raw = await read_json_bytes(request)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise Rejection(HTTPStatus.BAD_REQUEST, "invalid_schema", problems(error)) from None


def query_int(request: web.Request, name: str, default: int, low: int, high: int) -> int:
    """Read a whole number of the query string, between `low` and `high`.

    Raises:
        Rejection: 400, it is no such number.

    """
    text = request.query.get(name, "")
    if not text:
        return default
    # isascii: int() would take the digits of every script.
    if not (text.isascii() and text.isdigit()) or not low <= int(text[:19]) <= high:
        raise Rejection(
            HTTPStatus.BAD_REQUEST,
            "invalid_query",
            f"{name} is a whole number from {low} to {high}",
        )
    return int(text)
