"""The mutants stay what they are: each can still be made, and the cheap ones are caught."""

from pathlib import Path

import pytest

from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.mutate import ROOT, row, tried

CHEAP = ("no wait for the changelog", "order message before order", "no merge by time")
SEEDS = 60


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_the_code_still_has_what_a_mutant_breaks(mutant: Mutant) -> None:
    """Whoever changes the protocol brings its mutants up to date: they break it, or say so."""
    assert mutant.applied_to(ROOT) != (ROOT / mutant.path).read_text("utf-8")
    if mutant.test is not None:
        path, _, name = mutant.test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text("utf-8")


def test_a_text_that_is_gone_is_said() -> None:
    """A mutant that breaks nothing would seem to be caught by nobody."""
    with pytest.raises(ValueError, match="0 times"):
        Mutant("gone", "topics.yaml", "there is no such line", "").applied_to(ROOT)


@pytest.mark.parametrize("name", CHEAP)
def test_a_broken_protocol_is_caught(name: str) -> None:
    """G1, G5, G7: a checker that never fires checks nothing. All of them: `make mutants`."""
    [mutant] = [one for one in MUTANTS if one.name == name]
    verdict = tried(mutant, SEEDS)
    assert verdict.caught_by is not None, f"{name} survived {SEEDS} worlds"
    assert name in row(verdict)


def test_no_two_mutants_are_one() -> None:
    """Each has its own name, and the issue's fifteen are among them."""
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 20
    assert all((ROOT / Path(mutant.path)).exists() for mutant in MUTANTS)
