"""The rows of one partition, as its changelog tells them: what recovery and a rebuild share.

The record with the highest journal position wins, not the last one (G9). A tombstone takes away
what came before it, whatever that was: a session that has left the table, or a row that is being
repaired. What cannot be read is remembered until a tombstone clears it: whether it was higher than
what stands nobody can know.
"""

from collections.abc import Callable

from agents_stream.core.session import journal_position


class RowFold:
    """Records in the order of the changelog; `known` gives the rows that were there before."""

    def __init__(self, known: Callable[[bytes], bytes | None]) -> None:
        self._known = known
        self._changes: dict[bytes, bytes | None] = {}
        self.beaten: set[bytes] = set()
        self.unreadable: dict[bytes, str] = {}

    def take(self, key: bytes, value: bytes | None) -> None:
        """The next record of the changelog."""
        if value is None:
            self._changes[key] = None
            self.beaten.discard(key)
            self.unreadable.pop(key, None)
            return
        known = self._changes[key] if key in self._changes else self._known(key)
        try:
            is_later = later(value, known)
        except (ValueError, KeyError, TypeError) as error:
            self.unreadable[key] = f"{type(error).__name__}: {error}"
            return
        if is_later:
            self._changes[key] = value
        elif value != known:
            self.beaten.add(key)

    def drain(self) -> dict[bytes, bytes | None]:
        """What has changed since the last call; None: the row is gone."""
        changes, self._changes = self._changes, {}
        return changes


def later(row: bytes, other: bytes | None) -> bool:
    """Whether a record is further in the journal than another (highest offset wins, DESIGN §3)."""
    position = journal_position(row)
    return other is None or position > journal_position(other)
