"""What can be seen from outside: what was sent, the tools' books, and what lies on their topics."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, Final

import orjson

from agents_stream.core.flows.promos import CREATED_TEXT
from agents_stream.kafka.topics import DEAD_LETTERS, OUTCOMES
from tests.simulation.history import History

TOOL_TOPICS: Final = ("tool.whatsapp.message.send", "tool.crm.order.create")


def told_events_are_in_the_state(history: History) -> Iterator[str]:
    """G1, from outside: every field that was sent to a session that nobody closed is there."""
    closed = {told.session for told in history.world.customers.told if told.step.what == "close"}
    for told in history.world.customers.told:
        if told.step.what not in {"captured", "updated"} or told.session in closed:
            continue
        record = history.final.get(told.session)
        state: Any = {} if record is None else {**record.state, **record.state["datos_capturados"]}
        name = f"{'f' if told.step.what == 'captured' else 'u'}{told.step.number}"
        if name not in state:
            yield f"G1: {told.session} has never heard of {name}"


def sent_once(history: History) -> Iterator[str]:
    """G1 and G2, from outside: each message that was asked for is one command, neither 0 nor 2."""
    closed = {told.session for told in history.world.customers.told if told.step.what == "close"}
    ids: dict[str, set[str]] = defaultdict(set)
    for command in history.values(TOOL_TOPICS[0]):
        ids[command["inputs"]["message"]].add(command["id"])
    for told in history.world.customers.told:
        if told.step.what != "send":
            continue
        found = len(ids[f"hola {told.step.number}"])
        if found > 1 or (found == 0 and told.session not in closed):
            yield f"G2: 'hola {told.step.number}' of {told.session} became {found} commands"


def same_ids(history: History) -> Iterator[str]:
    """G6: one id is one thing, byte for byte, however often it is on its topic."""
    for topic in (*TOOL_TOPICS, OUTCOMES, DEAD_LETTERS):
        known: dict[object, bytes] = {}
        for record in history.world.cluster.records(topic):
            value = orjson.loads(record.value or b"{}")
            what = (value["id"], value.get("attempt"))
            if known.setdefault(what, record.value or b"") != record.value:
                yield f"G6: {topic}: {what} is two things"


def performed_once(history: History) -> Iterator[str]:
    """G6: the gateways call WhatsApp once per attempt, and the CRM under one key."""
    calls = history.world.tools.calls
    counted = Counter((call.key, call.attempt) for call in calls if call.tool.startswith("whats"))
    for what, count in counted.items():
        if count > 1:
            yield f"G6: WhatsApp was called {count} times for {what}"
    issued = {
        (command["id"], command["attempt"])
        for topic in TOOL_TOPICS
        for command in history.values(topic)
    }
    for call in calls:
        if (call.key, call.attempt) not in issued:
            yield f"G6: {call.tool} was called for {call.key}, which nobody issued"
    results: dict[tuple[str, int], set[bytes]] = defaultdict(set)
    for record in history.world.cluster.records("tool.results"):
        if record.by != "customer":
            value = orjson.loads(record.value or b"{}")
            results[value["commandId"], value["attempt"]].add(record.value or b"")
    for answered, told in results.items():
        if len(told) > 1:
            yield f"G6: {answered} has {len(told)} results"
    for asked in sorted(issued - results.keys()):
        yield f"G11: {asked} has no result"


def orders_exist(history: History) -> Iterator[str]:
    """G7: whoever is told of an order has one, made before he was told."""
    orders: dict[str, list[float]] = defaultdict(list)
    for call in history.world.tools.calls:
        if call.tool == "crm.order.create" and call.acted:
            orders[call.session].append(call.at_ms)
    for record in history.world.cluster.records(TOOL_TOPICS[0]):
        command = orjson.loads(record.value or b"{}")
        if command["inputs"]["message"] == CREATED_TEXT:
            made = orders[command["sessionId"]]
            if not any(at_ms < record.at_ms for at_ms in made):
                yield f"G7: {command['sessionId']} is told of an order that does not exist"
    numbers = {number for number, _ in history.world.tools.orders.values()}
    for outcome in history.values(OUTCOMES):
        if outcome.get("orderId") is not None and outcome["orderId"] not in numbers:
            yield f"G7: an outcome names {outcome['orderId']}, which the CRM does not know"
