"""The fuzzer's targets in CI: their corpus, mutations of it by a seed, and a short guided run."""

import random
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.hostile.fuzz import NO_ATHERIS, run
from tests.hostile.targets import TARGETS, seeds

MUTATIONS = {"reducer": 300}
MANY = 3_000
RUNS = {"ingress": 3_000, "reducer": 400}


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The same bytes with a few accidents."""
    made = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(4):
            case 0:
                made[at:at] = rng.randbytes(rng.randrange(1, 4))
            case 1:
                del made[at : at + rng.randrange(1, 9)]
            case 2 if made:
                made[at % len(made)] ^= 1 << rng.randrange(8)
            case _:
                made[at:at] = made[: rng.randrange(30)]
    return bytes(made)


@pytest.mark.parametrize("name", TARGETS)
def test_no_accident_breaks_an_invariant(name: str) -> None:
    """G10: each target says which invariant (`targets.py`)."""
    rng = random.Random(name)
    corpus = seeds(name)
    for data in (b"", *corpus):
        TARGETS[name](data)
    for _ in range(MUTATIONS.get(name, MANY)):
        TARGETS[name](mutated(rng, rng.choice(corpus)))


@pytest.mark.skipif(find_spec("atheris") is None, reason=NO_ATHERIS)
@pytest.mark.parametrize("name", RUNS)
def test_the_guided_fuzzer_finds_nothing(name: str, tmp_path: Path) -> None:
    """G10: a short run from a fixed seed; `make fuzz MINUTES=60` is the long one."""
    done = run(name, tmp_path, [f"-runs={RUNS[name]}", "-seed=1"], quiet=True)
    assert done.returncode == 0, done.stderr[-3_000:].decode(errors="replace")
    assert b"Done %d runs" % RUNS[name] in done.stderr
