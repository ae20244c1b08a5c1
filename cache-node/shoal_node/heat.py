"""Which blocks so many read from this node that more nodes should hold them, and how many.

Counted is what the node gives to others, per key, in a table of bounded size. It holds the keys read most: when there
are 2 * KEYS of them, the KEYS-th largest count is taken from all, and who has nothing left goes (Misra and Gries). So a
count is never more than what was read, and less by at most a KEYS-th of all reads that still count; a cold key is never
taken for a hot one. Counts are halved every HALF_LIFE_S; at a steady rate a count is then what was read since the last
halving and in one half-life before, and that is how the rate is told from it.

A key has a level: its holders are its owners, doubled so many times. It rises as soon as `due` sees the rate reach
HOT_READS_PER_S (level 1), twice that (2), four times (3). More holders then mean fewer reads here: a rate that reached
level n, HOT_READS_PER_S * 2^(n-1), and is the same as a whole is spread over 2^n times as many nodes, so here it is
half of HOT_READS_PER_S. It falls only below COOL_READS_PER_S, which is half of that again, one level each half-life;
and the reads that come back here by that are too few for it to rise. Hence nothing flaps, though nobody knows the sum
of all nodes' reads.

    cold -> `due` (offer it to so many) -> `granted` (so many have it) -> `told` to readers -> falls -> cold

What was due and is not granted is due again each half-life. What is told falls with the level at once; the extra copies
are near copies, and go by themselves. A halving costs a few hundred microseconds, a read a tenth of one.
"""

from __future__ import annotations

from collections.abc import Callable

from shoal_core import view

KEYS = 1024
HALF_LIFE_S = 10
HOT_READS_PER_S = 64
"""Of blocks of 4 MiB that is a quarter of a GB/s from one node, a tenth of a fast link."""
COOL_READS_PER_S = HOT_READS_PER_S / 4
LEVEL_MAX = (view.REPLICA_COUNT_MAX - 1).bit_length()


class _Hot:
    """A key whose level is not 0."""

    __slots__ = ("granted", "level", "offered", "replica_count")

    def __init__(self, replica_count: int) -> None:
        self.replica_count = replica_count
        self.level = 0
        self.offered = 0
        """Holders that `due` reported, as far as the key is still so hot."""
        self.granted = 0
        """Holders that have it, as far as the key is still so hot."""

    @property
    def holder_count(self) -> int:
        return _holders(self.replica_count, self.level)

    def settle(self) -> None:
        """The level fell, or what was offered was not granted in time."""
        self.granted = min(self.granted, self.holder_count)
        self.offered = self.granted


class Heat:
    """The reads of one node. Guarded by the node's lock. Times are seconds of one clock that never runs backwards."""

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}
        self._hot: dict[bytes, _Hot] = {}
        self._next_s = float("-inf")
        """When counts are halved next."""

    def __len__(self) -> int:
        """Keys counted."""
        return len(self._counts)

    def read(self, key: bytes, now_s: float) -> None:
        """The block was given to a reader once more."""
        if now_s >= self._next_s:
            self._halve(now_s)
        counts = self._counts
        if key in counts:
            counts[key] += 1
        else:
            counts[key] = 1
            if len(counts) >= 2 * KEYS:
                self._thin()

    def rate(self, key: bytes, now_s: float) -> float:
        """Reads per second lately. Of a key that has just become hot it is less than the rate of the moment."""
        if now_s >= self._next_s:
            self._halve(now_s)
        return self._counts.get(key, 0) / self._span_s(now_s)

    def holders(self, key: bytes, replica_count: int, now_s: float) -> int:
        """How many of the key's owners in line should hold it now."""
        level = _level(self.rate(key, now_s))
        hot = self._hot.get(key)
        return _holders(replica_count, level if hot is None else max(level, hot.level))

    def due(self, now_s: float, replica_count: Callable[[bytes], int] = lambda key: 1) -> list[tuple[bytes, int]]:
        """Keys that are to have more holders than before, and how many; each once for each rise.

        `replica_count` says how many owners a key has; it is asked for hot keys only.
        """
        if now_s >= self._next_s:
            self._halve(now_s)
        span_s = self._span_s(now_s)
        hot_count = HOT_READS_PER_S * span_s
        for key in [key for key, count in self._counts.items() if count >= hot_count]:
            hot = self._hot.get(key)
            if hot is None:
                if len(self._hot) >= KEYS:
                    continue
                hot = self._hot[key] = _Hot(replica_count(key))
            hot.level = max(hot.level, _level(self._counts[key] / span_s))
        found: list[tuple[bytes, int]] = []
        for key, hot in self._hot.items():
            if hot.holder_count > max(hot.offered, hot.replica_count):
                hot.offered = hot.holder_count
                found.append((key, hot.offered))
        return found

    def granted(self, key: bytes, holder_count: int) -> None:
        """So many of its owners in line have it now."""
        hot = self._hot.get(key)
        if hot is not None:
            hot.granted = max(hot.granted, min(holder_count, hot.holder_count))

    def told(self, key: bytes) -> int:
        """How many holders readers may be told of; 0: no more than its owners."""
        hot = self._hot.get(key)
        return hot.granted if hot is not None and hot.granted > hot.replica_count else 0

    def view_changed(self) -> None:
        """Others are in line now: what was granted holds no more. What is hot is due again."""
        self._hot.clear()

    def _span_s(self, now_s: float) -> float:
        """What a count is about: the time since the last halving and one half-life before."""
        return max(HALF_LIFE_S, now_s - self._next_s + 2 * HALF_LIFE_S)

    def _halve(self, now_s: float) -> None:
        """Once for each half-life that has passed; what is hot cools with it."""
        while now_s >= self._next_s and (self._counts or self._hot):
            self._next_s += HALF_LIFE_S
            self._counts = {key: count >> 1 for key, count in self._counts.items() if count > 1}
            for key, hot in list(self._hot.items()):
                if self._counts.get(key, 0) < COOL_READS_PER_S * HALF_LIFE_S:
                    hot.level -= 1
                hot.settle()
                if not hot.level:
                    del self._hot[key]
        if now_s >= self._next_s:
            self._next_s = now_s + HALF_LIFE_S

    def _thin(self) -> None:
        """Down to fewer than KEYS, by as much from every count."""
        less = sorted(self._counts.values(), reverse=True)[KEYS - 1]
        self._counts = {key: count - less for key, count in self._counts.items() if count > less}


def _level(rate: float) -> int:
    level = 0
    while level < LEVEL_MAX and rate >= HOT_READS_PER_S * 2**level:
        level += 1
    return level


def _holders(replica_count: int, level: int) -> int:
    return min(replica_count << level, max(replica_count, view.REPLICA_COUNT_MAX))
