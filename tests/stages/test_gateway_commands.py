"""Reading commands, and the settings by which tools are called."""

from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from agents_stream.core.errors import InvalidEvent, TerminalError
from agents_stream.settings import Settings
from agents_stream.stages.gateway.commands import read_command
from agents_stream.stages.tools.catalog import endpoint_of, tools_of

WHATSAPP, CRM = tools_of(Settings(_env_file=None))

GOOD: dict[str, Any] = {
    "id": "c1",
    "tool": "whatsapp.message.send",
    "workspaceId": "w1",
    "sessionId": "s1",
    "attempt": 2,
    "issuedAt": 1,
    "asOf": 4,
    "inputs": {"contactId": "conv", "message": "Hola"},
}


def test_a_command_is_its_attempt_and_its_inputs() -> None:
    """What is posted is the inputs, nothing else."""
    command = read_command(WHATSAPP, orjson.dumps(GOOD | {"extra": 1}))
    assert orjson.loads(command.body) == GOOD["inputs"]
    assert command.attempt.key == "c1/2"
    assert command.attempt.session_id == "s1"


@pytest.mark.parametrize("levels", [254, 900, 5_000])
def test_what_is_too_deep_to_be_sent_is_refused(levels: int) -> None:
    """G10: what is read but cannot be written would end the gateway, at every restart again."""
    deep = b"[" * levels + b"]" * levels
    raw = orjson.dumps({**GOOD, "inputs": {"x": 0}}).replace(b'{"x":0}', b'{"x":%b}' % deep)
    with pytest.raises(InvalidEvent):
        read_command(WHATSAPP, raw)


@pytest.mark.parametrize("raw", [None, b"", b"{", b"\xff", b'{"id": NaN}'])
def test_what_is_no_json_is_refused(raw: bytes | None) -> None:
    """Bad input is named for what it is (G10)."""
    with pytest.raises(InvalidEvent) as refused:
        read_command(WHATSAPP, raw)
    assert refused.value.reason == "invalid_json"


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""},
        {"id": "a\r\nX-Evil: 1"},
        {"id": "ñ"},
        {"id": " a"},
        {"id": "a" * 201},
        {"id": 7},
        {"sessionId": ""},
        {"sessionId": "s" * 257},
        {"attempt": 0},
        {"attempt": "1"},
        {"attempt": True},
        {"inputs": []},
        {"inputs": None},
        {"tool": "crm.order.create"},
        {"tool": None},
    ],
)
def test_what_is_no_command_is_refused(change: dict[str, Any]) -> None:
    """An id must fit into a header, the tool must be the topic's (G10)."""
    with pytest.raises(InvalidEvent) as refused:
        read_command(WHATSAPP, orjson.dumps(GOOD | change))
    assert refused.value.reason == "invalid_schema"
    assert "Hola" not in refused.value.detail


@pytest.mark.parametrize(
    "url",
    ["", "tool", "ftp://tool/", "http://", "http:///x", "http://h:99999/", "http://h:0/x",
     "http://h/a b", "http://h/a\nb", "http://ñ/", "http://[::1"],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_at_the_start(url: str) -> None:
    """No call can fail because of its own address: the setting is named instead."""
    with pytest.raises(TerminalError, match="AGENTS_STREAM_CRM_URL"):
        endpoint_of("CRM", url, None)


@pytest.mark.parametrize("token", ["a\nb", "ñ", " a", ""])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(token: str) -> None:
    """The message names the setting, never the token."""
    with pytest.raises(TerminalError, match="AGENTS_STREAM_CRM_TOKEN") as refused:
        endpoint_of("CRM", "http://h/x", SecretStr(token))
    assert not token or repr(token) not in str(refused.value)


@pytest.mark.parametrize(
    "url, here",
    [
        ("http://localhost:1/x", True),
        ("http://127.0.0.1/x", True),
        ("http://[::1]:8/x", True),
        ("https://api.example.com/x", False),
        ("http://10.0.0.1/x", False),
    ],
)
def test_a_proxy_is_for_the_world_only(url: str, here: bool) -> None:  # noqa: FBT001 - a case
    """Services of this machine are called directly."""
    endpoint = endpoint_of("CRM", url, None)
    assert endpoint is not None
    assert endpoint.on_this_machine is here
