"""What every HTTP answer and every request of a worker have in common (SPEC §8).

Answers are JSON, errors `{"error": {"code", "message"}}`. Who may ask is decided in one place,
`guard`: a worker that listens on this machine only is open to it, but not to foreign web pages;
one that listens to others asks for `AUTH_TOKEN`. No event key and no query ever reaches a log.
"""

import asyncio
import base64
import binascii
import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final

import orjson
import structlog
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.typedefs import Middleware
from pydantic import SecretStr
from yarl import URL

from agents_stream.core.errors import (
    AgentsStreamError,
    InvalidEvent,
    RetryableError,
    TerminalError,
)
from agents_stream.settings import Settings
from agents_stream.views.rates import Bodies, Hold, Rates

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
BODY_TIME_S: Final = 30.0
RETRY_AFTER_S: Final = 1

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
OPEN_PREFIXES: Final = ("/e/", "/static/")
"""What `guard` leaves alone: probes and static files hold no secrets, `/e/` has its own key."""

_HOLD: Final = web.RequestKey("hold", Hold)
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_SITES: Final = frozenset({"same-origin", "none"})
_EVENT_KEY: Final = re.compile(r"/e/.*", re.IGNORECASE | re.DOTALL)


class Rejection(AgentsStreamError):  # noqa: N818 - it says what happened
    """A request that is answered with an error.

    `status` is the HTTP status, `code` a word for programs, the message a sentence for people.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def new_application(settings: Settings) -> web.Application:
    """Return an application without routes, guarded and with JSON errors."""
    return web.Application(
        middlewares=[errors_as_json, limit(settings.http_rate), guard(settings)],
        client_max_size=MAX_BODY_BYTES,
    )


def json_answer(
    body: object, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Answer `body` as JSON that no proxy keeps."""
    return web.Response(
        body=orjson.dumps(body),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def error_answer(rejection: Rejection, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer `{"error": {"code", "message"}}`."""
    later = {"Retry-After": str(RETRY_AFTER_S)} if _is_unavailable(rejection) else {}
    body = {"error": {"code": rejection.code, "message": str(rejection)}}
    return json_answer(body, rejection.status, {**later, **(headers or {})})


def rejection_of(error: AgentsStreamError) -> Rejection:
    """Say which error a request gets that failed for `error`."""
    match error:
        case Rejection():
            return error
        case InvalidEvent(reason="too_large"):
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            return Rejection(status, error.reason, error.detail)
        case InvalidEvent():
            return Rejection(HTTPStatus.BAD_REQUEST, error.reason, error.detail)
        case RetryableError() | TerminalError():
            return Rejection(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", str(error))
        case _:
            return Rejection(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", str(error))


def told(request: web.BaseRequest, error: AgentsStreamError) -> Rejection:
    """Say which error a request gets that failed for `error`; ours to mend is logged too."""
    rejection = rejection_of(error)
    if rejection.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("http_failed", **_line(request), code=rejection.code, detail=str(error))
    return rejection


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises, and aiohttp's own 404, 405 and 413, into the form of an error."""
    try:
        return await handler(request)
    except web.HTTPException as refusal:
        if refusal.status < HTTPStatus.BAD_REQUEST:
            raise
        code = HTTPStatus(refusal.status).phrase.lower().replace(" ", "_")
        allow = refusal.headers.get("Allow")
        message = f"{refusal.status} {refusal.reason}"
        return error_answer(
            Rejection(refusal.status, code, message), {"Allow": allow} if allow else None
        )
    except AgentsStreamError as error:
        rejection = told(request, error)
        return error_answer(rejection, _challenge(request, rejection))
    except Exception:  # a bug of ours: the log has it whole, the answer nothing of it
        log.exception("http_failed", **_line(request))
        wrong = "This is a fault of the worker: its log says more"
        return error_answer(Rejection(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", wrong))


def limit(per_second: int) -> Middleware:
    """Return the middleware that refuses what is too much; probes always get through."""
    rates = Rates(per_second)
    bodies = Bodies()
    told_at_s = 0.0

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal told_at_s
        if request.path in OPEN_PATHS or rates.take(request.remote or ""):
            request[_HOLD] = hold = Hold(bodies)
            try:
                return await handler(request)
            finally:
                hold.release()
        if (now := time.monotonic()) > told_at_s + 1:  # one line a second, however many they are
            told_at_s = now
            log.warning("http_too_many_requests", remote=request.remote, per_second=per_second)
        told = (
            f"More than {per_second} requests a second come from you: send several events in one"
            " request, or raise AGENTS_STREAM_HTTP_RATE"
        )
        return error_answer(Rejection(HTTPStatus.SERVICE_UNAVAILABLE, "too_many_requests", told))

    return check


def guard(settings: Settings) -> Middleware:
    """Return the middleware that decides who may ask what, for a worker of these settings."""
    token = settings.auth_token

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in OPEN_PATHS or request.path.startswith(OPEN_PREFIXES):
            return await handler(request)
        if token is None:
            require_this_machine(request, settings, "AGENTS_STREAM_AUTH_TOKEN")
        elif not _has_token(request, token):
            raise _refuse(request, "unauthorized", "Send Authorization: Bearer with AUTH_TOKEN")
        _require_own_page(request, settings)
        return await handler(request)

    return check


def require_this_machine(request: web.Request, settings: Settings, secret_name: str) -> None:
    """Let a request without a secret pass only where nobody else can make one.

    That is: the worker listens on this machine only, the client calls it by a name that means
    this machine (not by one rebound to 127.0.0.1), and no page of another site sent it.

    Raises:
        Rejection: 401, with the name of the setting that opens the worker to others.

    """
    if not is_loopback(settings.web_host):
        raise _refuse(
            request,
            "unauthorized",
            f"This worker listens to other machines: set {secret_name} and send it",
        )
    named = _host_of(f"//{request.headers.get('Host', '')}")
    if not is_loopback(named) and named != _host_of(settings.public_url):
        raise _refuse(
            request, "foreign_host", "Call this worker localhost or 127.0.0.1, or set its WEB_URL"
        )
    _require_own_page(request, settings)


def same_secret(given: str, wanted: SecretStr) -> bool:
    """Compare in a time that tells nothing about the secret."""
    expected = wanted.get_secret_value().encode()
    return hmac.compare_digest(given.encode(errors="surrogatepass"), expected)


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address) can only mean this machine."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def read_body(request: web.Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """Read the body of a request, whatever its content type.

    Raises:
        Rejection: 413 for more than `limit` bytes, 400 for a body that does not come in time.
        RetryableError: the bodies of all requests would take too much memory.

    """
    body = bytearray()
    hold = request[_HOLD]
    try:
        async with asyncio.timeout(BODY_TIME_S):
            async for chunk in request.content.iter_any():
                hold.add(len(chunk))
                body += chunk
                if len(body) > limit:
                    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                    raise Rejection(status, "too_large", f"At most {limit} bytes are accepted")
    except TimeoutError:
        told = f"The body did not arrive within {BODY_TIME_S:g} s"
        raise Rejection(HTTPStatus.BAD_REQUEST, "too_slow", told) from None
    return bytes(body)


def masked_path(request: web.BaseRequest) -> str:
    """Give the path of a request as it may be logged: without its query and any event key."""
    return _EVENT_KEY.sub("/e/***", request.path)


class AccessLogger(AbstractAccessLogger):
    """The access log: `web.AppRunner(app, access_log_class=AccessLogger)`."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Write one line; what went well only at the level `debug`."""
        level = log.debug if response.status < HTTPStatus.BAD_REQUEST else log.info
        level("http_request", **_line(request), status=response.status, ms=round(time * 1000, 1))


def protocol_logger() -> logging.Logger:
    """Return the logger for aiohttp's own words: about what is no HTTP, or has too long a line.

    It quotes the request, which may hold an event key, with a traceback for each. Ours tells the
    kind of the fault.
    """
    logger = logging.Logger("agents_stream.http")  # noqa: LOG001 - nobody else is to have it
    logger.addHandler(_ProtocolFaults())
    return logger


class _ProtocolFaults(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        log.info("http_malformed", fault=kind.__name__ if kind else "unknown")


def _line(request: web.BaseRequest) -> dict[str, str]:
    return {"method": request.method, "path": masked_path(request)}


def _refuse(request: web.Request, code: str, message: str) -> Rejection:
    log.warning("http_refused", **_line(request), code=code)
    return Rejection(HTTPStatus.UNAUTHORIZED, code, message)


def _is_unavailable(rejection: Rejection) -> bool:
    return rejection.status == HTTPStatus.SERVICE_UNAVAILABLE


def _challenge(request: web.Request, rejection: Rejection) -> dict[str, str] | None:
    """Make a browser ask for the token (as any user's password), and tell programs what to send."""
    if rejection.code != "unauthorized" or request.path.startswith("/e/"):
        return None
    asks_for_page = "text/html" in request.headers.get("Accept", "")
    return {"WWW-Authenticate": f'{"Basic" if asks_for_page else "Bearer"} realm="agents_stream"'}


def _has_token(request: web.Request, token: SecretStr) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    match scheme.lower():
        case "bearer":
            return same_secret(given.strip(), token)
        case "basic":
            return same_secret(_password(given.strip()), token)
        case _:
            return False


def _password(credentials: str) -> str:
    try:
        decoded = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return decoded.partition(":")[2]


def _require_own_page(request: web.Request, settings: Settings) -> None:
    """Refuse what a page of another site makes a browser send. Programs send no origin."""
    if request.method in _SAFE_METHODS:
        return
    origin = request.headers.get("Origin")
    own = {f"//{request.headers.get('Host', '')}".lower(), _without_scheme(settings.public_url)}
    if origin is not None and _without_scheme(origin) not in own:
        raise _refuse(request, "foreign_origin", "A page of another site may not ask for this")
    if request.headers.get("Sec-Fetch-Site", "none") not in _OWN_SITES:
        raise _refuse(request, "foreign_origin", "A page of another site may not ask for this")


def _without_scheme(url: str) -> str:
    return url[url.find("//") :].lower() if "//" in url else url.lower()


def _host_of(url: str) -> str:
    try:
        return URL(url).host or ""
    except ValueError:
        return ""
