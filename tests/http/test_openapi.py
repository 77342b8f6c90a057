"""The OpenAPI document against a real server: schemathesis makes the requests, good and bad."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from structlog.testing import capture_logs

from agents_stream.core.events import EVENTS
from agents_stream.views.api import Api
from agents_stream.views.openapi import document
from tests.http.asking import get, many
from tests.http.shown_worker import run_cluster

CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 25
SCHEMA = schemathesis.openapi.from_dict(dict(document()))
OPERATIONS = {
    found.ok().label: found.ok()  # type: ignore[union-attr] # the document has no faults
    for found in SCHEMA.get_all_operations()
}


@contextmanager
def served() -> Iterator[str]:
    """A worker with sessions, in a loop of its own: schemathesis does not know asyncio."""
    loop = asyncio.new_event_loop()
    done = asyncio.Event()

    async def serve() -> None:
        async with run_cluster(many(40)) as cluster:
            urls.append(cluster.urls[0])
            await done.wait()

    urls: list[str] = []
    thread = Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        while not urls:
            thread.join(0.01)
            assert thread.is_alive()
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Where the worker answers."""
    with served() as address:
        yield address


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_one_that_the_document_knows(
    label: str, mode: GenerationMode, url: str
) -> None:
    """SPEC §8: no fault of the server, only statuses, types and forms that are written down.

    Once with questions as the document wants them, once with such as it does not.
    """
    operation = OPERATIONS[label]

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        case.validate_response(case.call(base_url=url), checks=CHECKS)

    try:
        ask()
    except Unsatisfiable:
        assert not operation.query  # nothing can be asked in a wrong way
        assert not operation.path_parameters


def test_the_document_names_every_path_of_the_api(url: str) -> None:
    """And the server gives the same document."""
    routes = [route.path for route in Api.routes(Api.__new__(Api))]
    named = {re.sub(r"\{.*", "{", path) for path in document()["paths"]}
    assert {re.sub(r"\{.*", "{", path) for path in routes} <= named
    assert {"/api/events", "/e/{"} <= named
    assert httpx.get(f"{url}/openapi.json").json() == document()


def test_the_document_knows_every_event() -> None:
    """Each with the data of its own model."""
    one = document()["components"]["schemas"]["Events"]["anyOf"][0]
    assert {item["properties"]["name"]["const"] for item in one["oneOf"]} == set(EVENTS)


async def test_a_request_that_is_none_leaves_a_line_without_its_content(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """No event key and no query reaches a log, not by aiohttp's own words either."""
    async with run_cluster(many(1)) as cluster:
        with capture_logs() as lines:
            answer = await get(f"{cluster.urls[0]}/e/the-event-key-{'x' * 9_000}")
    assert answer.status_code == 400
    assert [line["event"] for line in lines if "malformed" in line["event"]] == ["http_malformed"]
    assert "the-event-key" not in f"{lines} {capfd.readouterr()}"
