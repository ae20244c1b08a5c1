"""'epoch': holds a stable subset of a data set that is read over and over and does not fit.

A cyclic scan gives a recency order no hits at all: each block goes just before it is read again. So nineteen
twentieths of the entries are held, and newcomers beyond them pass through a transit queue, first in, first out: of a
data set twice the cache, nearly half is served from the cache in each epoch, in whatever order it is shuffled.

What is held and no longer read (the version before) must leave all the same. With every fourth block that is evicted
one held entry is looked at. Touched since the last look, it stays; after two looks in vain the third sends it to
transit, and a newcomer takes its place. A held block thus has the time of 8 to 12 cache-fulls of misses to be read
again, which keeps the subset whole for data sets up to eight times the cache (five, if shuffled). Beyond that the
subset turns over within an epoch, and what a stable one could give is below an eighth anyway.
"""

from collections.abc import Callable

from shoal_core import limits
from shoal_core.queues import COUNT, SECOND, Links, Queue, Timed


class Scan(Timed):
    """The policy described above."""

    __slots__ = ("_held", "_look", "_now_s", "_transit")

    LOOKS = 2
    MISSES_PER_LOOK = 4

    def __init__(self, links: Links, ttl_s: int | None = None) -> None:
        super().__init__(links, ttl_s)
        self._held = Queue(links.previous, links.next)
        self._transit = Queue(links.previous, links.next)
        self._look = 0
        self._now_s = 0

    def __len__(self) -> int:
        return self._held.length + self._transit.length

    def insert(self, entry: int, key_hash: int, now_s: int) -> None:
        self.enqueue(entry, key_hash, now_s)
        self.birth(entry, now_s)

    def enqueue(self, entry: int, key_hash: int, now_s: int) -> None:
        """`insert` without the TTL's part."""
        self._now_s = self._queued_s[entry] = now_s
        if self._held.length < self._transit.length * 19 + 1:
            self._mark[entry] = SECOND | self.LOOKS
            self._held.push(entry)
        else:
            self._mark[entry] = 0
            self._transit.push(entry)

    def touch(self, entry: int, count: int = 1) -> None:
        if self._mark[entry] & SECOND:
            self._mark[entry] = SECOND | self.LOOKS

    def remove(self, entry: int) -> None:
        self.dequeue(entry)
        self.forget_birth(entry)

    def dequeue(self, entry: int) -> None:
        """`remove` without the TTL's part."""
        (self._held if self._mark[entry] & SECOND else self._transit).drop(entry)

    def evict(self, entry: int, key_hash: int) -> None:
        self.remove(entry)
        self._look += 1
        if self._look >= self.MISSES_PER_LOOK and self._held.length:
            self._look = 0
            self._look_at_held()

    def victim(self, skip: Callable[[int], bool]) -> int | None:
        transit, held = self._transit, self._held
        # At most half of the skips for transit, so that one in use as a whole does not hide the rest.
        for _ in range(min(limits.VICTIM_SKIPS_MAX // 2, transit.length)):
            entry = transit.tail
            if not skip(entry):
                return entry
            transit.drop(entry)
            transit.push(entry)
            self._queued_s[entry] = self._now_s
        # Of those held the newcomers go, so that the rest stays a stable subset.
        for _ in range(min(limits.VICTIM_SKIPS_MAX // 2, held.length)):
            entry = held.head
            if not skip(entry):
                return entry
            held.drop(entry)
            held.push_last(entry)
        return None

    def keeps(self, entry: int) -> bool:
        return bool(self._mark[entry] & SECOND)

    def oldest_s(self) -> int | None:
        if not len(self):
            return None
        return self._queued_s[self._transit.tail if self._transit.length else self._held.head]

    def _look_at_held(self) -> None:
        held, mark = self._held, self._mark
        entry = held.tail
        held.drop(entry)
        if mark[entry] & COUNT:
            mark[entry] -= 1
            held.push(entry)
        else:
            mark[entry] = 0
            self._queued_s[entry] = self._now_s
            self._transit.push(entry)
