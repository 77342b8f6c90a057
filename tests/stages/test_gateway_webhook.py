"""The webhook's signature, checked with the code that its readers are given."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from agents_stream.stages.gateway.webhook import sign

DOCS = Path(__file__).parents[2] / "docs" / "engine-webhook.md"


def checker() -> Callable[[str, str, bytes], bool]:
    """Take the function out of docs/engine-webhook.md."""
    snippet = re.search(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert snippet is not None
    names: dict[str, Any] = {}
    exec(compile(snippet[1], str(DOCS), "exec"), names)  # noqa: S102 - our own documentation
    check: Callable[[str, str, bytes], bool] = names["is_from_agents_stream"]
    return check


@given(st.text(min_size=1, max_size=40), st.binary(max_size=300))
def test_what_we_sign_the_documented_check_accepts(secret: str, body: bytes) -> None:
    """A reader who copies the snippet is served; another body or secret is refused."""
    check, signature = checker(), sign(SecretStr(secret), body, int(time.time()))
    assert check(secret, signature, body)
    assert not check(secret, signature, body + b" ")
    assert not check(secret + "x", signature, body)


@pytest.mark.parametrize("seconds", [-301, -3600, 400])
def test_an_old_signature_is_refused(seconds: int) -> None:
    """What was recorded once cannot be sent again for long."""
    signature = sign(SecretStr("s"), b"{}", int(time.time()) + seconds)
    assert not checker()("s", signature, b"{}")


@pytest.mark.parametrize("signature", ["", "t=1", "v1=00", "t=x,v1=00", "=,=,,"])
def test_nonsense_is_refused(signature: str) -> None:
    """The snippet meets whatever the world sends."""
    assert not checker()("s", signature, b"{}")
