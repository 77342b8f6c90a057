"""What a reply means, as a table and as properties."""

import json
from datetime import UTC, datetime
from email.utils import format_datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.core.envelope import read_result
from agents_stream.core.retry import MAX_RETRY_AFTER_MS
from agents_stream.settings import Settings
from agents_stream.stages.tools.catalog import Tool, tools_of
from agents_stream.stages.tools.http_call import Answer, NoAnswer, NotSent, Reply
from agents_stream.stages.tools.results import Attempt, interrupted, judge, retry_after_ms

NOW_MS = 1_700_000_000_000
WHATSAPP, CRM = tools_of(Settings(_env_file=None))


def attempt_of(tool: Tool) -> Attempt:
    """Give an attempt of a command of this tool."""
    return Attempt("c1", "s1", tool.name, 2)


def outcome(tool: Tool, reply: Reply) -> tuple[str, bool, str | None]:
    """Give status, retryable and error code of what a reply means."""
    result = judge(tool, attempt_of(tool), reply, NOW_MS)
    code = result["error"]["code"] if result["error"] else None
    return result["status"], result["retryable"], code


@pytest.mark.parametrize("tool", [WHATSAPP, CRM], ids=["whatsapp", "crm"])
def test_every_status_means_what_the_table_says(tool: Tool) -> None:
    """2xx succeeded; 408, 425, 429 and 5xx to be retried; everything else failed for good."""
    for status in range(100, 600):
        if 200 <= status < 300:
            expected: tuple[str, bool, str | None] = ("succeeded", False, None)
        else:
            again = status in {408, 425, 429} or status >= 500
            expected = ("failed", again, f"http_{status}")
        assert outcome(tool, Answer(status, "", b'{"id":"order-1"}')) == expected


@pytest.mark.parametrize(
    "tool, reply, expected",
    [
        (WHATSAPP, NotSent("refused"), ("failed", True, "not_sent")),
        (CRM, NotSent("refused"), ("failed", True, "not_sent")),
        (WHATSAPP, NoAnswer("timeout"), ("unknown", False, "no_answer")),
        (CRM, NoAnswer("timeout"), ("failed", True, "no_answer")),
        (WHATSAPP, Answer(200, "OK", b"", cut=True), ("succeeded", False, None)),
        (CRM, Answer(200, "OK", b'{"id":', cut=True), ("failed", True, "answer_cut")),
    ],
)
def test_a_call_without_answer_is_repeated_only_where_the_key_protects(
    tool: Tool, reply: Reply, expected: tuple[str, bool, str | None]
) -> None:
    """Rather never than twice for WhatsApp; the CRM deduplicates by the key (G6)."""
    assert outcome(tool, reply) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"OK",
        b"[]",
        b"null",
        b"{}",
        b'{"id":""}',
        b'{"id":null}',
        b'{"id":true}',
        b'{"id":{"n":1}}',
        b'{"id":1.5}',
        b'{"id":"o1",,,',
        b'{"id":"o1","deep":' + b"[" * 40 + b"]" * 40 + b"}",
        b"\xff\xfe{}",
        b'{"id":NaN}',
        b"x" * 70_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_an_order_without_a_usable_id_is_unknown_and_a_message_is_sent(body: bytes) -> None:
    """An order's success needs `outputs.id`; one that may exist is not called failed."""
    assert outcome(CRM, Answer(200, "OK", body)) == ("unknown", False, "no_order_id")
    assert outcome(WHATSAPP, Answer(200, "OK", body))[0] == "succeeded"


@pytest.mark.parametrize("order_id", ["order-1", 17, 0, "ü"])
def test_the_outputs_are_the_json_object_of_the_body(order_id: str | int) -> None:
    """Outputs from the JSON body, its other fields too."""
    outputs = {"id": order_id, "more": {"a": [1, None]}}
    result = judge(CRM, attempt_of(CRM), Answer(201, "", orjson.dumps(outputs)), NOW_MS)
    assert result == {
        "commandId": "c1",
        "sessionId": "s1",
        "tool": "crm.order.create",
        "attempt": 2,
        "status": "succeeded",
        "retryable": False,
        "retryAfterMs": None,
        "outputs": outputs,
        "error": None,
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=20,
)
bodies = st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode())
replies: st.SearchStrategy[Reply] = st.one_of(
    st.builds(
        Answer,
        st.integers(100, 999),
        st.text(max_size=80),
        bodies,
        st.booleans(),
        st.none() | st.text(max_size=30),
    ),
    st.builds(NotSent, st.text(max_size=300)),
    st.builds(NoAnswer, st.text(max_size=300)),
)


@given(st.sampled_from([WHATSAPP, CRM]), replies)
def test_whatever_is_answered_ingress_takes_the_result(tool: Tool, reply: Reply) -> None:
    """Every attempt gets a result: one that ingress refused would leave the command pending."""
    result = judge(tool, attempt_of(tool), reply, NOW_MS)
    accepted = read_result(orjson.dumps(result))
    assert accepted.session_id == "s1"
    assert result["status"] == "succeeded" or len(result["error"]["message"]) <= 300


@pytest.mark.parametrize(
    "header, expected",
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("0", 0),
        (" 7 ", 7_000),
        ("120", 120_000),
        ("9" * 30, MAX_RETRY_AFTER_MS),
        ("²", None),
        (format_datetime(datetime.fromtimestamp(NOW_MS / 1000 + 90, UTC), usegmt=True), 90_000),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER_MS),
        ("Fri, 31 Dec 9999 23:59:59 -2300", MAX_RETRY_AFTER_MS),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(header: str | None, expected: int | None) -> None:
    """Retry-After is honoured in both its forms, and garbage is none."""
    assert retry_after_ms(header, NOW_MS) == expected


@pytest.mark.parametrize("status", [200, 404])
def test_retry_after_counts_only_where_there_is_a_retry(status: int) -> None:
    """A final answer asks for no other."""
    reply = Answer(status, "", b'{"id":"o"}', retry_after="5")
    assert judge(CRM, attempt_of(CRM), reply, NOW_MS)["retryAfterMs"] is None


def test_retry_after_reaches_the_result() -> None:
    """The reducer waits at least that long (SPEC §5)."""
    reply = Answer(429, "Too Many Requests", b"slow down", retry_after="5")
    result = judge(WHATSAPP, attempt_of(WHATSAPP), reply, NOW_MS)
    assert result["retryAfterMs"] == 5_000
    assert result["error"] == {
        "code": "http_429",
        "message": "The tool answered 429 Too Many Requests: slow down",
    }


def test_an_interrupted_attempt_is_unknown_and_accepted() -> None:
    """Started without an end is told as what it is, and never retried."""
    result = interrupted(attempt_of(WHATSAPP))
    assert (result["status"], result["retryable"]) == ("unknown", False)
    read_result(orjson.dumps(result))
