"""What `make check` makes of the advisories for the packages of the lock file."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

_PATH = Path(__file__).parents[1] / ".ci" / "audit_dependencies.py"
_SPEC = importlib.util.spec_from_file_location("audit_dependencies", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
audit = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(audit)

SOUND = {"name": "sound", "version": "1", "vulns": []}
UNKNOWN = {"name": "unknown", "skip_reason": "not found"}
FAULTY = {"name": "faulty", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}


@pytest.mark.parametrize(
    ("packages", "strict", "code", "words"),
    [
        ([SOUND], True, 0, "1 packages audited"),
        ([SOUND, FAULTY], False, 1, "faulty 2: CVE-1, mended in 2.1"),
        ([SOUND, UNKNOWN], False, 0, "no advisories to be had for 1"),
        ([SOUND, UNKNOWN], True, 1, "no advisories to be had for 1"),
        (None, False, 0, "nothing was audited"),
        (None, True, 1, "nothing was audited"),
    ],
)
def test_what_is_found_fails_and_what_cannot_be_asked_is_said(
    packages: list[dict[str, Any]] | None, code: int, words: str, *, strict: bool
) -> None:
    """A vulnerability always fails the check; silence fails it only where that is asked for."""
    report = None if packages is None else {"dependencies": packages}
    found, told = audit.verdict(report, strict=strict)
    assert found == code
    assert words in told
