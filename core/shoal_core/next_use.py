"""Eviction by next use, around any other policy: for readers who say what they will read, as a loader does.

A reader's plan says at which position of its stream an entry is used next. What is known so leaves the order of the
policy inside and lies in buckets by next use. While a stream lives, what goes is, in this order: entries whose use has
passed by and was not followed by another; those of which nothing is known, in the inner policy's order; known ones,
farthest next use first, which is the best that any order can do (Belady 1966). When no stream lives, what was known for
it goes before all else, farthest first; if somebody still reads it, a touch gives it back to the inner policy.

Positions of all streams of a space are put on one `Clock`, which its owner moves. Buckets are exact until there are
more than BUCKETS_MAX of them; then neighbours are joined, so a pair costs a bounded amount and an entry no byte: its
next use lies where the inner policies keep its time of queueing. The TTL's order stays the inner policy's.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator
from typing import Protocol

from shoal_core import limits
from shoal_core.queues import KNOWN, Links, Queue

BUCKETS_MAX = 512
"""A victim is then off by a 512th of the uses that are known, at most. An exact order would cost a heap."""

USE_MAX = 0xFFFFFFFF
"""Uses are kept as 32 bits; later ones are as far."""

CLOCK_MAX = 1 << 31
"""A clock that is past this is to start over: days of reading at the rate of a whole node."""


class Clock:
    """Where the streams of one space stand, in items. Written by its owner, read by the orders of that space."""

    __slots__ = ("items_per_s", "live", "now", "passed", "told_s", "window_end")

    def __init__(self) -> None:
        self.live = False
        """Whether anybody who publishes plans is there."""
        self.now = 0
        self.passed = 0
        """A use before this has passed by."""
        self.window_end = 0
        """What is used before this is being read, or is about to be."""
        self.told_s = 0
        """When the last plan came."""
        self.items_per_s = 0.0
        """How fast the streams went so far; 0 while it is not known."""


class Base(Protocol):
    """What the order inside must offer: a policy whose queues can be left and joined without touching the TTL's."""

    def __len__(self) -> int: ...
    def insert(self, entry: int, key_hash: int, now_s: int) -> None: ...
    def enqueue(self, entry: int, key_hash: int, now_s: int) -> None: ...
    def touch(self, entry: int, count: int = 1) -> None: ...
    def remove(self, entry: int) -> None: ...
    def dequeue(self, entry: int) -> None: ...
    def forget_birth(self, entry: int) -> None: ...
    def evict(self, entry: int, key_hash: int) -> None: ...
    def victim(self, skip: Callable[[int], bool]) -> int | None: ...
    def keeps(self, entry: int) -> bool: ...
    def oldest_s(self) -> int | None: ...
    def sort_births(self) -> None: ...
    def expired(self, now_s: int, count_max: int = 256) -> list[int]: ...


