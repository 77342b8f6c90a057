"""What a run tried and what it cost: counts, lateness and gaps in service, as JSON and as text."""

from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, Final

from tests.chaos.expected import DATA_REPLY, PROMOS_REPLY
from tests.chaos.history import CHANGELOG, DEADLINES, JOURNAL, FaultDone, History
from tests.chaos.reading import Reading, Violation, source_of

NEAR_MS: Final = 100
# For so long after its end a fault is blamed for what comes late: a session timeout, a recovery.
ECHO_MS: Final = 10_000
SHOWN_GAPS: Final = 5
CALM: Final = "no fault"

Late = dict[str, dict[str, int]]


def make_report(history: History, violations: list[Violation]) -> dict[str, Any]:
    """Everything that the run is to tell, but for its seed and its command."""
    read = Reading(history)
    return {
        "ok": not violations,
        "violations": [str(one) for one in violations],
        "violationKinds": dict(Counter(one.kind for one in violations)),
        "seconds": round((history.ended_at_ms - history.began_at_ms) / 1_000),
        "sessions": len(read.told),
        "events": _events(read),
        "faults": dict(Counter(fault.kind for fault in history.faults)),
        "exits": _exits(history),
        "deadlines": _deadlines(read),
        "answersNearDeadlines": _near(read),
        "tools": _tools(read),
        "letters": dict(Counter(letter["reason"] for letter in read.letters.values())),
        "outcomes": dict(_outcomes(read)),
        "latenessMs": _by_fault(history, _lateness(read)),
        "journalDelayMs": _by_fault(history, _delays(read)),
        "gaps": _gaps(history),
        "brokerBack": _broker_back(history),
    }


def _events(read: Reading) -> dict[str, int]:
    sent = read.history.sent
    tries = [tried for one in sent for tried in one.tries]
    return {
        "sent": len(sent),
        "brokenOnPurpose": sum(one.broken for one in sent),
        "tries": len(tries),
        "acknowledged": sum(tried.acknowledged for tried in tries),
        "notAcknowledged": sum(not tried.acknowledged for tried in tries),
        "inputRecords": len(read.inputs),
        "journalLines": len(read.journal),
        "journalLinesRepeated": len(read.journal) - len(read.sources),
        "recordsWritten": len(read.history.of(CHANGELOG)),
    }


def _exits(history: History) -> dict[str, Any]:
    counted: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for one in history.exits:
        kind = one.process.split("-")[0]
        counted[f"{kind}: code {one.code}, {one.cause or 'by itself'}"] += 1
        if one.cause is None:
            words[f"{kind} {one.code}: {one.words}"] += 1
    return {"counts": dict(sorted(counted.items())), "ownReasons": dict(words)}


def _deadlines(read: Reading) -> dict[str, int]:
    ends: Counter[str] = Counter()
    for told in read.told.values():
        ends.update(armed.end for armed in told.story.all_deadlines)
    published = len(read.history.of(DEADLINES))
    return {"armed": ends.total(), **ends, "published": published}


def _near(read: Reading) -> dict[str, int]:
    """How close to the due times the customers came, by the broker's stamps."""
    found = {"before": 0, "after": 0, "afterButCounted": 0}
    for session, told in read.told.items():
        for armed in told.story.all_deadlines:
            if armed.name not in {DATA_REPLY, PROMOS_REPLY}:
                continue
            for message in read.messages.get(session, ()):
                ahead = armed.due_ms - message.timestamp
                if 0 < ahead <= NEAR_MS and message.timestamp > armed.armed_ms:
                    found["before"] += 1
                elif -NEAR_MS <= ahead <= 0:
                    found["after"] += 1
                counted = armed.end == "cancelled" and armed.ended_ms == message.timestamp
                found["afterButCounted"] += ahead <= 0 and counted
    return found


def _tools(read: Reading) -> dict[str, Any]:
    books = read.history.books
    statuses = Counter(
        f"{result['status']}{' retryable' if result['retryable'] else ''}"
        for results in read.results.values()
        for result in results[:1]
    )
    return {
        "commands": len({command_id for command_id, _ in read.commands}),
        "attempts": len(read.commands),
        "requests": dict(Counter(item["tool"] for item in books)),
        "effects": dict(Counter(item["tool"] for item in books if item["performed"])),
        "repeatsAnsweredByKey": sum(item["repeat"] for item in books),
        "results": dict(statuses),
    }


