"""500 worlds: production code, every accident, one checker per guarantee (docs/simulation.md)."""

import os
import subprocess
import sys

import pytest

from tests.simulation.__main__ import ENOUGH_SEEDS
from tests.simulation.mutate import ROOT
from tests.simulation.plan import draw
from tests.simulation.runs import Run, run, shrink, told

CHUNKS = 2


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_world_breaks_a_guarantee(chunk: int) -> None:
    """G1 to G11, each by its checker; and the world has not become tame.

    As a program of its own, since only there hashes, and so the order of sets, can be fixed.
    """
    words = ("--seeds", str(ENOUGH_SEEDS), "--from", str(chunk * ENOUGH_SEEDS), "--jobs", "1")
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{done.stdout}\n{done.stderr}", pytrace=False)


def test_a_seed_is_one_history() -> None:
    """A failure can be seen again: the same seed gives the same story, step by step."""
    first, second = run(draw(3)), run(draw(3))
    assert first.story == second.story
    assert first.seen == second.seen
    assert draw(3) == draw(3) != draw(4)


def test_a_failing_plan_is_cut_down() -> None:
    """Whoever reads a failure reads the shortest history found, and how to see it again."""
    plan = next(plan for plan in map(draw, range(3, 99)) if plan.faults and len(plan.steps) > 9)
    wanted = {plan.steps[5], plan.faults[0]}

    def fails(smaller: object) -> Run:
        assert isinstance(smaller, type(plan))
        still = wanted <= {*smaller.steps, *smaller.faults}
        return Run(smaller, ["G1: it broke"] if still else [], story=["how it went"])

    failing = fails(plan)
    found = shrink(failing, fails)
    assert {*found.plan.steps, *found.plan.faults} == wanted
    text = told(failing, found)
    assert f"seed {plan.seed}" in text
    assert "G1: it broke" in text
    assert f"--from {plan.seed} --seeds 1" in text
