"""The reason codes: a closed list, explained, and each of them given by somebody."""

import re
from pathlib import Path

from agents_stream.core.reasons import Reason

ROOT = Path(__file__).parents[2]


def test_the_page_explains_every_code() -> None:
    """docs/reasons.md and the list agree; each row says what it means and what one can do."""
    page = (ROOT / "docs" / "reasons.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", page, re.MULTILINE)
    codes = [code for code, _, _ in rows]
    assert sorted(codes) == sorted(Reason)
    assert all(meaning.endswith(".") and remedy.endswith(".") for _, meaning, remedy in rows)


def test_every_code_is_given_by_the_core() -> None:
    """No code is only a promise: the core gives each of them somewhere."""
    core = ROOT / "agents_stream" / "core"
    given = {
        name
        for path in core.rglob("*.py")
        for name in re.findall(r"\bReason\.([A-Z_]+)\b", path.read_text())
    }
    assert given == {reason.name for reason in Reason}


def test_codes_are_spelled_like_their_names() -> None:
    """Their spelling is part of the timeline's contract."""
    assert all(reason.value == reason.name.lower() == str(reason) for reason in Reason)
