"""What the chat page shows: the lines of each conversation, from the newest back to a limit.

A conversation is known from the moment at which someone starts it here or the agent writes into
it. Its lines come from the customer (the page), from the agent (a WhatsApp message that the
sandbox performed) and from the sandbox itself (a note: an order, the outcome of a flow).
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from agents_stream.sandbox.books import now_ms

MAX_CONVERSATIONS = 1_000
MAX_LINES = 500
MAX_CHARS = 16_000_000
MAX_NOTE_CHARS = 500
MAX_LISTED = 100
PREVIEW_CHARS = 80

Author = Literal["customer", "agent", "note"]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a conversation. `seq` rises through all conversations; `id` names its origin."""

    seq: int
    id: str
    at_ms: int
    author: Author
    text: str

    def as_json(self) -> dict[str, Any]:
        """Return it as the page gets it."""
        return {
            "seq": self.seq,
            "id": self.id,
            "at": self.at_ms,
            "from": self.author,
            "text": self.text,
        }


@dataclass(slots=True)
class Conversation:
    """The newest lines of a conversation, and which session and contact it belongs to."""

    id: str
    session_id: str | None = None
    contact_id: str | None = None
    lines: deque[Line] = field(default_factory=deque)

    def as_json(self) -> dict[str, Any]:
        """Return it as the list of conversations shows it."""
        last = self.lines[-1] if self.lines else None
        return {
            "conversationId": self.id,
            "sessionId": self.session_id,
            "contactId": self.contact_id,
            "lastAt": last.at_ms if last else None,
            "lastFrom": last.author if last else None,
            "preview": last.text[:PREVIEW_CHARS] if last else "",
        }


class Conversations:
    """The conversations of the chat, the one touched last at the end.

    A page that watches is woken at each change and then reads what is new: nothing queues up
    for a page that is slow.
    """

    def __init__(self, clock: Callable[[], int] = now_ms) -> None:
        self._clock = clock
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        self._watchers: set[asyncio.Event] = set()
        self._seq = 0
        self._chars = 0
        self.cleared = 0

    def touch(
        self, conversation_id: str, session_id: str | None = None, contact_id: str | None = None
    ) -> Conversation:
        """Return a conversation, made if need be, after noting whose it is."""
        conversation = self._conversations.setdefault(
            conversation_id, Conversation(conversation_id)
        )
        self._conversations.move_to_end(conversation_id)
        self._make_room()
        conversation.session_id = session_id or conversation.session_id
        conversation.contact_id = contact_id or conversation.contact_id
        self.wake()
        return conversation

    def get(self, conversation_id: str) -> Conversation | None:
        """Return a conversation if it is known."""
        return self._conversations.get(conversation_id)

    def identify(self, conversation_id: str, session_id: str, contact_id: str | None) -> None:
        """Note whose a known conversation is, without counting that as activity."""
        conversation = self._conversations.get(conversation_id)
        if conversation is not None:
            conversation.session_id = session_id
            conversation.contact_id = contact_id or conversation.contact_id

    def add(self, conversation_id: str, author: Author, line_id: str, text: str) -> Line:
        """Add a line; a line of the same author and id is there only once."""
        conversation = self.touch(conversation_id)
        for line in conversation.lines:
            if line.id == line_id and line.author == author:
                return line
        self._seq += 1
        line = Line(self._seq, line_id, self._clock(), author, text)
        if len(conversation.lines) == MAX_LINES:
            self._chars -= len(conversation.lines.popleft().text)
        conversation.lines.append(line)
        self._chars += len(text)
        self._make_room()
        return line

    def note(self, text: str, note_id: str, *, contact: str | None, session: str | None) -> None:
        """Add a note to the conversations of a contact or of a session."""
        concerned = [
            conversation.id
            for conversation in self._conversations.values()
            if (contact is not None and conversation.contact_id == contact)
            or (session is not None and conversation.session_id == session)
        ]
        for conversation_id in concerned:
            self.add(conversation_id, "note", note_id, text[:MAX_NOTE_CHARS])

    def listed(self) -> list[dict[str, Any]]:
        """Return the conversations touched last, newest first."""
        newest_first = reversed(self._conversations.values())
        return [item.as_json() for item, _ in zip(newest_first, range(MAX_LISTED), strict=False)]

    def clear(self) -> None:
        """Forget every conversation."""
        self._conversations.clear()
        self._chars = 0
        self.cleared += 1
        self.wake()

    @contextmanager
    def watch(self) -> Iterator[asyncio.Event]:
        """Give an event that is set at each change, for as long as someone watches."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            yield changed
        finally:
            self._watchers.discard(changed)

    def _make_room(self) -> None:
        """Forget the conversations untouched longest, down to the limits; the newest stays."""
        kept = self._conversations
        while len(kept) > 1 and (len(kept) > MAX_CONVERSATIONS or self._chars > MAX_CHARS):
            _, gone = kept.popitem(last=False)
            self._chars -= sum(len(line.text) for line in gone.lines)

    def wake(self) -> None:
        """Have every page that watches look again."""
        for changed in self._watchers:
            changed.set()
