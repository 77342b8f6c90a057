"""The documents say what is true: links lead somewhere, what they list is what there is."""

import ast
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from agents_stream.kafka import metrics
from agents_stream.settings import Settings
from agents_stream.stages.gateway import metrics as gateway_metrics

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def text_of(page: Path) -> str:
    """A page without its fenced blocks, in which brackets are code."""
    return FENCED.sub("", page.read_text("utf-8"))


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    slugs = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return frozenset(slugs)


def rows_of(page: Path, pattern: str) -> dict[str, list[str]]:
    """Rows of a page's tables whose first cell is a name in backticks that matches."""
    rows = {}
    for line in text_of(page).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("|") and (name := re.fullmatch(f"`({pattern})`", cells[0])):
            rows[name[1]] = cells[1:]
    return rows


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there, and every anchor a heading of it."""
    dead = []
    for target in LINK.findall(text_of(page)):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in anchors_of(found)):
            dead.append(target)
    assert dead == []


def test_the_tests_that_defend_a_guarantee_exist() -> None:
    """docs/guarantees.md names tests by file and function; a renamed one is named anew there."""
    named = NAMED_TEST.findall((DOCS / "guarantees.md").read_text("utf-8"))
    assert len(named) > 50
    missing = [f"{path}::{name}" for path, name in named if name not in _functions(ROOT / path)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    """On other pages likewise."""
    named = NAMED_TEST.findall(page.read_text("utf-8"))
    missing = [f"{path}::{name}" for path, name in named if name not in _functions(ROOT / path)]
    assert missing == []


def test_the_holes_are_those_of_the_faust_that_is_installed() -> None:
    """docs/holes.md gives lines of these versions: with another one, run `make holes` and look."""
    text = (DOCS / "holes.md").read_text("utf-8")
    for package in ("faust-streaming", "aiokafka"):
        assert f"{package} {version(package)}" in text


def test_every_guarantee_has_its_chapter_with_tests() -> None:
    """G1 to G11, each with at least two tests (SPEC §6: tests and docs name them by number)."""
    text = (DOCS / "guarantees.md").read_text("utf-8")
    chapters = dict(re.findall(r"^### (G\d+) .*?\n(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL))
    assert list(chapters) == [f"G{number}" for number in range(1, 12)]
    assert all(len(NAMED_TEST.findall(chapter)) >= 2 for chapter in chapters.values())


def test_every_setting_is_described_with_its_default() -> None:
    """docs/configuration.md lists the fields of Settings, no more and no fewer."""
    rows = rows_of(DOCS / "configuration.md", r"AGENTS_STREAM_\w+")
    named = {name.removeprefix("AGENTS_STREAM_").lower(): row[0] for name, row in rows.items()}
    assert named.keys() == Settings.model_fields.keys()
    defaults = Settings(_env_file=None)
    for field, default in named.items():
        given: dict[str, Any] = {field: "" if default == "empty" else default.strip("`")}
        if (wanted := getattr(defaults, field)) is not None:
            assert getattr(Settings(_env_file=None, **given), field) == wanted, field


def test_every_metric_is_described() -> None:
    """docs/operations.md lists the metrics that worker and gateway have."""
    named = rows_of(DOCS / "operations.md", r"agents_stream_\w+").keys()
    own = {
        metric.name
        for collector in vars(metrics).values()
        if isinstance(collector, Counter | Gauge | Histogram)
        for metric in collector.collect()
    }
    assert named == own | _names(gateway_metrics.registry)


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_has_its_parts(page: Path) -> None:
    """Context, decision, consequences, on a page; numbered without gaps."""
    text = page.read_text("utf-8")
    places = [text.index(f"**{part}.**") for part in ("Context", "Decision", "Consequences")]
    assert places == sorted(places)
    assert len(text.splitlines()) <= 60
    number = DECISIONS.index(page) + 1
    assert page.stem.startswith(f"{number:04d}-")
    assert text.startswith(f"# {number:04d} ")


@cache
def _functions(path: Path) -> frozenset[str]:
    if not path.exists():
        return frozenset()
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return frozenset(
        node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def _names(registry: CollectorRegistry) -> set[str]:
    return {metric.name for metric in registry.collect()}
