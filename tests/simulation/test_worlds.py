"""500 worlds: production code, every accident, one checker per guarantee (docs/simulation.md)."""

from collections import Counter

import pytest

from tests.simulation.plan import draw
from tests.simulation.runs import REQUIRED, Run, run, run_seed, shrink, told

CHUNKS = 10
WORLDS_A_CHUNK = 50
SHARED_BY_ALL = 3  # what a chunk of 50 worlds must have seen of everything that is common


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_world_breaks_a_guarantee(chunk: int) -> None:
    """G1 to G11, each by its checker; and the world has not become tame."""
    seen: Counter[str] = Counter()
    for seed in range(chunk * WORLDS_A_CHUNK, (chunk + 1) * WORLDS_A_CHUNK):
        one = run_seed(seed)
        if one.faults:
            pytest.fail(told(one, shrink(one)), pytrace=False)
        seen += one.seen
    assert sum(seen[what] > 0 for what in REQUIRED) > 0.7 * len(REQUIRED), seen


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
