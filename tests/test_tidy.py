"""Style is a test (docs: CONTRIBUTING): sizes, names, the direction of imports, a pure core.

Each rule is a function from modules to complaints, and each is shown a bad module, lest it pass
because it looks at nothing.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "agents_stream"
CHECKED = (PACKAGE, "tests", "bench", "examples")

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 70
MAX_LINE_LENGTH = 100
# Not counted, as ruff does not: it must stand on its line, with its reason.
PRAGMA = re.compile(r"\s*# (?:noqa|type: ignore)\b.*$")

FORBIDDEN_WORDS = {
    "base", "common", "helper", "helpers", "manager", "managers", "misc", "util", "utils",
}  # fmt: skip

# A part of the package may import itself and these. What is not named here is a root: it puts the
# parts together, may import all of them, and none of them may import it.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "settings": set(),
    "kafka": {"core", "settings"},
    "client": {"core", "settings", "kafka"},
    "stages": {"core", "settings", "kafka", "client"},
    "views": {"core", "settings", "kafka", "client"},
    "sandbox": {"core", "settings", "client"},
}
# The client is three modules; SPEC §8's programs import the first.
PART_OF = {"client_sync": "client", "client_turns": "client"}

# What a stage may import of stages/ beside itself. The form of a dead letter is no stage, and
# neither are the tools, which belong to the gateway.
MAY_IMPORT_OF_STAGES: dict[str, set[str]] = {
    "gateway": {"dead_letters", "tools"},
    "dead_letters": set(),
    "tools": set(),
}
ANY_STAGE = {"dead_letters"}

# Everything that a pure function needs. What waits, reads, writes or is random is not among it.
PURE_MODULES = {
    "__future__", "abc", "array", "base64", "bisect", "collections", "copy", "dataclasses",
    "datetime", "enum", "functools", "hashlib", "heapq", "itertools", "json", "math", "operator",
    "re", "string", "types", "typing", "unicodedata",
    "annotated_types", "orjson", "pydantic", "pydantic_core", "typing_extensions",
}  # fmt: skip
# `hash` of a text differs from process to process: an id made of it would not be derived.
IMPURE_CALLS = {"__import__", "eval", "exec", "hash", "id", "input", "open", "print"}
IMPURE_METHODS = {"now", "today", "utcnow"}


@dataclass(frozen=True)
class Module:
    """One file: where it is, below the root of the repository, and what it says."""

    path: PurePosixPath
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.text)

    @property
    def inside(self) -> tuple[str, ...]:
        """Its place in the package: ("core", "wheel"), ("app",), ("core",) for core itself."""
        parts = self.path.with_suffix("").parts[1:]
        return parts[:-1] if parts[-1] == "__init__" else parts

    @property
    def part(self) -> str:
        """The part of the package that it belongs to; "" for the package itself and for tests."""
        first = self.inside[0] if self.inside and self.path.parts[0] == PACKAGE else ""
        return PART_OF.get(first, first)

    def imports(self) -> Iterator[tuple[int, str]]:
        """Every imported module with its line; `from a import b` counts as a and as a.b."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                name = "." * node.level + (node.module or "")
                yield node.lineno, name
                yield from ((node.lineno, f"{name}.{alias.name}") for alias in node.names)

    def own_imports(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """What it imports of our package, as places in it."""
        for line, name in self.imports():
            first, *rest = name.split(".")
            if first == PACKAGE and rest:
                yield line, tuple(rest)

    def calls(self) -> Iterator[ast.Call]:
        """Every call."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))


Rule = Callable[[list[Module]], list[str]]


def sizes(modules: list[Module]) -> list[str]:
    """Module <= 400 lines, function <= 70, line <= 100 (STYLE 7)."""
    found = []
    for module in modules:
        lines = module.text.splitlines()
        if len(lines) > MAX_MODULE_LINES:
            found.append(f"{module.path}: {len(lines)} lines")
        for number, line in enumerate(lines, 1):
            if len(PRAGMA.sub("", line)) > MAX_LINE_LENGTH:
                found.append(f"{module.path}:{number}: {len(line)} characters")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(f"{module.path}:{node.lineno}: {node.name} has {length} lines")
    return found


def names(modules: list[Module]) -> list[str]:
    """No module is called after nothing in particular (STYLE 9)."""
    return [
        f"{module.path}: {word!r} says nothing"
        for module in modules
        for part in module.path.with_suffix("").parts
        for word in part.split("_")
        if word in FORBIDDEN_WORDS
    ]


def direction(modules: list[Module]) -> list[str]:
    """Imports go one way, down the list of DESIGN §6."""
    found = []
    for module in modules:
        allowed = MAY_IMPORT.get(module.part)
        if allowed is None:
            continue
        for line, place in module.own_imports():
            part = PART_OF.get(place[0], place[0])
            if part != module.part and part not in allowed and part != "__version__":
                found.append(f"{module.path}:{line}: {module.part} imports {'.'.join(place)}")
    return sorted(set(found))


def relative_imports(modules: list[Module]) -> list[str]:
    """Imports are absolute, so that the other rules see where they go."""
    return [
        f"{module.path}:{line}: {name}"
        for module in modules
        for line, name in module.imports()
        if name.startswith(".")
    ]


def stages_apart(modules: list[Module]) -> list[str]:
    """Stages meet at topics, never in an import (DESIGN §1)."""
    found = []
    for module in modules:
        if module.part != "stages" or len(module.inside) < 2:
            continue
        own = module.inside[1]
        allowed = {own} | MAY_IMPORT_OF_STAGES.get(own, ANY_STAGE)
        for line, place in module.own_imports():
            if place[0] == "stages" and len(place) > 1 and place[1] not in allowed:
                found.append(f"{module.path}:{line}: {own} imports {'.'.join(place)}")
    return sorted(set(found))


def settings_read_once(modules: list[Module]) -> list[str]:
    """Only roots and the producers' client read the settings; the parts are given them."""
    return [
        f"{module.path}:{call.lineno}: Settings() is constructed"
        for module in modules
        if module.part in MAY_IMPORT.keys() - {"client"}
        for call in module.calls()
        if isinstance(call.func, ast.Name) and call.func.id == "Settings"
    ]


def purity(modules: list[Module]) -> list[str]:
    """The core waits for nothing, reads and writes nothing, asks for no time (STYLE 1, 2)."""
    found = []
    for module in modules:
        if module.part != "core":
            continue
        for line, name in module.imports():
            if name.split(".")[0] not in PURE_MODULES | {PACKAGE}:
                found.append(f"{module.path}:{line}: {name}")
        for call in module.calls():
            if isinstance(call.func, ast.Name) and call.func.id in IMPURE_CALLS:
                found.append(f"{module.path}:{call.lineno}: {call.func.id}()")
            if isinstance(call.func, ast.Attribute) and call.func.attr in IMPURE_METHODS:
                found.append(f"{module.path}:{call.lineno}: .{call.func.attr}()")
        found += [
            f"{module.path}:{node.lineno}: something is awaited"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.AsyncFunctionDef | ast.Await)
        ]
    return found


