"""How far one partition of a topic is done, when its records end in any order. Pure."""

from agents_stream.core.errors import TerminalError


class Progress:
    """Knows the offset that may be committed: everything before it is done.

    Offsets may have gaps (compaction, transactions). Its size is the number of records between
    that offset and the last one taken; whoever takes records bounds it.
    """

    def __init__(self) -> None:
        self._open: dict[int, bool] = {}
        self._next: int | None = None

    def __len__(self) -> int:
        return len(self._open)

    def take(self, offset: int) -> None:
        """Note that a record is in hand.

        Raises:
            TerminalError: the offsets went back, so this is no longer the topic that it was.

        """
        if self._next is not None and offset < self._next:
            raise TerminalError(
                f"offset {offset} came after {self._next - 1}: the topic was made anew. Start the"
                " gateway again"
            )
        self._open[offset] = False
        self._next = offset + 1

    def finish(self, offset: int) -> None:
        """Note that a record taken before is done."""
        assert offset in self._open, "only what was taken can be done"
        self._open[offset] = True
        while self._open and self._open[first := next(iter(self._open))]:
            del self._open[first]

    @property
    def committable(self) -> int | None:
        """The offset that may be committed, or None before the first record."""
        return next(iter(self._open), self._next)
