"""Expected against actual: each difference is found, and nothing else."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from agents_stream.demo.script import Conversation, Expect
from agents_stream.demo.verdict import Actual, judge, show_table

OUTCOME = {"id": "o1", "flow": "promos", "status": "timeout", "action": "auto_created_order"}
EXPECT = Expect(
    outcomes=[["promos", "timeout", "auto_created_order", {"notified": False}]],
    messages=["hola"],
    orders=1,
    mode="compra_confirmada",
    state={"datos_capturados": {"nombre": "Ana"}},
    version=3,
    deadLetters=["a", "b"],
    attempts={"crm.order.create": 2, "whatsapp.message.send": 0},
)
SESSION: dict[str, Any] = {
    "mode": "compra_confirmada",
    "status": "open",
    "version": 3,
    "state": {"datos_capturados": {"nombre": "Ana", "ciudad": None}, "nota": 1},
    "deadlines": [],
    "pendingCommands": [],
}
ACTUAL = Actual(
    outcomes=[{**OUTCOME, "notified": False, "orderId": "x"}],
    messages=["hola"],
    orders=1,
    dead_letters=["b", "a"],
    attempts={"crm.order.create": 2},
    session=SESSION,
    told=["o1"],
)


def conversation(expect: Expect = EXPECT) -> Conversation:
    """A conversation with an expectation."""
    return Conversation.model_validate(
        {
            "session": "ana",
            "title": "something",
            "steps": [{"at": 0, "world": "kill_worker"}],
            "expect": expect.model_dump(),
        }
    )


def test_what_is_as_expected_is_good() -> None:
    """There may be more in the state and in an outcome than was named."""
    verdict = judge(conversation(), ACTUAL)
    assert (verdict.good, verdict.differences) == (True, [])
    assert verdict.expected == verdict.actual


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"outcomes": []}, "outcomes"),
        ({"outcomes": [OUTCOME]}, "outcomes"),
        ({"outcomes": [{**OUTCOME, "notified": None}]}, "outcomes"),
        ({"outcomes": [{**OUTCOME, "notified": False, "status": "failed"}]}, "outcomes"),
        ({"outcomes": [*ACTUAL.outcomes, OUTCOME]}, "outcomes"),
        ({"messages": []}, "messages"),
        ({"messages": ["hola", "hola"]}, "messages"),
        ({"orders": 2}, "orders"),
        ({"dead_letters": ["a"]}, "dead letters"),
        ({"attempts": {"crm.order.create": 3}}, "attempts"),
        ({"attempts": {"crm.order.create": 2, "whatsapp.message.send": 1}}, "attempts"),
        ({"session": {**SESSION, "mode": "m"}}, "mode"),
        ({"session": {**SESSION, "status": "closed"}}, "status"),
        ({"session": {**SESSION, "version": 4}}, "version"),
        ({"session": {**SESSION, "state": {"datos_capturados": {}}}}, "state"),
        ({"session": {**SESSION, "deadlines": [{"name": "promos.reply"}]}}, "timers left"),
        ({"session": {**SESSION, "pendingCommands": [{}]}}, "commands left"),
        ({"session": None}, "status"),
        ({"told": []}, "webhook"),
        ({"told": ["o1", "o1"]}, "webhook"),
        ({"problem": "step 2: no"}, "step 2: no"),
    ],
)
def test_each_difference_is_found(change: dict[str, Any], difference: str) -> None:
    """The table cannot say "ok" where anything is not."""
    assert difference in judge(conversation(), replace(ACTUAL, **change)).differences


def test_the_table_shows_both_sides() -> None:
    """Expected and actual stand beside each other; what differs is named below."""
    out = io.StringIO()
    wrong = judge(conversation(), replace(ACTUAL, orders=2))
    show_table(Console(file=out, width=160), [judge(conversation(), ACTUAL), wrong])
    shown = out.getvalue()
    assert "orders: 1, messages: 1" in shown
    assert "orders: 2, messages: 1" in shown
    assert "DIFFERS" in shown
    assert "ana differs in: orders" in shown
