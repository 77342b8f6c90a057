"""The fault plan is a function of its seed, and leaves nothing out."""

from itertools import pairwise

from tests.chaos.plan import CALM_S, KINDS, SESSION_TIMEOUT_S, make_plan


def test_a_seed_gives_one_plan() -> None:
    """The seed repeats a run's faults; another seed gives others."""
    assert make_plan(7, 300) == make_plan(7, 300)
    assert make_plan(7, 300) != make_plan(8, 300)


def test_two_minutes_have_every_kind() -> None:
    """Also the short run of CI meets each kind of fault, in time to recover from it."""
    for seed in range(20):
        plan = make_plan(seed, 120)
        assert {fault.kind for fault in plan} == set(KINDS)
        assert plan[-1].at_s <= 120 - CALM_S


def test_faults_come_one_after_the_other() -> None:
    """In the order of their times; some are paused for twice the session timeout."""
    plan = make_plan(3, 600)
    assert all(one.at_s < other.at_s for one, other in pairwise(plan))
    paused = [fault.for_s for fault in plan if fault.kind == "worker_pause"]
    assert sum(for_s > 2 * SESSION_TIMEOUT_S for for_s in paused) > len(paused) / 3