def core_tested(modules: list[Module]) -> list[str]:
    """Every module of the core has its test: test_wheel.py, test_flows_promos.py."""
    tests = {module.path.stem for module in modules if module.path.parts[:2] == ("tests", "core")}
    found = []
    for module in modules:
        if module.part != "core" or module.path.stem == "__init__":
            continue
        expected = "test_" + "_".join(module.inside[1:])
        if not any(test == expected or test.startswith(f"{expected}_") for test in tests):
            found.append(f"{module.path}: tests/core/{expected}.py is missing")
    return found


RULES: list[Rule] = [
    sizes,
    names,
    direction,
    relative_imports,
    stages_apart,
    settings_read_once,
    purity,
    core_tested,
]


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    """Every Python file that is ours."""
    return [
        Module(PurePosixPath(path.relative_to(ROOT).as_posix()), path.read_text("utf-8"))
        for folder in CHECKED
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule: Rule, modules: list[Module]) -> None:
    """STYLE.md, as far as a program can read it."""
    ours = [module for module in modules if module.path.parts[0] == PACKAGE]
    checked = modules if rule in {sizes, names, core_tested} else ours
    assert len(ours) > 20
    found = rule(checked)
    if found:
        pytest.fail("\n".join([rule.__doc__ or rule.__name__, *found]), pytrace=False)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (sizes, "bench/a.py", "\n" * 401),
        (sizes, "bench/a.py", "#" * 101),
        (sizes, "bench/a.py", "class A:\n  async def f():\n" + "    1\n" * 70),
        (names, "agents_stream/core/session_utils.py", ""),
        (names, "agents_stream/common/clock.py", ""),
        (direction, "agents_stream/core/a.py", "from agents_stream.settings import Settings"),
        (direction, "agents_stream/core/a.py", "def f():\n  import agents_stream.kafka.topics"),
        (direction, "agents_stream/kafka/a.py", "from agents_stream import stages"),
        (direction, "agents_stream/views/a.py", "from agents_stream.stages.timers import Timers"),
        (direction, "agents_stream/stages/a.py", "from agents_stream.app import Worker"),
        (direction, "agents_stream/client_sync.py", "from agents_stream.views import api"),
        (relative_imports, "agents_stream/core/a.py", "from . import wheel"),
        (stages_apart, "agents_stream/stages/a.py", "import agents_stream.stages.b"),
        (stages_apart, "agents_stream/stages/a.py", "from agents_stream.stages import b"),
        (stages_apart, "agents_stream/stages/a.py", "from agents_stream.stages.tools import x"),
        (stages_apart, "agents_stream/stages/dead_letters.py", "import agents_stream.stages.a"),
        (settings_read_once, "agents_stream/stages/a.py", "x = Settings(web_port=1)"),
        (purity, "agents_stream/core/a.py", "from time import monotonic"),
        (purity, "agents_stream/core/flows/a.py", "import structlog"),
        (purity, "agents_stream/core/a.py", "at = datetime.now(UTC)"),
        (purity, "agents_stream/core/a.py", "x = hash('a')"),
        (purity, "agents_stream/core/a.py", "async def f(): pass"),
        (core_tested, "agents_stream/core/flows/a.py", ""),
    ],
)
def test_the_rule_finds_what_it_looks_for(rule: Rule, path: str, text: str) -> None:
    """A check that cannot fail checks nothing."""
    assert rule([Module(PurePosixPath(path), text)])


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("agents_stream/app.py", "from agents_stream.stages.timers import Timers\nSettings()"),
        ("agents_stream/cli/up.py", "from agents_stream.app import run_worker"),
        ("agents_stream/stages/gateway/a.py", "from agents_stream.stages.tools import results"),
        ("agents_stream/stages/a.py", "from agents_stream.stages.dead_letters import letter_of"),
        ("agents_stream/stages/a.py", "from agents_stream import __version__\nimport asyncio"),
        ("agents_stream/client.py", "Settings()"),
        ("agents_stream/core/__init__.py", "import re"),
    ],
)
def test_the_rules_allow_what_the_design_asks_for(path: str, text: str) -> None:
    """The composition roots, the gateway's tools, the client that reads its settings."""
    for rule in RULES:
        assert not rule([Module(PurePosixPath(path), text)])
