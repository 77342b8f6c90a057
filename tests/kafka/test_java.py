"""Which Java runs the broker."""

import subprocess
from pathlib import Path

import pytest

from agents_stream.kafka.java import JavaMissing, find_java


def java_home(tmp_path: Path, says: str) -> Path:
    """Make a Java that says this of itself."""
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    java.chmod(0o755)
    return tmp_path


def test_the_one_from_the_wheel_by_default() -> None:
    """No Java has to be on the machine: the wheel's is there and runs."""
    shown = subprocess.run([find_java(None), "-version"], capture_output=True, check=True)
    assert b"version" in shown.stderr


@pytest.mark.parametrize("says", ['openjdk version "17.0.15"', 'java version "25" 2025-09-16'])
def test_the_users_own_if_he_prefers(tmp_path: Path, says: str) -> None:
    """JAVA_HOME of the settings is used when it is new enough."""
    assert find_java(java_home(tmp_path, says)) == tmp_path / "bin" / "java"


@pytest.mark.parametrize("says", ['openjdk version "11.0.2"', 'java version "1.8.0_202"', "what?"])
def test_too_old_a_java(tmp_path: Path, says: str) -> None:
    """It is refused before Kafka would fail with a class file version."""
    with pytest.raises(JavaMissing, match="17 or newer"):
        find_java(java_home(tmp_path, says))


def test_no_java_where_the_user_says(tmp_path: Path) -> None:
    """The setting is named."""
    with pytest.raises(JavaMissing, match="AGENTS_STREAM_JAVA_HOME"):
        find_java(tmp_path)
