"""Slot allocation for both tiers: which equal pieces of which slab are used.

A tier's memory or disk is a row of slabs of one size. A slab is unassigned, or assigned to one
(space, class) and cut in equal slots of that class. Class sizes are the slab divided by whole numbers,
at most about a quarter apart, so a block wastes a tenth of its slot on average and a slab almost
nothing at its end.

A slab hands out the slots below its `fresh` mark from a stack of freed indices and then raises the
mark, so nothing is written per slot until the slot is used. A freed index may lie on the stack although
`restore` has marked it used since: `take` drops such an index when it meets it, and so an index is free
exactly when its flag says so. Per slot: one byte of flag, and two or four bytes of stack once freed.

A slab stays with its (space, class) until `release`. When to assign, to empty or to release a slab is
the caller's policy, and so is what the bytes in a slot mean.
"""

import bisect
import heapq
from array import array
from collections.abc import Iterator, Sequence

from shoal_core import limits
from shoal_core.errors import InvariantBroken

CLASS_RATIO = 1.25
"""Neighbouring classes differ by about this where whole divisions of the slab allow it: mean waste is 10 %."""

_INDEX_MASK = limits.SLAB_SLOTS_MAX - 1
_INDEX_BITS = _INDEX_MASK.bit_length()
_MANY = 64
"""With this many slots to a slab the rest at its end is below 2 %, so the size need not divide it."""


