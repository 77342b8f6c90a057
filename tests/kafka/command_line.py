"""`agents-stream` as a subprocess: what a person or a script sees of it."""

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from agents_stream.settings import Settings
from tests.kafka.cluster import environment

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0


@dataclass(frozen=True)
class Answer:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return orjson.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Standard output as JSON lines."""
        return [orjson.loads(line) for line in self.out.splitlines()]


def variables(settings: Settings, **more: str) -> dict[str, str]:
    """The environment of a command; it finds the package whatever its folder is."""
    return {**environment(settings, **more), "PYTHONPATH": str(ROOT)}


def run(
    settings: Settings,
    *arguments: str,
    stdin: str | bytes = b"",
    folder: Path | None = None,
    **more: str,
) -> Answer:
    """Run a command to its end, in a folder without `.env` unless one is given."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "agents_stream", *arguments],
        env=variables(settings, **more),
        cwd=folder or settings.data_dir,
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


async def cli(settings: Settings, *arguments: str, **given: Any) -> Answer:
    """Run a command beside the event loop of a test."""
    return await asyncio.to_thread(run, settings, *arguments, **given)


def assert_told(answer: Answer, code: int, *words: str) -> None:
    """A command ended with this code and said why, in few words and without a traceback."""
    assert answer.code == code, answer
    assert "Traceback" not in answer.err
    for word in words:
        assert word in answer.err, answer
    assert len(answer.err.splitlines()) <= 3, answer.err
