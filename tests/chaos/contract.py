"""SPEC §3 to §5 read once more, as a plain fold: how a session should have gone, by its journal.

Written from the contract, not from `agents_stream.core`: two readings of the same words that
agree. It takes a session's journal entries in their order, each source record once, and says what
must have come of them: outcomes, commands, letters, deadlines, and how the session stands. The ids
of commands it learns from the topics (`asOf` names the entry that caused one).

It knows the events that the chaos run sends; an operator is not among them.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.chaos.expected import (
    DATA_PROMOS,
    DATA_REPLY,
    MAX_ATTEMPTS,
    MESSAGE,
    MISSING_TEXT,
    ORDER,
    ORDER_TEXT,
    OWN_PREFIX,
    PENDING_TEXT,
    PROACTIVE_TEXTS,
    PROMOS_REPLY,
    REQUIRED,
    Armed,
    Command,
    Run,
    iso,
)
from tests.chaos.history import Line, Timing

# (session, asOf) -> the command that stands on a tool's topic, if one does.
CommandAt = Callable[[str, int], dict[str, Any] | None]

FRESH: Final[Mapping[str, Any]] = {
    "datos_capturados": {},
    "proactive_started_at": None,
    "ofrecer_promos_at": None,
    "pack_seleccionado": None,
}
"""The state of a session that has just been opened."""


class Story:
    """One session, as the contract has it, up to now."""

    def __init__(self, session_id: str, timing: Timing, command_at: CommandAt) -> None:
        self.session_id = session_id
        self.timing = timing
        self.known = False
        self.started = False
        self.status, self.reason = "open", None
        self.mode: str | None = None
        self.version = 1
        self.state: dict[str, Any] = {}
        self.contact: str | None = None
        self._empty()
        self.deadlines: dict[str, Armed] = {}
        self.flows: dict[str, Run] = {}
        self.commands: dict[str, Command] = {}
        self.offers: list[int] = []
        self.all_deadlines: list[Armed] = []
        self.outcomes: list[dict[str, Any]] = []
        self.issued: list[tuple[int, str, int, dict[str, Any]]] = []
        self.letters: list[tuple[str, str]] = []
        self._ids: set[str] = set()
        self._sources: set[tuple[str, int, int, int]] = set()
        self._command_at = command_at
        self._offset, self._now = -1, 0

    def take(self, line: Line) -> bool:
        """Take the next journal entry; False where its source had been applied already."""
        entry = line.json
        source = entry["source"]
        place = (source["topic"], source["partition"], source["offset"], source["timestamp"])
        if place in self._sources:
            return False
        kind, data = entry["kind"], entry["data"]
        if not self.known and kind != "event":
            return True
        self._sources.add(place)
        self._offset = line.offset
        self._now = line.timestamp if kind == "deadline" else source["timestamp"]
        before = (self.mode, dict(self.state))
        opening = not self.known
        if kind == "event":
            self._event(entry["name"].removeprefix("agent/"), data, entry)
        elif kind == "result":
            self._result(data)
        else:
            self._deadline(data, source["timestamp"])
        first = opening and entry["name"] == "agent/session.started"
        if (self.mode, self.state) != before and not first:
            self.version += 1
        return True

    # -- events

    def _event(self, name: str, data: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
        if not self.known:
            self.known = True
        identity = entry["id"] or ("m:" + data["messageId"] if "messageId" in data else None)
        if identity is not None and identity.startswith(OWN_PREFIX):
            if entry["ts"] not in self.offers:
                return
            self.offers.remove(entry["ts"])
        elif identity is not None and identity in self._ids:
            return
        if identity is not None:
            self._ids.add(identity)
        if self.status == "closed" and name != "session.started":
            return
        handlers: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "session.started": self._started,
            "session.updated": self._updated,
            "data.captured": self._captured,
            "customer.message": self._message,
            "collecting_data.started": self._collecting,
            "promos.offered": self._offered,
            "proactive.send": self._proactive,
            "session.close": self._close,
        }
        handlers[name](data)

    def _empty(self) -> None:
        self.state = {**FRESH, "datos_capturados": {}}
        self.mode = self.contact = None

    def _started(self, data: Mapping[str, Any]) -> None:
        if self.status == "closed":
            self._empty()
            self.status, self.reason, self.started, self.offers = "open", None, False, []
            orders = {k: v for k, v in self.commands.items() if v.tool == ORDER}
            self.commands = orders
        if not self.started:
            self.started = True
            self.contact = self.contact or data["contactId"]
            self.mode = self.mode or data["mode"]

    def _updated(self, data: Mapping[str, Any]) -> None:
        if data.get("expectedVersion") not in (None, self.version):
            self._outcome("session", "rejected", "version_conflict")
            return
        self.mode = data.get("mode") or self.mode
        self.state = {**self.state, **(data.get("state") or {})}

    def _captured(self, data: Mapping[str, Any]) -> None:
        merged = {**self.state["datos_capturados"], **data["data"]}
        self.state = {**self.state, "datos_capturados": merged}

    def _message(self, _data: Mapping[str, Any]) -> None:
        asked, offered = DATA_REPLY in self.deadlines, PROMOS_REPLY in self.deadlines
        if asked:
            self._end(DATA_REPLY, "cancelled")
            if self._lacking():
                self._finish("data_collection", "responded", "awaiting_more_data")
            else:
                self._await_promos()
        if offered:
            self._end(PROMOS_REPLY, "cancelled")
            self._finish("promos", "responded", "awaiting_selection_processing")

    def _collecting(self, data: Mapping[str, Any]) -> None:
        if "data_collection" in self.flows:
            self._end(DATA_REPLY, "cancelled")
            self._end(DATA_PROMOS, "cancelled")
            self._finish("data_collection", "cancelled", "restarted")
        self.flows["data_collection"] = Run(self._offset, "asked", data["conversationId"])
        self.mode = "collecting_data"
        self.state = {**self.state, "proactive_started_at": iso(self._now)}
        self._arm(DATA_REPLY, self.timing.data_reply_ms)

    def _offered(self, data: Mapping[str, Any]) -> None:
        run = self.flows.get("promos")
        if run is not None and run.step != "offered":
            return
        if run is not None:
            self._end(PROMOS_REPLY, "replaced")
            self._finish("promos", "cancelled", "restarted")
        self.flows["promos"] = Run(self._offset, "offered", data["conversationId"])
        if self.mode != "ofrecer_promos":
            self.mode = "ofrecer_promos"
            self.state = {**self.state, "ofrecer_promos_at": iso(self._now)}
        self._arm(PROMOS_REPLY, self.timing.promos_reply_ms)

    def _proactive(self, data: Mapping[str, Any]) -> None:
        kind = data["messageType"]
        text = data.get("content") or PROACTIVE_TEXTS[kind]
        command = self._message_to(data["conversationId"], text, "proactive", "sent")
        command.action, command.run = kind, self._offset

    def _close(self, data: Mapping[str, Any]) -> None:
        for name in list(self.deadlines):
            self._end(name, "cancelled")
        for flow in ("data_collection", "promos"):
            if (run := self.flows.get(flow)) is not None:
                told = [c for c in self.commands.values() if c.then == "told" and c.run == run.run]
                extra = told[0].extra if flow == "promos" and told else {}
                self._finish(flow, "cancelled", "session_closed", **extra)
        for command in list(self.commands.values()):
            if command.flow == "proactive" and command.state != "failed":
                self._outcome("proactive", "cancelled", "session_closed")
            if command.state == "failed":
                del self.commands[command.id]
            else:
                command.state = "orphaned"
        self.status, self.reason = "closed", data["reason"]
        self._outcome("session", "closed", data["reason"])

    # -- deadlines

    def _deadline(self, data: Mapping[str, Any], stamp: int) -> None:
        armed = self.deadlines.get(data["name"])
        if armed is None or armed.generation != data["generation"] or stamp < data["dueAt"]:
            return
        self._end(armed.name, "fired", stamp)
        if armed.name == DATA_REPLY:
            self._silence()
        elif armed.name == DATA_PROMOS:
            self.offers.append(self._now)
            self.mode = "ofrecer_promos"
            self.state = {**self.state, "ofrecer_promos_at": iso(self._now)}
            self._finish("data_collection", "complete", "transitioned_to_promos")
        elif armed.name == PROMOS_REPLY:
            self._order()
        else:
            command = self.commands[armed.name.removeprefix("retry:")]
            command.attempt, command.state = command.attempt + 1, "awaiting"
            self.issued.append((self._offset, command.tool, command.attempt, command.inputs))

    def _silence(self) -> None:
        lacking, run = self._lacking(), self.flows["data_collection"]
        if not lacking:
            self._await_promos()
            return
        run.step = "asking"
        some = bool(self.state["datos_capturados"])
        text = MISSING_TEXT + ", ".join(lacking) if some else PENDING_TEXT
        command = self._message_to(run.conversation, text, "data_collection", "asked")
        command.run = run.run
        command.action = "requested_missing_data" if some else "sent_pending_message"
        command.extra = {"missing": lacking} if some else {}

    def _order(self) -> None:
        run = self.flows["promos"]
        if self.contact is None:
            self._finish("promos", "failed", "contact_unknown")
            return
        run.step = "ordering"
        inputs = {
            "contact_id": self.contact,
            "products": [{"product_id": "default-pack-1x", "quantity": 1}],
            "notes": "Auto-created after 10 min timeout. Pack: 1x",
        }
        self._command(ORDER, inputs, "promos", "ordered").run = run.run

    # -- results

    def _result(self, data: Mapping[str, Any]) -> None:
        command = self.commands.get(data["commandId"])
        if command is None or data["attempt"] > command.attempt or command.state == "failed":
            return
        if data["status"] == "succeeded":
            del self.commands[command.id]
            self._end("retry:" + command.id, "cancelled")
            self._succeeded(command, (data.get("outputs") or {}).get("id"))
        elif command.state != "retrying" and data["attempt"] == command.attempt:
            self._failed(command, data)

    def _succeeded(self, command: Command, order_id: Any) -> None:
        if command.state == "orphaned":
            if command.tool == ORDER:
                self._outcome("promos", "cancelled", "order_created_after_close", orderId=order_id)
        elif command.then == "ordered":
            self.state = {**self.state, "pack_seleccionado": "1x"}
            run = self.flows["promos"]
            run.step = "telling"
            told = self._message_to(run.conversation, ORDER_TEXT, "promos", "told")
            told.run, told.action, told.extra = run.run, "auto_created_order", {"orderId": order_id}
        elif command.then == "told":
            self.mode = "compra_confirmada"
            self._finish("promos", "timeout", command.action, command.run, **command.extra)
        else:
            self._message_ended(command, "timeout" if command.then == "asked" else "sent", {})

    def _failed(self, command: Command, data: Mapping[str, Any]) -> None:
        unknown = data["status"] == "unknown"
        if data.get("retryable") and not unknown and command.state == "orphaned":
            del self.commands[command.id]
        elif data.get("retryable") and not unknown and command.attempt < MAX_ATTEMPTS:
            command.state = "retrying"
            low = self.timing.retry_backoff_ms * 2 ** (command.attempt - 1)
            asked = data.get("retryAfterMs") or 0
            self._arm("retry:" + command.id, max(low, asked), max(low * 3 // 2 + 1, asked))
        else:
            exhausted = "retries_exhausted" if data.get("retryable") else "tool_failed"
            self._failed_for_good(command, "tool_unknown" if unknown else exhausted, data)

    def _failed_for_good(self, command: Command, reason: str, data: Mapping[str, Any]) -> None:
        self.letters.append((reason, command.id))
        if command.state == "orphaned":
            del self.commands[command.id]
            return
        command.state = "failed"
        unknown = {"unknown": True} if reason == "tool_unknown" else {}
        error = {"error": {name: (data.get("error") or {}).get(name) for name in ("code",)}}
        if command.then == "ordered":
            self._finish("promos", "failed", "order_failed", command.run, **error, **unknown)
        elif command.then == "told":
            self.mode = "compra_confirmada"
            notified = {"notified": None if unknown else False}
            self._finish(
                "promos", "timeout", command.action, command.run,
                **command.extra, **notified, **unknown,
            )  # fmt: skip
        else:
            self._message_ended(command, "failed", {**error, **unknown})

    def _message_ended(self, command: Command, status: str, more: dict[str, Any]) -> None:
        if command.flow == "data_collection":
            run = self.flows.get("data_collection")
            if run is None or run.run != command.run:
                return
        self._finish(command.flow, status, command.action, command.run, **command.extra, **more)

    # -- what all of them do

    def _lacking(self) -> list[str]:
        captured = self.state["datos_capturados"]
        return [name for name in REQUIRED if not captured.get(name)]

    def _await_promos(self) -> None:
        self.flows["data_collection"].step = "awaiting_promos"
        self._arm(DATA_PROMOS, self.timing.promos_delay_ms)

    def _arm(self, name: str, after_ms: int, latest_ms: int | None = None) -> None:
        latest = after_ms if latest_ms is None else latest_ms
        armed = Armed(name, self._offset, self._now, self._now + after_ms, self._now + latest)
        self.deadlines[name] = armed
        self.all_deadlines.append(armed)

    def _end(self, name: str, how: str, stamp: int | None = None) -> None:
        if (armed := self.deadlines.pop(name, None)) is not None:
            armed.end, armed.ended_ms = how, self._now if stamp is None else stamp

    def _finish(
        self, flow: str, status: str, action: str, run: int | None = None, **extra: Any
    ) -> None:
        current = self.flows.get(flow)
        if current is not None and (run is None or run == current.run):
            del self.flows[flow]
        self._outcome(flow, status, action, **extra)

    def _outcome(self, flow: str, status: str, action: str, **extra: Any) -> None:
        told = {"flow": flow, "status": status, "action": action, "at": self._now, **extra}
        self.outcomes.append(told)

    def _message_to(self, conversation: str, text: str, flow: str, then: str) -> Command:
        return self._command(MESSAGE, {"contactId": conversation, "message": text}, flow, then)

    def _command(self, tool: str, inputs: dict[str, Any], flow: str, then: str) -> Command:
        found = self._command_at(self.session_id, self._offset)
        command = Command(
            found["id"] if found else f"missing/{self._offset}", tool, inputs, flow, then, 0
        )
        self.commands[command.id] = command
        self.issued.append((self._offset, tool, 1, inputs))
        return command
