"""How the tests ask a worker."""

import ssl
from collections.abc import Iterable
from typing import Any

import httpx

from tests.http.shown_worker import Log

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""httpx reads all the certificates of the world for each client, unless it is given these none."""


async def get(url: str, **words: Any) -> httpx.Response:
    """Ask as a program without any token does; what is None is left out of the query."""
    async with httpx.AsyncClient(verify=NO_TLS) as client:
        given = {name: value for name, value in words.items() if value is not None}
        return await client.get(url, params=given or None)  # {} would remove the address's own


async def ok(url: str, **words: Any) -> Any:
    """The JSON of an answer that has to be good."""
    answer = await get(url, **words)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(url: str, expected: int, **words: Any) -> tuple[str, str]:
    """The code and the message of an answer that has to be an error of this status."""
    answer = await get(url, **words)
    assert answer.status_code == expected, answer.text
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"code", "message"}
    return answer.json()["error"]["code"], answer.json()["error"]["message"]


async def all_pages(urls: list[str], path: str, **words: Any) -> list[dict[str, Any]]:
    """Follow the cursor to the end, asking another worker for each page."""
    items: list[dict[str, Any]] = []
    cursor, number = None, 0
    while number == 0 or cursor:
        page = await ok(urls[number % len(urls)] + path, cursor=cursor, **words)
        assert set(page) == {"items", "nextCursor"}
        items += page["items"]
        cursor, number = page["nextCursor"], number + 1
        assert number < 1_000
    return items


def many(count: int) -> Log:
    """Sessions of several kinds."""
    log = Log()
    for number in range(count):
        session_id = f"s{number:03d}"
        workspace = f"w{number % 3}"
        log.start(session_id, workspaceId=workspace, contactId=f"+57 {number}", mode="greeting")
        if number % 2:
            log.ask_for_data(session_id)
        if number % 5 == 0:
            log.offer(session_id)
        if number % 7 == 0:
            log.event(session_id, "agent/session.close", reason="completed")
    return log


def ids(items: Iterable[dict[str, Any]]) -> list[str]:
    """The session ids of the items of a list."""
    return [item["sessionId"] for item in items]
