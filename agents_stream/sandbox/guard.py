"""Who may talk to the sandbox: nobody's web page but our own.

The sandbox has no password, since it plays on the machine of the person who started it. What
protects it is where a request comes from: a browser names the page's origin and the host it
believes to talk to. A foreign page that posts to us is refused by its origin; one whose name was
rebound to 127.0.0.1 (DNS rebinding) by its host. Programs without a browser send no origin.
"""

import ipaddress
from http import HTTPStatus

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from yarl import URL

from agents_stream.sandbox.answers import Handler, Rejection

log = structlog.get_logger()

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_SITES = frozenset({"same-origin", "none"})

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address) can only mean this machine."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _named_host(request: web.Request) -> str:
    """Return the host name that the client believes to talk to, without the port."""
    try:
        return URL(f"http://{request.headers.get('Host', '')}").host or ""
    except ValueError:
        return ""


def _check_host(request: web.Request) -> None:
    if not is_loopback(_named_host(request)):
        log.warning("sandbox_refused_host", method=request.method, path=request.path)
        raise Rejection(
            HTTPStatus.FORBIDDEN,
            "foreign_host",
            "The sandbox listens on this machine only: call it localhost or 127.0.0.1",
        )


def _check_origin(request: web.Request) -> None:
    origin = request.headers.get("Origin")
    site = request.headers.get("Sec-Fetch-Site", "none")
    own = f"http://{request.headers.get('Host', '')}"
    if (origin is not None and origin.lower() != own.lower()) or site not in OWN_SITES:
        log.warning("sandbox_refused_origin", method=request.method, path=request.path)
        raise Rejection(
            HTTPStatus.FORBIDDEN, "foreign_origin", "A page of another site may not ask for this"
        )


def guard(listen_host: str) -> Middleware:
    """Return the middleware that refuses foreign pages, for a server on `listen_host`."""
    private = is_loopback(listen_host)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if private:
            _check_host(request)
        if request.method not in SAFE_METHODS:
            _check_origin(request)
        return await handler(request)

    return check


async def add_security_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Put the security headers on every answer (an `on_response_prepare` signal)."""
    response.headers.update(SECURITY_HEADERS)
