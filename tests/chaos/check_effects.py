"""Checks of what went out: no effect doubled, no order told of that does not exist (G6, G7)."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from tests.chaos.expected import MESSAGE, ORDER, ORDER_TEXT
from tests.chaos.history import COMMANDS, LETTERS, OUTCOMES
from tests.chaos.reading import Reading, Violation


def changed_ids(read: Reading) -> Iterator[Violation]:
    """G6: what has one id (and attempt) is one thing, however often it is published."""
    for topic in (*COMMANDS, OUTCOMES, LETTERS):
        known: dict[tuple[str, Any], Any] = {}
        for line in read.history.of(topic):
            value = line.json
            key = (value["id"], value.get("attempt"))
            # The time of a letter's source is the broker's, all else is the decision's.
            if known.setdefault(key, value) != value:
                session = str(value.get("sessionId") or value.get("key"))
                detail = f"{topic}/{line.partition}/{line.offset} has an id that was another thing"
                yield Violation("changed_id", session, detail)


def doubled(read: Reading) -> Iterator[Violation]:
    """G6: a tool acts at most once per command id, and is asked at most once per attempt.

    The CRM may be asked again with the same key: that is what the key is for.
    """
    for (tool, key), entries in _books(read).items():
        session = _session_of(read, key)
        acted = [item for item in entries if item["performed"] or item["repeat"]]
        if tool == MESSAGE and len(acted) > 1:
            detail = f"the customer got the message {key} {len(acted)} times"
            yield Violation("doubled", session, detail)
        attempts = sum(1 for command_id, _ in read.commands if command_id == key)
        if tool == MESSAGE and len(entries) > attempts:
            detail = f"{len(entries)} requests for the {attempts} attempts of {key}"
            yield Violation("doubled", session, detail)
        if sum(item["performed"] for item in entries) > 1:
            yield Violation("doubled", session, f"{key} had its effect twice")


def uncalled_for(read: Reading) -> Iterator[Violation]:
    """Every request to a tool has a command, with the same inputs."""
    by_id = {command_id: command for (command_id, _), command in read.commands.items()}
    for (tool, key), entries in _books(read).items():
        command = by_id.get(key)
        for item in entries:
            if command is None or command["tool"] != tool or command["inputs"] != item["inputs"]:
                session = "" if command is None else command["sessionId"]
                detail = f"request {item['seq']} of {tool} has no such command: key {key}"
                yield Violation("uncalled_for", session, detail)


def phantom_orders(read: Reading) -> Iterator[Violation]:
    """G7: before a customer is told of an order, the CRM has it."""
    orders: dict[str, list[dict[str, Any]]] = defaultdict(list)
    told: list[tuple[str, int]] = []
    for (tool, key), entries in _books(read).items():
        session = _session_of(read, key)
        if tool == ORDER:
            orders[session] += [item for item in entries if item["performed"]]
        elif entries[0]["inputs"]["message"] == ORDER_TEXT:
            told += [(session, item["seq"]) for item in entries]
    for session, seq in told:
        if not any(order["seq"] < seq for order in orders[session]):
            detail = f"message {seq} tells of an order that the CRM did not have"
            yield Violation("phantom_order", session, detail)
    for session, outcomes in read.outcomes.items():
        ids = {order["id"] for order in orders[session]}
        for outcome in outcomes:
            if "orderId" in outcome and outcome["orderId"] not in ids:
                detail = f"an outcome names the order {outcome['orderId']}, which is none"
                yield Violation("phantom_order", session, detail)


def too_many_orders(read: Reading) -> Iterator[Violation]:
    """One order per run of the promos: as many orders as the contract asks for, or fewer."""
    made: dict[str, int] = defaultdict(int)
    for (tool, key), entries in _books(read).items():
        if tool == ORDER:
            made[_session_of(read, key)] += sum(item["performed"] for item in entries)
    for session, count in made.items():
        told = read.told.get(session)
        asked = 0
        if told is not None:
            asked = sum(tool == ORDER and attempt == 1 for _, tool, attempt, _ in told.story.issued)
        if count > asked:
            detail = f"{count} orders exist, {asked} were asked for"
            yield Violation("doubled", session, detail)


def unanswered(read: Reading) -> Iterator[Violation]:
    """Every attempt of every command has a result at the end."""
    for (command_id, attempt), command in read.commands.items():
        if (command_id, attempt) not in read.results:
            detail = f"attempt {attempt} of {command_id} ({command['tool']}) has no result"
            yield Violation("stuck", command["sessionId"], detail)


def missing_books(read: Reading) -> Iterator[Violation]:
    """The sandbox's books are whole: a check of the run itself, not of the system."""
    numbers = sorted(item["seq"] for item in read.history.books)
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        yield Violation("books", "", "the sandbox's books have gaps: nothing follows from them")


def _books(read: Reading) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for item in read.history.books:
        found[item["tool"], item["key"] or ""].append(item)
    return found


def _session_of(read: Reading, key: str) -> str:
    command = read.commands.get((key, 1))
    return "" if command is None else str(command["sessionId"])
