"""How pages are made: templates with everything escaped, static files, the security headers.

Whatever a customer or an engine wrote may stand on a page, so nothing on it can run: templates
escape by default, and the policy allows scripts and styles from our own files only.
"""

import hashlib
import time
from datetime import datetime
from functools import cache
from http import HTTPStatus
from importlib import resources
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_A_YEAR_S: Final = 365 * 24 * 3600


async def add_security_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Put the security headers on every answer (an `on_response_prepare` signal)."""
    response.headers.update(SECURITY_HEADERS)


def prepare() -> None:
    """Read and compile everything now: a first visit must not hold up the worker's timers."""
    for name in _environment().list_templates():
        _environment().get_template(name)


def html_answer(template: str, status: int = HTTPStatus.OK, **values: object) -> web.Response:
    """Answer a page."""
    text = _environment().get_template(template).render(now_ms=time.time_ns() // 10**6, **values)
    return web.Response(
        text=text, status=status, content_type="text/html", headers={"Cache-Control": "no-store"}
    )


async def static_file(request: web.Request) -> web.StreamResponse:
    """A file of the package; its address changes with its content, so browsers may keep it."""
    name = request.match_info["name"]
    found = _files().get(name)
    if found is None:
        raise web.HTTPNotFound
    headers = {
        "Content-Type": _TYPES[PurePosixPath(name).suffix],
        "Cache-Control": f"public, max-age={_A_YEAR_S}, immutable",
    }
    return web.Response(body=found, headers=headers)


def ms_of(moment: str) -> int:
    """An ISO 8601 time as milliseconds since the epoch."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def clock(moment: str) -> str:
    """An ISO 8601 time as a person reads it: `2026-01-31 12:00:00`, UTC."""
    return moment[:19].replace("T", " ")


def as_json(value: object) -> str:
    """A value as indented JSON."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()


@cache
def _files() -> dict[str, bytes]:
    folder = resources.files("agents_stream.views") / "static"
    return {
        item.name: item.read_bytes()
        for item in folder.iterdir()
        if PurePosixPath(item.name).suffix in _TYPES
    }


@cache
def _address(name: str) -> str:
    return f"/static/{name}?{hashlib.sha256(_files()[name]).hexdigest()[:12]}"


def _link(path: str, **words: Any) -> str:
    """A path with the query that is given; what is empty is left out."""
    given = {name: value for name, value in words.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("agents_stream.views"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(ms_of=ms_of, clock=clock, as_json=as_json)
    environment.globals.update(link=_link, static=_address)
    return environment
