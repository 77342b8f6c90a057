"""`python -m tests.hostile.fuzz --minutes 10`: every target under a coverage-guided fuzzer.

Each target runs in a process of its own, since libFuzzer ends its process. What it found new is
kept in its corpus, what broke an invariant in a file whose name is printed.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

NO_ATHERIS = "atheris is not installed: there is no wheel of it for this Python (3.11 has one)"
INPUT_LIMIT_S = 10
MAX_RSS_MB = 1_024
MAX_INPUT_BYTES = 4_096
INSTRUMENTED = ("agents_stream.core", "agents_stream.stages", "agents_stream.kafka.unpacking")


def main() -> int:
    """Fuzz the targets one after the other; 1 if one of them broke."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz"))
    parser.add_argument("targets", nargs="*")
    options = parser.parse_args()
    if find_spec("atheris") is None:
        sys.stdout.write(f"{NO_ATHERIS}\n")
        return 1
    from tests.hostile.targets import TARGETS  # noqa: PLC0415 - after the reason, if there is one

    unknown = sorted(set(options.targets) - set(TARGETS))
    if unknown or not options.minutes > 0:
        parser.error(
            f"no target is called {', '.join(unknown)}; there are {', '.join(TARGETS)}"
            if unknown
            else "--minutes is more than 0"
        )
    names = options.targets or list(TARGETS)
    seconds = max(1, round(options.minutes * 60 / len(names)))
    broken = [
        name
        for name in names
        if run(name, options.corpus, [f"-max_total_time={seconds}"]).returncode != 0
    ]
    sys.stdout.write(f"broken: {', '.join(broken)}\n" if broken else "no invariant broke\n")
    return 1 if broken else 0


def run(
    name: str, corpus: Path, limits: Sequence[str], *, quiet: bool = False
) -> "subprocess.CompletedProcess[bytes]":
    """Fuzz one target in a process of its own."""
    folder = corpus / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "tests.hostile.fuzz_one",
        name,
        str(folder),
        f"-artifact_prefix={folder}-broke-",
        f"-timeout={INPUT_LIMIT_S}",
        f"-rss_limit_mb={MAX_RSS_MB}",
        f"-max_len={MAX_INPUT_BYTES}",
        "-print_final_stats=1",
        *limits,
    ]
    return subprocess.run(command, check=False, capture_output=quiet)


def plant(folder: Path, seeds: Sequence[bytes]) -> None:
    """Write a corpus as libFuzzer names its files."""
    for seed in seeds:
        (folder / sha256(seed).hexdigest()[:16]).write_bytes(seed)


if __name__ == "__main__":
    sys.exit(main())