def _outcomes(read: Reading) -> Counter[str]:
    return Counter(
        f"{item['flow']}/{item['status']}/{item['action']}"
        for items in read.outcomes.values()
        for item in items
    )


def _lateness(read: Reading) -> Iterator[tuple[int, int]]:
    """(due, fired) of each deadline that fired, by the broker's stamps."""
    for told in read.told.values():
        for armed in told.story.all_deadlines:
            if armed.end == "fired":
                # A retry's exact due time is not the contract's: the latest would be too kind.
                yield armed.due_ms, armed.ended_ms


def _delays(read: Reading) -> Iterator[tuple[int, int]]:
    """(came, journalled) of each record: how long what came in waited for its place."""
    for line in read.sources.values():
        source = read.inputs.get(source_of(line))
        if source is not None:
            yield source.timestamp, line.timestamp


def _by_fault(history: History, spans: Iterable[tuple[int, int]]) -> Late:
    """The lengths of time spans: all, and by the kind of each fault that overlaps them."""
    lengths: dict[str, list[int]] = defaultdict(list)
    for begin, end in spans:
        lengths["all"].append(end - begin)
        for kind in _blamed(history.faults, begin, end):
            lengths[kind].append(end - begin)
    return {kind: _spread(sorted(found)) for kind, found in sorted(lengths.items())}


def _blamed(faults: list[FaultDone], begin: int, end: int) -> set[str]:
    kinds = {
        fault.kind
        for fault in faults
        if fault.began_at_ms <= end and begin <= fault.ended_at_ms + ECHO_MS
        if not fault.kind.startswith("tool_")
    }
    return kinds or {CALM}


def _spread(values: list[int]) -> dict[str, int]:
    return {
        "count": len(values),
        "p50": values[len(values) // 2],
        "p99": values[min(len(values) - 1, len(values) * 99 // 100)],
        "max": values[-1],
    }


def _gaps(history: History) -> list[dict[str, Any]]:
    """The longest times in which no line was added to the journal, while events came."""
    last_sent = max((tried.ended_at_ms for one in history.sent for tried in one.tries), default=0)
    stamps = sorted(line.timestamp for line in history.of(JOURNAL) if line.timestamp <= last_sent)
    pairs = [(after - before, before) for before, after in pairwise(stamps)]
    return [
        {
            "ms": length,
            "atSecond": round((at - history.began_at_ms) / 1_000, 1),
            "faults": sorted(_blamed(history.faults, at, at + length)),
        }
        for length, at in sorted(pairs, reverse=True)[:SHOWN_GAPS]
    ]


def _broker_back(history: History) -> list[dict[str, Any]]:
    """How long each absence of the broker was, and then the journal's first line took."""
    stamps = sorted(line.timestamp for line in history.of(JOURNAL))
    found = []
    for fault in history.faults:
        after = bisect(stamps, fault.ended_at_ms)
        if fault.target == "broker" and after < len(stamps):
            away_ms = fault.ended_at_ms - fault.began_at_ms
            then_ms = stamps[after] - fault.ended_at_ms
            found.append({"fault": fault.kind, "awayMs": away_ms, "thenMs": then_ms})
    return found


def as_text(report: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    yield f"{report['sessions']} sessions in {report['seconds']} s"
    for title in (
        "events", "faults", "deadlines", "answersNearDeadlines", "tools", "letters", "outcomes",
    ):  # fmt: skip
        yield f"{title}: " + ", ".join(f"{k} {v}" for k, v in report[title].items())
    yield "exits:"
    yield from (f"  {count} x {what}" for what, count in report["exits"]["counts"].items())
    yield from (f"  {count} x {what}" for what, count in report["exits"]["ownReasons"].items())
    for title in ("latenessMs", "journalDelayMs"):
        yield f"{title}, by the faults around it:"
        for kind, item in report[title].items():
            yield f"  {kind:14} " + "  ".join(f"{k} {v}" for k, v in item.items())
    yield "longest times without journal progress:"
    for gap in report["gaps"]:
        yield f"  {gap['ms']} ms at second {gap['atSecond']}: {', '.join(gap['faults'])}"
    yield "after each absence of the broker, until the journal went on:"
    for back in report["brokerBack"]:
        yield f"  {back['thenMs']} ms after {back['fault']} of {back['awayMs']} ms"
    verdict = "0 violations" if report["ok"] else f"{len(report['violations'])} VIOLATIONS"
    yield f"{verdict}"