class NextUse:
    """The order described above. It takes the entries of `base` over as they are."""

    __slots__ = (
        "_base",
        "_base_in_use",
        "_buckets",
        "_clock",
        "_cursor",
        "_known",
        "_links",
        "_mark",
        "_numbers",
        "_shift",
        "_use",
    )

    def __init__(self, base: Base, links: Links, clock: Clock) -> None:
        self._base = base
        self._links = links
        self._mark = links.mark
        self._use = links.queued_s
        self._clock = clock
        self._buckets: dict[int, Queue] = {}
        """By use >> _shift; none is empty."""
        self._numbers: list[int] = []
        """Of the buckets, ascending."""
        self._shift = 0
        self._known = 0
        self._base_in_use = False
        """The last search found nothing in the inner policy."""
        self._cursor = USE_MAX + 1
        """A search that found nothing ended at this bucket; the next goes on below it."""

    def __len__(self) -> int:
        return len(self._base) + self._known

    # What is told

    def plan(self, entry: int, use: int) -> None:
        """The entry is used at `use`, a position on the clock. An earlier use that is still ahead stays the next."""
        if self._mark[entry] & KNOWN:
            if self._clock.live and self._clock.now <= self._use[entry] <= use:
                return
            self._drop(entry)
        else:
            self._base.dequeue(entry)
            self._mark[entry] = KNOWN
        use = min(max(use, 0), USE_MAX)
        self._use[entry] = use
        number = use >> self._shift
        if number not in self._buckets:
            self._buckets[number] = Queue(self._links.previous, self._links.next)
            bisect.insort(self._numbers, number)
        self._buckets[number].push(entry)
        self._known += 1
        if len(self._numbers) > BUCKETS_MAX:
            self._coarsen()

    def next_use(self, entry: int) -> int | None:
        """When the entry is used next, if that is known and still ahead."""
        if not self._mark[entry] & KNOWN or not self._clock.live or self._use[entry] < self._clock.passed:
            return None
        return self._use[entry]

    def gives_way(self, use: int, count_max: int) -> int:
        """How many entries would go before one that is used at `use`; counted up to `count_max`."""
        if not self._clock.live:
            return min(len(self), count_max)
        count, numbers = len(self._base), self._numbers
        passed = self._passed_count()
        later = bisect.bisect_right(numbers, use >> self._shift, lo=passed)
        for place in itertools.chain(range(len(numbers) - 1, later - 1, -1), range(passed)):
            if count >= count_max:
                break
            count += self._buckets[numbers[place]].length
        return min(count, count_max)

    def forget_uses(self) -> None:
        """All entries go back to the inner policy, as newcomers: the clock starts over."""
        while self._numbers:
            entry = self._buckets[self._numbers[0]].tail
            self._give_up(entry)

    # What every policy answers

    def insert(self, entry: int, key_hash: int, now_s: int) -> None:
        self._base.insert(entry, key_hash, now_s)

    def touch(self, entry: int, count: int = 1) -> None:
        if self._mark[entry] & KNOWN:
            if self._clock.live and self._use[entry] >= self._clock.passed:
                return
            self._give_up(entry)
        self._base.touch(entry, count)

    def remove(self, entry: int) -> None:
        if self._mark[entry] & KNOWN:
            self._drop(entry)
            self._mark[entry] = 0
            self._base.forget_birth(entry)
        else:
            self._base.remove(entry)

    def evict(self, entry: int, key_hash: int) -> None:
        if self._mark[entry] & KNOWN:
            self.remove(entry)
        else:
            self._base.evict(entry, key_hash)

    def victim(self, skip: Callable[[int], bool]) -> int | None:
        if not self._clock.live:
            found = self._farthest(0, skip)
            return found if found is not None else self._base.victim(skip)
        passed = self._passed_count()
        found = self._search(iter(self._numbers[:passed]), skip)
        if found is None:
            found = self._base.victim(skip)
        if found is None and len(self._base) and not self._base_in_use:
            # Perhaps not all of them are in use: asked again, the inner policy goes on with others.
            self._base_in_use = True
            return None
        self._base_in_use = False
        return found if found is not None else self._farthest(passed, skip)

    def keeps(self, entry: int) -> bool:
        if not self._mark[entry] & KNOWN:
            return self._base.keeps(entry)
        # At its present use nothing is known of the one after it; and of what is known the last quarter is next to go.
        use, clock = self._use[entry], self._clock
        last = self._numbers[len(self._numbers) * 3 // 4]
        return clock.live and use >= clock.window_end and use >> self._shift < last

    def oldest_s(self) -> int | None:
        oldest = self._base.oldest_s()
        if not self._known:
            return oldest
        # By recency, what was not used for a time is thought to stay unused for as long: here that time is known.
        clock = self._clock
        ahead = max(0, (self._numbers[-1] << self._shift) - clock.now)
        known_s = clock.told_s - int(ahead / clock.items_per_s) if clock.items_per_s else clock.told_s
        return known_s if oldest is None else min(oldest, known_s)

    def sort_births(self) -> None:
        self._base.sort_births()

    def expired(self, now_s: int, count_max: int = 256) -> list[int]:
        return self._base.expired(now_s, count_max)

    # Buckets

    def _drop(self, entry: int) -> None:
        number = self._use[entry] >> self._shift
        queue = self._buckets[number]
        queue.drop(entry)
        self._known -= 1
        if not queue.length:
            del self._buckets[number]
            del self._numbers[bisect.bisect_left(self._numbers, number)]
            if not self._numbers:
                self._shift = 0

    def _give_up(self, entry: int) -> None:
        """Nothing is known of it any more."""
        self._drop(entry)
        self._base.enqueue(entry, 0, self._clock.told_s)

    def _coarsen(self) -> None:
        joined: dict[int, Queue] = {}
        for number in self._numbers:
            if number >> 1 in joined:
                joined[number >> 1].append(self._buckets[number])
            else:
                joined[number >> 1] = self._buckets[number]
        self._buckets = joined
        self._numbers = list(joined)
        self._shift += 1
        self._cursor = USE_MAX + 1

    def _passed_count(self) -> int:
        """How many buckets hold only uses that have passed by."""
        return bisect.bisect_left(self._numbers, self._clock.passed >> self._shift)

    def _farthest(self, first: int, skip: Callable[[int], bool]) -> int | None:
        """From the last bucket down to the one at `first`; after a search in vain, from where that ended."""
        numbers = self._numbers
        end = bisect.bisect_left(numbers, self._cursor)
        if end <= first:
            end = len(numbers)
        self._cursor = USE_MAX + 1
        return self._search(reversed(numbers[first:end]), skip)

    def _search(self, numbers: Iterator[int], skip: Callable[[int], bool]) -> int | None:
        looks = limits.VICTIM_SKIPS_MAX // 2
        for number in numbers:
            queue = self._buckets[number]
            for _ in range(min(looks, queue.length)):
                entry = queue.tail
                if not skip(entry):
                    return entry
                queue.drop(entry)
                queue.push(entry)
                looks -= 1
            if not looks:
                self._cursor = number
                break
        return None
