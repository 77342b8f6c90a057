"""Two minutes of chaos with a fixed seed: what `make chaos` does, as a test."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.chaos.plan import KINDS, OF_BROKER

SEED = "1"
LIMIT_S = 400
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of its own, on a broker of its own; its report, whatever the verdict."""
    folder = tmp_path_factory.mktemp("chaos")
    command = [sys.executable, "-m", "tests.chaos", "--minutes", "2", "--seed", SEED]
    process = subprocess.Popen([*command, "--data", str(folder)], cwd=ROOT)
    try:
        process.wait(LIMIT_S)
    finally:
        process.send_signal(signal.SIGTERM)  # it ends its own processes, also if the test is cut
        process.wait(60)
    report: dict[str, Any] = orjson.loads((folder / "report.json").read_bytes())
    assert process.returncode == (0 if report["ok"] else 1)
    return report


@pytest.mark.chaos
@pytest.mark.kafka
def test_two_minutes_of_chaos_break_nothing(run: dict[str, Any]) -> None:
    """G1 to G9, G11: kills, pauses, a broker that comes and goes, tools that fail: all is kept."""
    assert run["violations"] == []


@pytest.mark.chaos
@pytest.mark.kafka
def test_the_run_tried_what_it_says(run: dict[str, Any]) -> None:
    """A run in which little happened would prove little: every fault was there, and was felt."""
    # On a slow machine a broker needs longer to come back, and the next fault of it is left out.
    may_lack = {"worker_join", "worker_leave", *OF_BROKER}
    assert set(run["faults"]) >= set(KINDS) - may_lack
    assert set(run["faults"]) & set(OF_BROKER)
    assert run["events"]["notAcknowledged"] > 0
    assert run["answersNearDeadlines"]["before"] > 10
    assert run["answersNearDeadlines"]["after"] > 10
    assert run["deadlines"]["fired"] > 100
    assert run["tools"]["commands"] > 100
