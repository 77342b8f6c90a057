"""A table at the end: what Faust did at each hole, what ours did, and how long each took.

`make holes`, or naming tests/holes or a file in it, runs everything. In a run of all tests those
marked `by_name` are left out: most of them wait until a dead member is missed.
"""

from collections.abc import Callable

import pytest
from _pytest.terminal import TerminalReporter

Found = Callable[[str], None]


@pytest.fixture
def found(record_property: Callable[[str, object], None]) -> Found:
    """Say in a few words what a test has seen, for the table."""
    return lambda words: record_property("found", words)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow ones out of a run that was not asked for the holes."""
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item.module, "HOLE"):
            item.user_properties.append(("hole", item.module.HOLE))
    if _asked(config):
        return
    slow = [item for item in items if "tests/holes/" in item.nodeid and _slow(item)]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    if not _asked(config):
        return
    holes: dict[str, dict[str, str]] = {}
    for report in _reports(terminalreporter):
        facts = dict(report.user_properties)
        if "hole" not in facts:
            continue
        side = "Faust" if "::test_faust" in report.nodeid else "ours"
        words = str(facts.get("found", "")) if report.passed else "NOT AS EXPECTED, see above"
        row = holes.setdefault(str(facts["hole"]), {})
        row[side] = f"{words} ({report.duration:.0f} s)"
    if not holes:
        return
    terminalreporter.section("Faust's holes")
    for hole in sorted(holes):
        terminalreporter.line(hole, bold=True)
        for side in ("Faust", "ours"):
            terminalreporter.line(f"    {side + ':':7}{holes[hole].get(side, 'not run')}")


def _reports(reporter: TerminalReporter) -> list[pytest.TestReport]:
    ends = [*reporter.stats.get("passed", []), *reporter.stats.get("failed", [])]
    return [report for report in ends if report.when == "call"]


def _asked(config: pytest.Config) -> bool:
    return any("tests/holes" in str(argument) for argument in config.args)


def _slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("by_name") is not None
