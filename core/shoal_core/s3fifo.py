"""S3-FIFO: three queues, small (a tenth), main, and the keys of those that small dropped.

Juncheng Yang, Yazhuo Zhang, Ziyue Qiu, Yao Yue, K. V. Rashmi: "FIFO queues are all you need for cache eviction", SOSP
2023. A newcomer waits in small, and goes on to main only if it is touched more than once there; one that was dropped
shortly before (a ghost) goes to main at once. Main gives each entry as many more rounds as it was touched, up to three.
A touch moves nothing, so hits cost next to nothing, and one pass over cold data cannot push out what is read often.
Since the number of slots of a class changes, a tenth is taken of the entries that are present.
"""

from collections.abc import Callable

from shoal_core import limits
from shoal_core.ghosts import Ghosts
from shoal_core.queues import COUNT, SECOND, Links, Queue, Timed

PASSES_MAX = 256
"""Entries that one `victim` may give another round because they were touched; then the next that can go, goes.
A decision stays near 100 us even when every entry of a full tier was touched."""


class S3Fifo(Timed):
    """The policy described above."""

    __slots__ = ("_ghosts", "_main", "_now_s", "_small")

    def __init__(self, links: Links, ttl_s: int | None = None) -> None:
        super().__init__(links, ttl_s)
        self._small = Queue(links.previous, links.next)
        self._main = Queue(links.previous, links.next)
        self._ghosts: Ghosts | None = None
        self._now_s = 0

    def __len__(self) -> int:
        return self._small.length + self._main.length

    def insert(self, entry: int, key_hash: int, now_s: int) -> None:
        self.enqueue(entry, key_hash, now_s)
        self.birth(entry, now_s)

    def enqueue(self, entry: int, key_hash: int, now_s: int) -> None:
        """`insert` without the TTL's part."""
        self._now_s = self._queued_s[entry] = now_s
        if self._ghosts is not None and self._ghosts.take(key_hash, len(self)):
            self._mark[entry] = SECOND
            self._main.push(entry)
        else:
            self._mark[entry] = 0
            self._small.push(entry)

    def touch(self, entry: int, count: int = 1) -> None:
        mark = self._mark[entry]
        if mark & COUNT != COUNT:
            self._mark[entry] = mark & SECOND | min((mark & COUNT) + count, COUNT)

    def remove(self, entry: int) -> None:
        self.dequeue(entry)
        self.forget_birth(entry)

    def dequeue(self, entry: int) -> None:
        """`remove` without the TTL's part."""
        (self._main if self._mark[entry] & SECOND else self._small).drop(entry)

    def evict(self, entry: int, key_hash: int) -> None:
        if not self._mark[entry] & SECOND:
            if self._ghosts is None or self._ghosts.capacity < len(self):
                self._ghosts = Ghosts(len(self))
            self._ghosts.add(key_hash)
        self.remove(entry)

    def victim(self, skip: Callable[[int], bool]) -> int | None:
        mark, small, main = self._mark, self._small, self._main
        passes = PASSES_MAX
        first = self._source()
        # Half of the skips for each queue, so that one in use as a whole does not hide the other. Entries that may
        # go take up to four rounds to come out of main; those in use are met again in each.
        for queue in (first, main if first is small else small):
            skips = min(limits.VICTIM_SKIPS_MAX // 2, (COUNT + 1) * queue.length)
            while skips and queue.length:
                entry = queue.tail
                count = mark[entry] & COUNT
                if passes and queue is small and count > 1:
                    passes -= 1
                    mark[entry] = SECOND
                    self._move(entry, small, main)
                elif passes and queue is main and count:
                    passes -= 1
                    mark[entry] -= 1
                    self._move(entry, main, main)
                elif skip(entry):
                    skips -= 1
                    self._move(entry, queue, queue)
                else:
                    return entry
        return None

    def keeps(self, entry: int) -> bool:
        mark = self._mark[entry]
        return bool(mark & SECOND) or mark & COUNT > 1

    def oldest_s(self) -> int | None:
        return self._queued_s[self._source().tail] if len(self) else None

    def _source(self) -> Queue:
        """The queue to evict from: small while it has its tenth."""
        small, main = self._small, self._main
        return small if small.length * 9 >= main.length and small.length else main

    def _move(self, entry: int, source: Queue, target: Queue) -> None:
        source.drop(entry)
        target.push(entry)
        self._queued_s[entry] = self._now_s
