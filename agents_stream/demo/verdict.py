"""Expected against actual, per session: compared, and shown as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents_stream.demo.script import Conversation, Expect


@dataclass(frozen=True, slots=True)
class Actual:
    """What came of a conversation, from the log, the tools' books, the API and the webhook.

    `session` is None where there is no such session. `told` are the ids of the outcomes that the
    engine's webhook was told of.
    """

    outcomes: Sequence[Mapping[str, Any]]
    messages: Sequence[str]
    orders: int
    dead_letters: Sequence[str]
    attempts: Mapping[str, int]
    session: Mapping[str, Any] | None
    told: Sequence[str]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one conversation; `differences` is empty where all is as expected."""

    conversation: Conversation
    expected: list[str]
    actual: list[str]
    differences: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether everything is as expected."""
        return not self.differences


def judge(conversation: Conversation, actual: Actual) -> Verdict:
    """Compare one conversation."""
    expect = conversation.expect
    session = actual.session or {}
    checks = {
        "outcomes": _same_outcomes(expect.outcomes, actual.outcomes),
        "messages": list(actual.messages) == expect.messages,
        "orders": actual.orders == expect.orders,
        "mode": session.get("mode") == expect.mode,
        "status": session.get("status") == expect.status,
        "state": _holds(session.get("state", {}), expect.state),
        "version": expect.version in (None, session.get("version")),
        "dead letters": sorted(actual.dead_letters) == sorted(expect.deadLetters),
        "attempts": all(
            actual.attempts.get(tool, 0) == count for tool, count in expect.attempts.items()
        ),
        "timers left": not session.get("deadlines"),
        # A closed session keeps what it had asked for, in case that an answer comes.
        "commands left": session.get("status") == "closed" or not session.get("pendingCommands"),
        "webhook": list(actual.told) == [outcome["id"] for outcome in actual.outcomes],
    }
    differences = [name for name, good in checks.items() if not good]
    if actual.problem is not None:
        differences.append(actual.problem)
    told = _told_of_actual(expect, actual, session)
    return Verdict(conversation, _told_of_expected(expect), told, differences)


def show_table(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Write the table, and what differs below it."""
    table = Table(title="Expected against actual", title_justify="left", show_lines=True)
    table.add_column("conversation", ratio=2)
    table.add_column("expected", ratio=3, overflow="fold")
    table.add_column("actual", ratio=3, overflow="fold")
    table.add_column("", no_wrap=True)
    for verdict in verdicts:
        told = Text(verdict.conversation.session, "bold")
        told.append(f"\n{verdict.conversation.title}", "not bold")
        mark = Text("ok", "green") if verdict.good else Text("DIFFERS", "bold red")
        expected, actual = "\n".join(verdict.expected), "\n".join(verdict.actual)
        table.add_row(told, Text(expected), Text(actual), mark)
    console.print(table)
    for verdict in verdicts:
        if not verdict.good:
            name, differences = verdict.conversation.session, ", ".join(verdict.differences)
            console.print(Text(f"{name} differs in: {differences}", "bold red"))


def _same_outcomes(expected: Sequence[Sequence[Any]], actual: Sequence[Mapping[str, Any]]) -> bool:
    return len(expected) == len(actual) and all(
        list(wanted[:3]) == [found["flow"], found["status"], found["action"]]
        and _holds(found, wanted[3] if len(wanted) > 3 else {})  # noqa: PLR2004 - flow, status, action
        for wanted, found in zip(expected, actual, strict=True)
    )


def _holds(found: Any, wanted: Any) -> bool:
    """Whether everything that is wanted is there; objects may hold more."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            key in found and _holds(found[key], value) for key, value in wanted.items()
        )
    return bool(found == wanted)


def _as_wanted(found: Any, wanted: Any) -> Any:
    """Of what was found, the part that was asked for."""
    if isinstance(wanted, dict) and isinstance(found, Mapping):
        return {key: _as_wanted(found.get(key), value) for key, value in wanted.items()}
    return found


def _told_of_expected(expect: Expect) -> list[str]:
    outcomes = [_outcome(wanted[0], wanted[1], wanted[2], wanted[3:]) for wanted in expect.outcomes]
    lines = [*outcomes, _counts(expect.orders, expect.messages)]
    return [*lines, *_rest(expect.mode, expect.status, expect.deadLetters, expect.attempts)]


def _told_of_actual(expect: Expect, actual: Actual, session: Mapping[str, Any]) -> list[str]:
    outcomes = []
    for index, found in enumerate(actual.outcomes):
        wanted = expect.outcomes[index] if index < len(expect.outcomes) else []
        extra = [_as_wanted(found, one) for one in wanted[3:]]
        outcomes.append(_outcome(found["flow"], found["status"], found["action"], extra))
    lines = [*outcomes, _counts(actual.orders, actual.messages)]
    attempts = {tool: actual.attempts.get(tool, 0) for tool in expect.attempts}
    mode, status = session.get("mode"), session.get("status", "no session")
    return [*lines, *_rest(mode, status, actual.dead_letters, attempts)]


def _outcome(flow: str, status: str, action: str, extra: Sequence[Any]) -> str:
    more = "".join(f" {orjson.dumps(one).decode()}" for one in extra)
    return f"{flow}: {status}/{action}{more}"


def _counts(orders: int, messages: Sequence[str]) -> str:
    return f"orders: {orders}, messages: {len(messages)}"


def _rest(
    mode: str | None, status: str, letters: Sequence[str], attempts: Mapping[str, int]
) -> list[str]:
    lines = [f"{status}, mode {mode}"]
    if letters:
        lines.append(f"dead letters: {', '.join(sorted(letters))}")
    lines += [f"attempts of {tool}: {count}" for tool, count in attempts.items()]
    return lines
