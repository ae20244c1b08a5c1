"""The index: which blocks a node knows, in flat arrays.

An entry is a position in parallel arrays; a hash table of positions (open addressing, linear probing) finds it by the
16-byte key. A dict of objects would cost about 430 bytes a block; this costs ENTRY_BYTES plus at most 8 in the table.
Keys are digests already, so their low word is the hash. Removal shifts the following run back (no tombstones), so a
table that has turned over a thousand times probes no longer than a fresh one.

The index owns entries and their generation: an entry that is recycled has another generation, which is how a late
release or a stale grant is told from a current one. Forgetting has two steps, because a block may be dropped while it
is leased: `unlink` (nobody finds it) and, when the last lease ends, `recycle`. It knows nothing of what slots mean, of
time or policies.
"""

from __future__ import annotations

from array import array

from shoal_core.errors import InvariantBroken

NONE = 0xFFFFFFFF
"""No entry."""

NO_SLOT = 0xFFFFFFFFFFFFFFFF

_GROWTH = 4096
"""Entries the arrays grow by, at least."""


class Index:
    """Flat arrays by entry. Callers read and write the columns directly; keys only through add and remove."""

    def __init__(self) -> None:
        self.key_low = array("Q")
        self.key_high = array("Q")
        self.space = array("H")
        self.size = array("I")
        self.generation = array("I")
        self.leases = array("I")
        """Clients' leases and transfers in progress; the block's DRAM slot is not reused while it is not 0."""
        self.state = array("B")
        self.dram_slot = array("Q")
        self.disk_slot = array("Q")
        self.checksum = array("Q")
        self._free: array[int] = array("I")
        self._table = array("I", [NONE]) * 1024
        self._mask = 1023
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def capacity(self) -> int:
        """Entries the arrays have room for."""
        return len(self.size)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the arrays and the table."""
        columns = (
            self.key_low, self.key_high, self.space, self.size, self.generation, self.leases, self.state,
            self.dram_slot, self.disk_slot, self.checksum, self._free, self._table,
        )  # fmt: skip
        return sum(len(column) * column.itemsize for column in columns)

    def find(self, key: bytes) -> int:
        """The entry of `key` (16 bytes), or NONE."""
        low = int.from_bytes(key[:8], "little")
        high = int.from_bytes(key[8:], "little")
        table, mask, lows = self._table, self._mask, self.key_low
        position = low & mask
        while (entry := table[position]) != NONE:
            if lows[entry] == low and self.key_high[entry] == high:
                return entry
            position = (position + 1) & mask
        return NONE

    def add(self, key: bytes, space: int, size: int) -> int:
        """A new entry for a key that is not in the index."""
        if (self._count + 1) * 3 > len(self._table) * 2:
            self._rehash(len(self._table) * 2)
        if not self._free:
            self._grow()
        entry = self._free.pop()
        self.key_low[entry] = low = int.from_bytes(key[:8], "little")
        self.key_high[entry] = int.from_bytes(key[8:], "little")
        self.space[entry] = space
        self.size[entry] = size
        self.leases[entry] = 0
        self.state[entry] = 0
        self.dram_slot[entry] = self.disk_slot[entry] = NO_SLOT
        self.checksum[entry] = 0
        self._place(entry, low)
        self._count += 1
        return entry

    def unlink(self, entry: int) -> None:
        """Take the entry out of the table: no lookup finds it any more. Its columns stay until `recycle`."""
        table, mask, lows = self._table, self._mask, self.key_low
        position = lows[entry] & mask
        while table[position] != entry:
            if table[position] == NONE:
                raise InvariantBroken(f"index entry {entry} unlinked twice")
            position = (position + 1) & mask
        # Shift the run back: each later member may move into the hole unless its home lies behind the hole.
        following = (position + 1) & mask
        while (moved := table[following]) != NONE:
            home = lows[moved] & mask
            if (following - home) & mask >= (following - position) & mask:
                table[position] = moved
                position = following
            following = (following + 1) & mask
        table[position] = NONE
        self._count -= 1

    def recycle(self, entry: int) -> None:
        """The number of an unlinked entry may be used again, under the next generation."""
        self.generation[entry] = (self.generation[entry] + 1) & 0xFFFFFFFF
        self._free.append(entry)

    def key(self, entry: int) -> bytes:
        """The 16-byte key of an entry in use."""
        return self.key_low[entry].to_bytes(8, "little") + self.key_high[entry].to_bytes(8, "little")

    def linked(self) -> list[int]:
        """All entries that a lookup can find; reads the whole table."""
        return [entry for entry in self._table if entry != NONE]

    def _grow(self) -> None:
        start = len(self.size)
        more = max(_GROWTH, start // 8)
        if start + more >= NONE:
            raise InvariantBroken("index is full")
        for column in (
            self.key_low, self.key_high, self.space, self.size, self.generation, self.leases, self.state, self.checksum,
        ):  # fmt: skip
            column.frombytes(bytes(more * column.itemsize))
        for column in (self.dram_slot, self.disk_slot):
            column.frombytes(NO_SLOT.to_bytes(8, "little") * more)
        self._free.extend(range(start + more - 1, start - 1, -1))

    def _place(self, entry: int, low: int) -> None:
        table, mask = self._table, self._mask
        position = low & mask
        while table[position] != NONE:
            position = (position + 1) & mask
        table[position] = entry

    def _rehash(self, size: int) -> None:
        # About 0.25 us an entry, once per doubling.
        linked = [entry for entry in self._table if entry != NONE]
        self._table = array("I", [NONE]) * size
        self._mask = size - 1
        for entry in linked:
            self._place(entry, self.key_low[entry])
