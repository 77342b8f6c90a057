"""Look every package of the lock file up among the known vulnerabilities; part of `make check`.

pip-audit asks the package index for its advisories. A mirror has none, and a machine without a
network asks nobody: then this says how many packages nobody could speak for, and passes, unless
`--strict` is given, as it should be where releases are made.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

LIMIT_S = 300


def verdict(report: Mapping[str, Any] | None, *, strict: bool) -> tuple[int, str]:
    """Give the exit code and the words for what pip-audit reported; None if it could not ask."""
    packages: Sequence[Mapping[str, Any]] = [] if report is None else report["dependencies"]
    unknown = sum("skip_reason" in one for one in packages)
    known = len(packages) - unknown
    found = [
        f"{one['name']} {one['version']}: {fault['id']}, mended in"
        f" {', '.join(fault['fix_versions']) or 'no version yet'}"
        for one in packages
        for fault in one.get("vulns", ())
    ]
    if found:
        return 1, "known vulnerabilities:\n  " + "\n  ".join(found)
    if not known or unknown:
        words = f"{known} packages audited, none vulnerable; no advisories to be had for {unknown}"
        if not packages:
            words = "no advisories can be reached from here: nothing was audited"
        return (1 if strict else 0), words
    return 0, f"{known} packages audited, none has a known vulnerability"


def main(arguments: Sequence[str]) -> int:
    """Audit the lock file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lock")
    parser.add_argument("--strict", action="store_true", help="fail where nobody can be asked")
    given = parser.parse_args(arguments)
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip"]
    command += ["--progress-spinner", "off", "--format", "json", "--requirement", given.lock]
    done = subprocess.run(  # noqa: S603 - our own command
        command, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    try:
        report = json.loads(done.stdout)
    except ValueError:
        print(done.stderr.strip().splitlines()[-1:], file=sys.stderr)  # noqa: T201 - a command
        report = None
    code, words = verdict(report, strict=given.strict)
    print(words)  # noqa: T201 - a command
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
