"""The README's commands, run as they stand there, against a worker on real Kafka.

Blocks marked `run` (```sh run, ```python run) are run in their order, as a reader would. Of the
others it is checked that there are such commands, flags and targets.
"""

import asyncio
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import httpx
import orjson
import pytest
import typer

from agents_stream.cli import app, run_command
from agents_stream.settings import Settings
from tests.kafka.cluster import cluster, environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(sh|python)( run)?\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
RUN = [(language, text) for language, mark, text in BLOCKS if mark]
SHELL = "\n".join(text for language, _, text in BLOCKS if language == "sh")
COMMANDS = re.findall(r"^(?:\.venv/bin/)?agents-stream (.*)$", SHELL, re.MULTILINE)
LIMIT_S = 30.0

ORDERED = ("promos", "timeout", "auto_created_order")
ANSWERED = ("data_collection", "responded", "awaiting_more_data")


def set_up(folder: Path) -> Path:
    """Make what `make install` makes, as far as a reader sees it; give the folder's PATH entry."""
    bin_folder = folder / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "activate").write_text(f'PATH="{bin_folder}:$PATH"\n')
    program = bin_folder / "agents-stream"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m agents_stream "$@"\n')
    program.chmod(0o755)
    return bin_folder


async def run(language: str, text: str, folder: Path, variables: dict[str, str]) -> str:
    """Run a block; what it printed. It must end well."""
    command = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=variables,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == 0, f"{text}\n{err.decode()}"
    return out.decode()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_the_tour_goes_as_it_is_told(kafka_settings: Settings, tmp_path: Path) -> None:
    """Every block ends well; silence leads to an order, an answer in time to no message."""
    path = set_up(tmp_path)
    async with cluster(kafka_settings) as seen:
        worker = await seen.worker().ready()
        variables = environment(
            kafka_settings,
            AGENTS_STREAM_WEB_PORT=str(worker.port),
            PATH=f"{path}:{os.environ['PATH']}",
            PYTHONPATH=str(ROOT),
        )
        sending, looking, telling, answering, *rest = [
            (language, text.replace("http://localhost:6066", worker.url)) for language, text in RUN
        ]
        out = await run(*sending, tmp_path, variables)
        assert orjson.loads(out.partition("}")[0] + "}")["ids"]
        await until_applied(worker.url, "tour")
        assert "tour" in await run(*looking, tmp_path, variables)
        await seen.until_outcomes("tour", ORDERED)
        out = await run(*telling, tmp_path, variables)
        assert "agent/promos.offered" in out
        assert "compra_confirmada" in out
        await run(*answering, tmp_path, variables)
        await seen.until_outcomes("answered", ANSWERED)
        assert seen.messages("answered") == []
        printed = [await run(*block, tmp_path, variables) for block in rest]
        assert "G3, G7 and G8 hold" in printed[0]
        assert "every topic is as it should be" in printed[1]


def test_the_page_has_blocks_to_run() -> None:
    """The pattern finds them: five of the shell, one of Python."""
    assert [language for language, _ in RUN] == ["sh", "sh", "sh", "python", "sh", "sh"]


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_exists_with_its_flags(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of blocks that nobody runs: unknown commands and flags are refused before the help."""
    words = shlex.split(command.partition("--data '")[0])
    assert run_command([*words, "--help"]) == 0, capsys.readouterr().err


def test_the_table_of_commands_is_complete() -> None:
    """One row or more for each command, and none for others."""
    table = README[README.index("## Commands") : README.index("## A cluster")]
    cells = re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`([a-z-]+)", cell)}
    group = typer.main.get_command(app)
    assert named == set(getattr(group, "commands"))  # noqa: B009 - typer's own type hides it


def test_every_make_target_exists() -> None:
    """`make demo`, `make test` and the rest, here and in CONTRIBUTING."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    told = set(re.findall(r"(?:^|`)make ([a-z]+)", README + contributing, re.MULTILINE))
    assert {"demo", "test", "install"} <= told <= targets


async def until_applied(url: str, session: str) -> None:
    """Wait until a worker has applied the offer of the packs to a session."""
    async with asyncio.timeout(LIMIT_S), httpx.AsyncClient(base_url=url) as http:
        while True:
            answer = await http.get(f"/api/sessions/{session}")
            if answer.status_code == 200 and answer.json()["mode"] != "intro":
                return
            await asyncio.sleep(0.05)
