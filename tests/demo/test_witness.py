"""The witness of the demo: counts what the log says, each thing once."""

import asyncio
from typing import Any

import orjson

from agents_stream.demo.script import After
from agents_stream.demo.witness import Command, Witness
from agents_stream.up.tail import Seen


def seen(topic: str, **value: Any) -> Seen:
    """A record about session s."""
    return Seen(topic, 0, 0, 0, "s", orjson.dumps({"sessionId": "s", **value}))


OUTCOME = {"flow": "promos", "status": "timeout", "action": "auto_created_order"}


async def test_each_thing_counts_once() -> None:
    """A redelivered outcome or letter is the same one; each attempt is another (G6)."""
    witness = Witness()
    tool = "crm.order.create"
    for _ in range(2):
        witness.take([seen("agent.outcomes", id="o1", **OUTCOME)])
        witness.take([seen("agent.dead_letters", id="d1", reason="tool_failed")])
        witness.take([seen(f"tool.{tool}", id="c", tool=tool, attempt=n) for n in (1, 2)])
    witness.take([Seen("session.journal", 0, 0, 0, "s", b"not read")])
    testimony = witness["s"]
    assert [one["id"] for one in testimony.outcomes] == ["o1"]
    assert testimony.dead_letters == ["tool_failed"]
    assert testimony.commands == [Command("c", tool, 1), Command("c", tool, 2)]


async def test_a_step_waits_for_what_comes_before_it() -> None:
    """A wait ends when the outcome or the attempt is seen, and not before."""
    witness = Witness()
    tool = "crm.order.create"
    outcome = After(outcome=["promos", "timeout", "auto_created_order"])
    waits = [
        asyncio.create_task(witness.until("s", after))
        for after in (outcome, After(command=tool, attempt=2))
    ]
    await asyncio.sleep(0)
    witness.take([seen(f"tool.{tool}", id="c", tool=tool, attempt=1)])
    await asyncio.sleep(0.01)
    assert not any(wait.done() for wait in waits)
    witness.take([seen("agent.outcomes", id="o1", **OUTCOME)])
    witness.take([seen(f"tool.{tool}", id="c", tool=tool, attempt=2)])
    await asyncio.wait_for(asyncio.gather(*waits), 1)
