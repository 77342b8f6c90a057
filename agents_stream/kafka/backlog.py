"""What of a partition was fetched and is not done: it bounds memory, and tells of progress."""

import time
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backlog:
    """One partition's. `size` in bytes; `moved_at`, monotonic: the last progress."""

    fetched: deque[tuple[int, int]] = field(default_factory=deque)
    size: int = 0
    paused: bool = False
    moved_at: float = 0.0

    def add(self, next_offset: int, size: int) -> None:
        """What lies below `next_offset` has been fetched."""
        if not self.fetched:
            self.moved_at = time.monotonic()
        self.fetched.append((next_offset, size))
        self.size += size

    def done(self, offset: int) -> None:
        """What lies below `offset` is done."""
        while self.fetched and self.fetched[0][0] <= offset:
            self.size -= self.fetched.popleft()[1]
            self.moved_at = time.monotonic()
