"""Near copies: blocks in this node's memory that other nodes own, the least recently used first out.

A near copy saves a way through the network and nothing else, so it never takes room from what the node owns: all of
them together keep within `bytes_max`, whatever the tier's own order of eviction thinks of them. This module keeps their
order and their sum; dropping is the caller's, who asks `over` after each `add` and drops what it names. One that is
leased cannot go: it counts as used just now, and the others go in its place.

A block may go for another reason (evicted, dropped, quota) without a word to this module, and the index soon gives the
entry's number to another block. So each is remembered with its generation, and one whose generation has changed, or
whose bytes are in memory no more, is stale: it is in no answer. The sum counts it until it is noticed, so it is never
too low; and each `add` and `touch` looks at two more in turn, so that every one is looked at again within twice as many
calls as there are near copies. All operations take the same time, however many there are; 16 bytes an entry of the
index, none on a node that has no near copies. It knows nothing of owners, views or slots.
"""

from __future__ import annotations

from array import array

from shoal_core import index, limits
from shoal_core.queues import NONE, Queue

_GROWTH = 4096
_LOOKS = 2
"""Near copies looked at in each call, beside the one meant: two, so that the turn also gets round while each call puts
one more before it."""
_LOOKS_BEFORE_DROPPING = 16


class NearCopies:
    """The near copies of one node. Not thread-safe: the runtime guards it with its lock, as the index itself."""

    def __init__(self, entries: index.Index, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._index = entries
        self._bytes = 0
        self._previous = array("I")
        self._next = array("I")
        self._generation = array("I")
        self._size = array("I")
        """0: no near copy."""
        self._queue = Queue(self._previous, self._next)
        self._turn = NONE
        """The next to be looked at, towards the young end; NONE: begin at the old end."""

    @property
    def bytes(self) -> int:
        """Of all near copies, and of those that have gone and were not noticed yet."""
        return self._bytes

    @property
    def memory_bytes(self) -> int:
        return 4 * len(self._size) * self._size.itemsize

    def __len__(self) -> int:
        """As `bytes`."""
        return self._queue.length

    def __contains__(self, entry: int) -> bool:
        return entry < len(self._size) and bool(self._size[entry]) and not self._is_stale(entry)

    def add(self, entry: int, size: int) -> None:
        """The entry's block, in memory, is a near copy of `size` bytes, used just now. Once more is once."""
        if size <= 0:
            raise ValueError(f"a near copy of {size} bytes")
        if entry >= len(self._size):
            self._grow(entry + 1)
        if self._size[entry]:
            self._remove(entry)
        self._size[entry] = size
        self._generation[entry] = self._index.generation[entry]
        self._queue.push(entry)
        self._bytes += size
        self._look(_LOOKS)

    def touch(self, entry: int) -> None:
        """It was used. Entries that are no near copies may be touched as well."""
        if entry >= len(self._size) or not self._size[entry]:
            return
        if self._is_stale(entry):
            self._remove(entry)
        else:
            self._move(entry)
        self._look(_LOOKS)

    def discard(self, entry: int) -> bool:
        """It is a near copy no more: this node owns it now, or it is just going. Whether it was one."""
        if entry >= len(self._size) or not self._size[entry]:
            return False
        self._remove(entry)
        return self._generation[entry] == self._index.generation[entry]

    def over(self, coming_bytes: int = 0) -> list[int]:
        """Entries that the caller is to drop now, oldest first, so that `coming_bytes` more keep within the bound.

        They are near copies no more. Where leases are in the way, `bytes` stays above the bound until asked again.
        """
        bytes_max = self.bytes_max - coming_bytes
        if self._bytes <= bytes_max:
            return []
        self._look(_LOOKS_BEFORE_DROPPING)
        found: list[int] = []
        skips, first = limits.VICTIM_SKIPS_MAX, NONE
        while self._bytes > bytes_max and self._queue.length:
            entry = self._queue.tail
            if self._is_stale(entry):
                self._remove(entry)
            elif not self._index.leases[entry]:
                self._remove(entry)
                found.append(entry)
            elif skips and entry != first:
                skips -= 1
                first = entry if first == NONE else first
                self._move(entry)
            else:
                break
        return found

    def check(self) -> None:
        """Assert that order and sum agree; for tests and simulation, it reads everything."""
        entries: list[int] = []
        entry = self._queue.tail
        while entry != NONE:
            entries.append(entry)
            entry = self._next[entry]
        assert len(set(entries)) == len(entries) == self._queue.length
        assert set(entries) == {entry for entry, size in enumerate(self._size) if size}
        assert self._bytes == sum(self._size)
        assert self._turn == NONE or self._size[self._turn], "the turn is at an entry that has left"

    def _is_stale(self, entry: int) -> bool:
        entries = self._index
        return entries.generation[entry] != self._generation[entry] or entries.dram_slot[entry] == index.NO_SLOT

    def _look(self, count: int) -> None:
        for _ in range(count):
            entry = self._turn if self._turn != NONE else self._queue.tail
            if entry == NONE:
                return
            self._turn = self._next[entry]
            if self._is_stale(entry):
                self._remove(entry)

    def _move(self, entry: int) -> None:
        """To the young end."""
        if entry != self._queue.head:
            if self._turn == entry:
                self._turn = self._next[entry]
            self._queue.drop(entry)
            self._queue.push(entry)

    def _remove(self, entry: int) -> None:
        if self._turn == entry:
            self._turn = self._next[entry]
        self._queue.drop(entry)
        self._bytes -= self._size[entry]
        self._size[entry] = 0

    def _grow(self, capacity: int) -> None:
        more = max(capacity - len(self._size), _GROWTH)
        for column in (self._previous, self._next, self._generation, self._size):
            column.frombytes(bytes(more * column.itemsize))
