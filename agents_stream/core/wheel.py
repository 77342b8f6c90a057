"""The timer wheel: an index over deadlines, never their owner.

What may live here: integers. A timer is an id and a due time in milliseconds; what it means, to
whom it belongs and what happens when it is due is known to the caller. The wheel has no clock, no
thread and no callback: the caller says what time it is and gets what is due as data. It can be
rebuilt from the session records at any time, and after a restart it is.

A bucket is a slot of time, `2**shift` milliseconds wide, that starts at a multiple of its width.
A timer goes into a bucket that is at most 1/128 as wide as the timer is away: a deadline in 0.2 s
into a bucket of one millisecond, one in six minutes into a bucket of two seconds, one in a year
into a bucket of a day and a half. There is a width for every distance, so nothing overflows. When
the start of a wide bucket is reached, its timers move to narrower ones: one of six minutes moves
twice until it is due, one of a year four times. No more than 257 buckets of a width are in use,
beside those that the search for the earliest timer has split.

The buckets that exist are kept in a sorted list by their start. So the wheel takes no ticks: a
jump over a year looks only at the buckets that have timers. Since a bucket of one millisecond is
taken at its very millisecond and everything else is compared by its own due time, nothing fires
early (G4); since firing removes the id from the one map, nothing fires twice (G3).

A cancelled or rescheduled timer leaves its entry behind in the old bucket. Such garbage is
recognised by the map. Once there is more of it than there are timers, each further cancel also
cleans one bucket: memory stays bounded and no single call has to clean up everything.

The idea of levels with a queue of non-empty buckets is that of Apache Kafka's `TimingWheel`
(server-common/.../util/timer); the widths that grow with the distance are those of HdrHistogram.
Not taken over: expiry by callback, and buckets whose coarse start counts as the due time.
"""

from array import array
from bisect import bisect_right, insort

NEAR_BITS = 8
"""Timers nearer than 2**NEAR_BITS ms have a bucket for each millisecond."""

GARBAGE_SLACK = 1024
"""So many stale entries beyond the number of timers are not worth cleaning up."""

CROWDED = 64
"""The earliest timer is looked for in a bucket of at most so many; a fuller one is split."""

MAP_BYTES_EACH = 400
"""The map takes 40 to 110 bytes a timer as it grows; above this it is copied to a smaller one."""

_SPLIT_BITS = 6
_SHIFT_BITS = 7
_SHIFT_MASK = (1 << _SHIFT_BITS) - 1
_MAX_BITS = 63
_LOWEST = -(1 << _MAX_BITS)
_GONE = 1 << _MAX_BITS


