"""The door for people: a form that takes `AUTH_TOKEN` and leaves a cookie that stands for it.

Programs send the token with each request (see `http.guard`); a browser cannot. The cookie holds
no token but a signature made with it and the time at which it ends, so that every worker with the
same token knows it, and none has to remember who is logged in. A page of another site gets
nothing from it: it is `SameSite=Strict`, and `guard` checks the origin of what is no reading.
"""

import asyncio
import hashlib
import hmac
import re
import time
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import SecretStr

from agents_stream.views.http import (
    OPEN_PATHS,
    OPEN_PREFIXES,
    Handler,
    Rejection,
    read_body,
    same_secret,
)
from agents_stream.views.looks import html_answer

log = structlog.get_logger()

COOKIE: Final = "agents_stream_login"
LOGIN_S: Final = 12 * 3600
MAX_FORM_BYTES: Final = 16 * 1024
WRONG_TOKEN_PAUSE_S: Final = 0.5
"""What a wrong guess costs."""

_OWN_PATH: Final = re.compile(r"/(?![/\\])[^\x00-\x1f\x7f\\]*")


def door(token: SecretStr | None) -> Middleware:
    """Return the middleware that lets people in; it stands before `guard`."""

    @web.middleware
    async def let_in(request: web.Request, handler: Handler) -> web.StreamResponse:
        path = request.path
        is_open = path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)
        if token is None or is_open or "Authorization" in request.headers:
            return await handler(request)
        match request.method, path:
            case "POST", "/login":
                return await _log_in(request, token)
            case "POST", "/logout":
                return _log_out()
        if _is_valid(request.cookies.get(COOKIE, ""), token):
            return await handler(_with_token(request, token))
        if request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
            return _ask("/" if path == "/login" else request.path_qs)
        return await handler(request)

    return let_in


def _with_token(request: web.Request, token: SecretStr) -> web.Request:
    """The request as a program would have sent it."""
    headers = request.headers.copy()
    headers["Authorization"] = f"Bearer {token.get_secret_value()}"
    return request.clone(headers=headers)


async def _log_in(request: web.Request, token: SecretStr) -> web.StreamResponse:
    """Take the form; a wrong token gets it again."""
    body = await read_body(request, MAX_FORM_BYTES)
    try:
        form = parse_qs(body.decode(), max_num_fields=8)
    except ValueError as error:  # no UTF-8, or too many fields
        raise Rejection(HTTPStatus.BAD_REQUEST, "bad_request", "This is no login form") from error
    target = _own_path(form.get("next", ["/"])[0])
    if not same_secret(form.get("token", [""])[0], token):
        log.warning("login_refused", remote=request.remote)
        await asyncio.sleep(WRONG_TOKEN_PAUSE_S)
        return _ask(target, "This is not the token that this worker was started with.")
    log.info("login", remote=request.remote)
    answer = web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": target})
    answer.set_cookie(
        COOKIE,
        _sign(int(time.time()) + LOGIN_S, token),
        max_age=LOGIN_S,
        httponly=True,
        samesite="Strict",
        secure=request.secure,
    )
    return answer


def _log_out() -> web.Response:
    answer = web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": "/"})
    answer.del_cookie(COOKIE, httponly=True, samesite="Strict")
    return answer


def _ask(target: str, problem: str = "") -> web.Response:
    """Show the form. Without a challenge in the header: the browser would ask by itself."""
    return html_answer("login.html", status=HTTPStatus.UNAUTHORIZED, target=target, problem=problem)


def _own_path(text: str) -> str:
    """Where to go after the login: a path of ours, never another site."""
    return text if _OWN_PATH.fullmatch(text) else "/"


def _sign(ends_at_s: int, token: SecretStr) -> str:
    said = f"agents_stream login until {ends_at_s}".encode()
    signature = hmac.new(token.get_secret_value().encode(), said, hashlib.sha256).hexdigest()
    return f"{ends_at_s}.{signature}"


def _is_valid(cookie: str, token: SecretStr) -> bool:
    ends_at, _, _ = cookie.partition(".")
    if not (ends_at.isascii() and ends_at.isdigit() and len(ends_at) <= len(str(2**53))):
        return False
    ends_at_s = int(ends_at)
    return ends_at_s > time.time() and hmac.compare_digest(
        cookie.encode(errors="surrogatepass"), _sign(ends_at_s, token).encode()
    )
