"""One target in this process: `python -m tests.hostile.fuzz_one TARGET CORPUS [flags]`."""

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]

from tests.hostile.fuzz import INSTRUMENTED, plant

with atheris.instrument_imports(include=list(INSTRUMENTED)):
    from tests.hostile.targets import TARGETS, seeds


def main() -> None:
    """Fuzz until a limit is reached or an invariant breaks; ends the process."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    plant(folder, seeds(name))
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
