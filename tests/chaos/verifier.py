"""The verifier: every check on a history, and what a run that drains has yet to see.

It knows every event that was sent, and reads only topics, the sandbox's books and the exits. Of
the system's code it uses `core` for one question: does the journal replay to the record (G8)?
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from tests.chaos import check_effects, check_inputs, check_sessions
from tests.chaos.history import History
from tests.chaos.reading import Reading, Violation

Check = Callable[[Reading], Iterator[Violation]]

CHECKS: Final[tuple[Check, ...]] = (
    check_inputs.lost,
    check_inputs.unwritten,
    check_inputs.invented,
    check_inputs.disordered,
    check_inputs.buried,
    check_effects.changed_ids,
    check_effects.doubled,
    check_effects.too_many_orders,
    check_effects.uncalled_for,
    check_effects.phantom_orders,
    check_effects.unanswered,
    check_effects.missing_books,
    check_sessions.standing,
    check_sessions.ended_twice,
    check_sessions.early,
    check_sessions.wrong_due,
    check_sessions.silenced,
    check_sessions.outcomes,
    check_sessions.commands,
    check_sessions.letters,
    check_sessions.records,
    check_sessions.replays,
    check_sessions.exits,
)
# What is not there yet while a run drains, and no violation before its end.
UNFINISHED: Final[Mapping[str, Check]] = {
    "inputs": check_inputs.lost,
    "results": check_effects.unanswered,
    "outcomes": check_sessions.outcomes,
    "commands": check_sessions.commands,
    "letters": check_sessions.letters,
    "records": check_sessions.records,
}


def verify(history: History) -> list[Violation]:
    """Every violation of a finished run."""
    read = Reading(history)
    # What cannot be read cannot be checked any further.
    if unreadable := list(check_inputs.unreadable(read)):
        return unreadable
    return [violation for check in CHECKS for violation in check(read)]


def unfinished(history: History) -> dict[str, int]:
    """What is yet to come, by kind; empty when everything has drained."""
    read = Reading(history)
    left = {name: sum(1 for _ in check(read)) for name, check in UNFINISHED.items()}
    deadlines = sum(len(told.story.deadlines) for told in read.told.values())
    return {name: count for name, count in {**left, "deadlines": deadlines}.items() if count}