def slot_classes(
    slab_bytes: int, block_bytes_max: int, slot_bytes_min: int, alignment: int, alignment_small: int | None = None
) -> tuple[int, ...]:
    """Ascending slot sizes for blocks of 1 to `block_bytes_max` bytes.

    Sizes are multiples of `alignment`, those under a page (64 KiB) of `alignment_small`. With fewer than
    four of the largest blocks to a slab the largest classes lie further apart: a half follows a whole.
    """
    small = alignment if alignment_small is None else alignment_small
    if not 0 < block_bytes_max <= slab_bytes:
        raise ValueError(f"a slab of {slab_bytes} bytes cannot hold a block of {block_bytes_max}")
    size = _align(block_bytes_max, alignment if block_bytes_max >= limits.PAGE_BYTES else small)
    floor = _align(max(slot_bytes_min, slab_bytes // limits.SLAB_SLOTS_MAX, 1), small)
    if slab_bytes // max(size, floor) < 1:
        raise ValueError(f"a slab of {slab_bytes} bytes is smaller than one aligned slot")
    sizes = [max(size, floor)]
    while sizes[-1] > floor:
        last = sizes[-1]
        if last * _MANY <= slab_bytes:
            size = int(last / CLASS_RATIO)
            size = _align(size, alignment if size >= limits.PAGE_BYTES else small)
        else:
            size = slab_bytes // max(int(slab_bytes * CLASS_RATIO / last), slab_bytes // last + 1)
            unit = alignment if size >= limits.PAGE_BYTES else small
            size = size // unit * unit
        sizes.append(max(min(size, last - small), floor))
    return tuple(reversed(sizes))


def class_of(classes: Sequence[int], size: int) -> int:
    """The smallest class that holds `size` bytes."""
    index = bisect.bisect_left(classes, size)
    if index == len(classes):
        raise ValueError(f"{size} bytes do not fit the largest slot, {classes[-1]} bytes")
    return index


def _align(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class _Space:
    __slots__ = ("pools", "slab_count", "used_bytes")

    def __init__(self) -> None:
        self.pools: dict[int, _Pool] = {}
        self.slab_count = 0
        self.used_bytes = 0


class _Pool:
    """The slabs of one (space, class) that have a free slot, and those without any used slot."""

    __slots__ = ("class_index", "current", "empty", "name", "partial", "slot_bytes", "slot_count", "space")

    def __init__(self, space: _Space, name: int, class_index: int, slot_bytes: int, slot_count: int) -> None:
        self.space = space
        self.name = name
        self.class_index = class_index
        self.slot_bytes = slot_bytes
        self.slot_count = slot_count
        # Dicts as sets from which any slab leaves in O(1). Slots are taken from `current`, one of `partial`,
        # until it is full: looking up a dict's last key costs a scan over the keys deleted behind it.
        self.partial: dict[int, None] = {}
        self.current: int | None = None
        self.empty: dict[int, None] = {}


class Slabs:
    """All slabs of one tier. A space is a number of the caller's."""

    def __init__(self, slab_bytes: int, classes: Sequence[int]) -> None:
        if list(classes) != sorted(set(classes)) or not classes or not 0 < classes[0] <= classes[-1] <= slab_bytes:
            raise ValueError("classes are ascending slot sizes of at most a slab")
        if slab_bytes // classes[0] > limits.SLAB_SLOTS_MAX:
            raise ValueError(f"slots of {classes[0]} bytes are too many for a slab of {slab_bytes}")
        self.slab_bytes = slab_bytes
        self.classes = tuple(classes)
        self.used_bytes = 0
        """Bytes of all used slots, whole slots counted."""
        self._pools: list[_Pool | None] = []
        self._used = array("I")
        self._fresh = array("I")
        self._flags: list[bytearray] = []
        self._freed: list[array[int]] = []
        self._unassigned: set[int] = set()
        self._lowest: list[int] = []
        """A heap of the unassigned, and of some that were assigned by name since."""
        self._spaces: dict[int, _Space] = {}

    def class_of(self, size: int) -> int:
        return class_of(self.classes, size)

    # Slabs

    def add_slab(self) -> int:
        """A new slab arrives, unassigned; numbers count up from 0."""
        slab = len(self._pools)
        self._pools.append(None)
        self._used.append(0)
        self._fresh.append(0)
        self._flags.append(bytearray())
        self._freed.append(array("H"))
        self._put_unassigned(slab)
        return slab

    @property
    def slab_count(self) -> int:
        return len(self._pools)

    @property
    def unassigned_count(self) -> int:
        return len(self._unassigned)

    def assign(self, space: int, class_index: int, slab: int | None = None) -> int | None:
        """Gives an unassigned slab (or the one named, at recovery) to (space, class); None if there is none."""
        if slab is None:
            if not self._unassigned:
                return None
            # The lowest first: a disk tier that shrinks loses its highest slabs.
            slab = heapq.heappop(self._lowest)
            while slab not in self._unassigned:
                slab = heapq.heappop(self._lowest)
            self._unassigned.remove(slab)
        elif slab in self._unassigned:
            self._unassigned.remove(slab)
        else:
            raise InvariantBroken(f"slab {slab} is not one of the unassigned")
        pool = self._pool(space, class_index)
        self._pools[slab] = pool
        self._fresh[slab] = 0
        self._flags[slab] = bytearray(pool.slot_count)
        self._freed[slab] = array("H" if pool.slot_count <= 0x10000 else "I")
        pool.partial[slab] = None
        pool.empty[slab] = None
        pool.space.slab_count += 1
        return slab

    def release(self, slab: int) -> None:
        """Makes an empty slab unassigned again."""
        pool = self._assigned(slab)
        if self._used[slab]:
            raise InvariantBroken(f"slab {slab} has {self._used[slab]} used slots")
        del pool.partial[slab], pool.empty[slab]
        if pool.current == slab:
            pool.current = None
        self._pools[slab] = None
        self._flags[slab] = bytearray()
        self._freed[slab] = array("H")
        self._put_unassigned(slab)
        space = pool.space
        space.slab_count -= 1
        if not space.slab_count:
            del self._spaces[pool.name]

    def assignment(self, slab: int) -> tuple[int, int] | None:
        """(space, class) of a slab, None while it is unassigned."""
        pool = self._pools[slab]
        return None if pool is None else (pool.name, pool.class_index)

    def is_empty(self, slab: int) -> bool:
        return not self._used[slab]

    def used_count(self, slab: int) -> int:
        """Used slots of a slab."""
        return self._used[slab]

    def empty_slabs(self, space: int) -> list[int]:
        """Slabs of a space that `release` would take."""
        owner = self._spaces.get(space)
        return [] if owner is None else [slab for pool in owner.pools.values() for slab in pool.empty]

    def slabs_of(self, space: int, class_index: int | None = None) -> Iterator[int]:
        """All slabs of a space, or of one of its classes. Reads every slab's row: for seldom decisions."""
        for slab, pool in enumerate(self._pools):
            if pool is not None and pool.name == space and class_index in (None, pool.class_index):
                yield slab

    def space_slab_count(self, space: int) -> int:
        owner = self._spaces.get(space)
        return 0 if owner is None else owner.slab_count

    def space_used_bytes(self, space: int) -> int:
        """Bytes of the used slots of a space, whole slots counted."""
        owner = self._spaces.get(space)
        return 0 if owner is None else owner.used_bytes

    def free_count(self, space: int, class_index: int, count_max: int) -> int:
        """Free slots of the slabs of (space, class), counted up to `count_max`."""
        owner = self._spaces.get(space)
        pool = None if owner is None else owner.pools.get(class_index)
        count = 0
        for slab in pool.partial if pool is not None else ():
            count += pool.slot_count - self._used[slab] if pool is not None else 0
            if count >= count_max:
                return count_max
        return count

    # Slots

    def take(self, space: int, class_index: int) -> int | None:
        """A free slot of the slabs assigned to (space, class); None when another slab must be assigned first."""
        owner = self._spaces.get(space)
        pool = None if owner is None else owner.pools.get(class_index)
        if pool is None or not pool.partial:
            return None
        slab = pool.current
        if slab is None:
            slab = pool.current = pool.partial.popitem()[0]
            pool.partial[slab] = None
        flags = self._flags[slab]
        freed = self._freed[slab]
        while freed:
            index = freed.pop()
            if not flags[index]:
                break
        else:
            index = self._fresh[slab]
            self._fresh[slab] = index + 1
        self._mark_used(pool, slab, index)
        return slab << _INDEX_BITS | index

    def restore(self, slot: int) -> None:
        """Marks a given free slot as used, for recovery; ValueError when the slot cannot be: a damaged table."""
        slab, index = slot >> _INDEX_BITS, slot & _INDEX_MASK
        pool = self._pools[slab] if slab < len(self._pools) else None
        if pool is None:
            raise ValueError(f"slot {slot} is in a slab that is not assigned")
        if index >= pool.slot_count or self._flags[slab][index]:
            raise ValueError(f"slot {slot} is used already or beyond its slab")
        fresh = self._fresh[slab]
        if index >= fresh:
            self._freed[slab].extend(range(fresh, index))
            self._fresh[slab] = index + 1
        self._mark_used(pool, slab, index)

    def free(self, slot: int) -> None:
        slab, index = slot >> _INDEX_BITS, slot & _INDEX_MASK
        pool = self._assigned(slab)
        flags = self._flags[slab]
        if index >= pool.slot_count or not flags[index]:
            raise InvariantBroken(f"slot {slot} is not used")
        flags[index] = 0
        used = self._used[slab] - 1
        self._used[slab] = used
        if used + 1 == pool.slot_count:
            pool.partial[slab] = None
        if used:
            self._freed[slab].append(index)
        else:
            pool.empty[slab] = None
            self._fresh[slab] = 0
            del self._freed[slab][:]
        self.used_bytes -= pool.slot_bytes
        pool.space.used_bytes -= pool.slot_bytes

    def slot_bytes(self, slot: int) -> int:
        return self._assigned(slot >> _INDEX_BITS).slot_bytes

    def locate(self, slot: int) -> tuple[int, int]:
        """(slab, byte offset within the slab)"""
        slab = slot >> _INDEX_BITS
        return slab, (slot & _INDEX_MASK) * self._assigned(slab).slot_bytes

    def used_slots(self, slab: int) -> Iterator[int]:
        """The used slots of a slab, ascending; each may be freed while iterating."""
        flags = self._flags[slab]
        index = flags.find(1)
        while index >= 0:
            yield slab << _INDEX_BITS | index
            index = flags.find(1, index + 1)

    def _mark_used(self, pool: _Pool, slab: int, index: int) -> None:
        self._flags[slab][index] = 1
        used = self._used[slab] + 1
        self._used[slab] = used
        if used == 1:
            del pool.empty[slab]
        if used == pool.slot_count:
            del pool.partial[slab]
            if pool.current == slab:
                pool.current = None
        self.used_bytes += pool.slot_bytes
        pool.space.used_bytes += pool.slot_bytes

    def _put_unassigned(self, slab: int) -> None:
        self._unassigned.add(slab)
        heapq.heappush(self._lowest, slab)

    def _assigned(self, slab: int) -> _Pool:
        pool = self._pools[slab] if slab < len(self._pools) else None
        if pool is None:
            raise InvariantBroken(f"slab {slab} is not assigned")
        return pool

    def _pool(self, space: int, class_index: int) -> _Pool:
        owner = self._spaces.get(space)
        if owner is None:
            owner = self._spaces[space] = _Space()
        pool = owner.pools.get(class_index)
        if pool is None:
            size = self.classes[class_index]
            pool = owner.pools[class_index] = _Pool(owner, space, class_index, size, self.slab_bytes // size)
        return pool
