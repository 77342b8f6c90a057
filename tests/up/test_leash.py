"""The leash: a child that was asked to ends with its parent, however that ends."""

import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from agents_stream.leash import GO

CHILD = """
import time
from agents_stream.leash import hold_parent
hold_parent()
print("begun", flush=True)
time.sleep(60)
"""


def start(**variables: str) -> "subprocess.Popen[bytes]":
    """Start a child that sleeps."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), **variables},
    )


def test_it_ends_when_the_pipe_does() -> None:
    """No parent, no child."""
    with start(AGENTS_STREAM_LEASH="stdin") as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"begun\n"
        child.stdin.close()
        assert child.wait(10) == -signal.SIGTERM


def test_it_begins_at_the_first_byte() -> None:
    """Held back it loads what it needs and does nothing until it is let go."""
    with start(AGENTS_STREAM_LEASH="stdin", AGENTS_STREAM_PRELOAD="json") as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert select.select([child.stdout], [], [], 0.5)[0] == []
        child.stdin.write(GO)
        child.stdin.flush()
        assert child.stdout.readline() == b"begun\n"
        child.stdin.close()
        assert child.wait(10) == -signal.SIGTERM


def test_without_a_word_it_never_begins() -> None:
    """A parent that dies before it lets its child go leaves nothing."""
    with start(AGENTS_STREAM_LEASH="stdin", AGENTS_STREAM_PRELOAD="json") as child:
        out, _ = child.communicate(b"", timeout=10)
        assert (out, child.returncode) == (b"", 0)


def test_without_a_leash_the_pipe_means_nothing() -> None:
    """A worker started by hand, or by systemd with no input, goes on."""
    with start() as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"begun\n"
        child.stdin.close()
        time.sleep(0.3)
        assert child.poll() is None
        child.kill()