class TimerWheel:
    """Timers by due time, for one partition. Ids and times fit into 64 signed bits.

    Every operation is amortised O(1) in the number of timers.
    """

    __slots__ = ("_buckets", "_due_at_ms", "_entries", "_keys", "_next", "_now_ms", "_swept")

    def __init__(self, now_ms: int = 0) -> None:
        self._now_ms = now_ms
        self._due_at_ms: dict[int, int] = {}
        # The key of a bucket is its start and its shift in one integer, sorted by the start.
        self._buckets: dict[int, array[int]] = {}
        self._keys: list[int] = []
        self._entries = 0
        self._swept = 0
        self._next: int | None = None

    def __len__(self) -> int:
        return len(self._due_at_ms)

    def __contains__(self, timer_id: object) -> bool:
        return timer_id in self._due_at_ms

    @property
    def now_ms(self) -> int:
        """The time of the latest advance."""
        return self._now_ms

    def schedule(self, timer_id: int, due_at_ms: int) -> None:
        """Have `timer_id` come out of the first `advance` to `due_at_ms` or later.

        A timer of the same id is replaced. A due time that has passed is due at the next advance.

        Raises:
            OverflowError: the id or the time does not fit into 64 signed bits.

        """
        if due_at_ms.bit_length() > _MAX_BITS or timer_id.bit_length() > _MAX_BITS:
            raise OverflowError("a timer's id and its due time have at most 63 bits and a sign")
        before = self._due_at_ms.get(timer_id)
        if before == due_at_ms:
            return
        self._due_at_ms[timer_id] = due_at_ms
        self._put(timer_id, due_at_ms)
        if len(self._due_at_ms) == 1:
            self._next = due_at_ms
        elif self._next is not None:
            if due_at_ms <= self._next:
                self._next = due_at_ms
            elif before == self._next:
                self._next = None
        if before is not None:
            self._sweep()

    def cancel(self, timer_id: int) -> bool:
        """Forget a timer; False when there is none of this id (any more)."""
        due_at_ms = self._due_at_ms.pop(timer_id, None)
        if due_at_ms is None:
            return False
        if due_at_ms == self._next:
            self._next = None
        self._sweep()
        return True

    def advance(self, now_ms: int) -> list[tuple[int, int]]:
        """Move to `now_ms` and take out what is due.

        Returns exactly the timers with a due time of `now_ms` or before, as (due_at_ms, timer_id)
        in this order; each is gone from the wheel afterwards. A time before that of an earlier
        advance moves nothing and returns nothing.
        """
        if now_ms < self._now_ms:
            return []
        self._now_ms = now_ms
        end = bisect_right(self._keys, now_ms << _SHIFT_BITS | _SHIFT_MASK)
        if end == 0:
            return []
        passed = self._keys[:end]
        del self._keys[:end]
        fired: list[tuple[int, int]] = []
        for key in passed:
            self._empty(key, fired)
        if fired:
            fired.sort()
            self._next = None
            self._shrink()
        return fired

    def next_due_at_ms(self) -> int | None:
        """Return the earliest due time of all timers, exactly, or None when there are none."""
        if self._next is None and self._due_at_ms:
            self._next = self._find_next()
        return self._next

    def _put(self, timer_id: int, due_at_ms: int) -> None:
        distance_ms = due_at_ms - self._now_ms
        if distance_ms <= 0:
            # All that is overdue shares one bucket: after an outage that is most of the timers.
            self._append(self._now_ms << _SHIFT_BITS, timer_id)
            return
        shift = distance_ms.bit_length() - NEAR_BITS
        if shift <= 0:
            self._append(due_at_ms << _SHIFT_BITS, timer_id)
        else:
            self._append((due_at_ms >> shift << shift << _SHIFT_BITS) | shift, timer_id)

    def _append(self, key: int, timer_id: int) -> None:
        bucket = self._buckets.get(key)
        if bucket is None:
            self._buckets[key] = bucket = array("q")
            insort(self._keys, key)
        bucket.append(timer_id)
        self._entries += 1

    def _empty(self, key: int, fired: list[tuple[int, int]]) -> None:
        """Move the timers of a bucket whose start has passed: out, or into narrower buckets."""
        bucket = self._buckets.pop(key)
        self._entries -= len(bucket)
        now_ms = self._now_ms
        due_at_ms_of = self._due_at_ms.get
        end_ms = (key >> _SHIFT_BITS) + (1 << (key & _SHIFT_MASK))
        for timer_id in bucket:
            due_at_ms = due_at_ms_of(timer_id, _GONE)
            if due_at_ms <= now_ms:
                del self._due_at_ms[timer_id]
                fired.append((due_at_ms, timer_id))
            elif due_at_ms < end_ms:
                self._put(timer_id, due_at_ms)

    def _live(self, key: int) -> set[int]:
        """Return the timers of a bucket without the garbage."""
        start_ms = key >> _SHIFT_BITS
        end_ms = start_ms + (1 << (key & _SHIFT_MASK))
        # Only the bucket of the overdue starts in the past: its timers may be due long before.
        low_ms = start_ms if start_ms > self._now_ms else _LOWEST
        due_at_ms_of = self._due_at_ms.get
        return {
            timer_id
            for timer_id in self._buckets[key]
            if low_ms <= due_at_ms_of(timer_id, _GONE) < end_ms
        }

    def _replace(self, index: int, live: set[int]) -> None:
        """Leave nothing but `live` in the bucket at `index` of the keys."""
        key = self._keys[index]
        self._entries += len(live) - len(self._buckets[key])
        if live:
            self._buckets[key] = array("q", live)
        else:
            del self._buckets[key], self._keys[index]

    def _find_next(self) -> int | None:
        """Search the buckets from the earliest on, until none can hold anything earlier."""
        earliest: int | None = None
        index = 0
        while index < len(self._keys):
            key = self._keys[index]
            start_ms, shift = key >> _SHIFT_BITS, key & _SHIFT_MASK
            if earliest is not None and start_ms >= earliest:
                break
            if shift == 0 and start_ms > self._now_ms:
                if self._drop_garbage_at_end(index, start_ms):
                    return start_ms
                continue
            if shift and len(self._buckets[key]) > CROWDED:
                self._split(index)
                index, earliest = 0, None
                continue
            live = self._live(key)
            self._replace(index, live)
            if live:
                soonest = min(map(self._due_at_ms.__getitem__, live))
                earliest = soonest if earliest is None else min(earliest, soonest)
                index += 1
        return earliest

    def _drop_garbage_at_end(self, index: int, start_ms: int) -> bool:
        """Say whether a bucket of one millisecond has a timer; it goes when it has none."""
        bucket = self._buckets[self._keys[index]]
        while bucket:
            if self._due_at_ms.get(bucket[-1]) == start_ms:
                return True
            bucket.pop()
            self._entries -= 1
        self._replace(index, set())
        return False

    def _split(self, index: int) -> None:
        """Spread a crowded bucket over 64 narrower ones, long before it is due.

        Asking for the earliest timer again and again, while it is cancelled each time, must not
        search a hundred thousand timers each time.
        """
        key = self._keys.pop(index)
        bucket = self._buckets.pop(key)
        self._entries -= len(bucket)
        start_ms, wide = key >> _SHIFT_BITS, key & _SHIFT_MASK
        end_ms = start_ms + (1 << wide)
        shift = max(wide - _SPLIT_BITS, 0)
        for timer_id in bucket:
            due_at_ms = self._due_at_ms.get(timer_id, _GONE)
            if start_ms <= due_at_ms < end_ms:
                self._append((due_at_ms >> shift << shift << _SHIFT_BITS) | shift, timer_id)

    def _sweep(self) -> None:
        """Clean one bucket, the next in turn, while garbage dominates."""
        if self._entries <= 2 * len(self._due_at_ms) + GARBAGE_SLACK:
            return
        index = bisect_right(self._keys, self._swept) % len(self._keys)
        self._swept = self._keys[index]
        self._replace(index, self._live(self._swept))
        self._shrink()

    def _shrink(self) -> None:
        """Copy the map once it is far too large: a dict keeps the size of its best days."""
        if self._due_at_ms.__sizeof__() > MAP_BYTES_EACH * (len(self._due_at_ms) + GARBAGE_SLACK):
            self._due_at_ms = dict(self._due_at_ms)
