"""The DRAM budget and what it was spent on: segments, index, page digests. Pure.

Segments double from limits.SEGMENT_BYTES_FIRST to SEGMENT_BYTES_MAX as the cache fills, so a small cache stays small;
the index is charged as slabs are assigned, and segments take only what it leaves. A block's digest table lies beside
its slot's slab, in the node's own memory: readers that map a segment get no say in what its bytes should be.
"""

from __future__ import annotations

import msgspec

from shoal_core import config, digests, limits
from shoal_core.errors import InvariantBroken
from shoal_core.slabs import Slabs

_SLAB_SHIFT = limits.SLAB_SLOTS_MAX.bit_length() - 1
_SLOT_MASK = limits.SLAB_SLOTS_MAX - 1


class Segment(msgspec.Struct, frozen=True):
    """Consecutive slabs in one piece of memory."""

    first_slab: int
    slab_count: int


class DramLayout:
    """Where slots lie and what their pages should hash to, within one budget."""

    def __init__(self, budget_bytes: int, slab_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.slab_bytes = slab_bytes
        self.segments: list[Segment] = []
        self.segment_bytes = 0
        """Of all segments."""
        self.index_bytes = 0
        """Charged for the index: INDEX_ENTRY_BYTES for each slot that a block may lie in, and digests beyond it."""
        self.growing_bytes = 0
        """Of the segment that is being made."""
        self._digests: list[bytearray] = []
        self._ended = False

    def next_segment_bytes(self) -> int:
        """Size of the segment to make now, so that its index fits the budget beside it; 0 when the budget is used."""
        if self._ended:
            return 0
        index_bytes = max(self.index_bytes, config.INDEX_BYTES_MIN)
        room = self.budget_bytes - self.segment_bytes - self.growing_bytes - index_bytes
        if self.segment_bytes:
            # What comes will need as much index as what is there: with tiny blocks a third of the budget.
            room = room * self.segment_bytes // (self.segment_bytes + index_bytes)
        else:
            room = max(room // 2, min(room, self.slab_bytes))
        size = min(max(limits.SEGMENT_BYTES_FIRST, self.segment_bytes), limits.SEGMENT_BYTES_MAX, room)
        return max(0, size // self.slab_bytes * self.slab_bytes)

    def add_segment(self, size: int) -> int:
        """A segment is there; the number of slabs it brings, numbered on from the last."""
        count = size // self.slab_bytes
        self.segments.append(Segment(len(self._digests), count))
        self._digests += [bytearray() for _ in range(count)]
        self.segment_bytes += size
        self.growing_bytes = 0
        return count

    def stop_growing(self) -> None:
        """Memory could not be had: the segments are what there is."""
        self._ended = True
        self.growing_bytes = 0

    def charge_dram(self, slots: int, slot_bytes: int) -> bool:
        """Whether the index of a slab of DRAM slots fits; then it is charged. Negative: given back."""
        return self._charge(_dram_index_bytes(slots, slot_bytes))

    def charge_disk(self, slots: int, slot_bytes: int) -> bool:
        """The same for a slab of disk slots: up to half of the budget, so that a large disk leaves DRAM its memory."""
        size = _disk_index_bytes(slots, slot_bytes)
        return (size < 0 or self.index_bytes + size <= self.budget_bytes // 2) and self._charge(size)

    def locate(self, slabs: Slabs, slot: int) -> tuple[int, int]:
        """(segment, byte offset in it) of a slot."""
        slab, offset = slabs.locate(slot)
        for number, segment in enumerate(self.segments):
            if slab < segment.first_slab + segment.slab_count:
                return number, (slab - segment.first_slab) * self.slab_bytes + offset
        raise InvariantBroken(f"slot {slot} lies in no segment")

    def put_digests(self, slot: int, slot_bytes: int, table: bytes) -> None:
        """Keep the digest table of the block that now lies in a slot."""
        slab = slot >> _SLAB_SHIFT
        stride = _digest_stride(slot_bytes)
        store = self._digests[slab]
        needed = self.slab_bytes // slot_bytes * stride
        if len(store) != needed:  # the slab was cut in slots of another class before
            self._digests[slab] = store = bytearray(needed)
        start = (slot & _SLOT_MASK) * stride
        store[start : start + len(table)] = table

    def digests(self, slot: int, slot_bytes: int, size: int) -> memoryview:
        """The digest table of the block of `size` bytes in a slot."""
        start = (slot & _SLOT_MASK) * _digest_stride(slot_bytes)
        length = digests.page_count(size) * limits.DIGEST_BYTES
        return memoryview(self._digests[slot >> _SLAB_SHIFT])[start : start + length]

    def check(self, dram: Slabs, disk: Slabs | None) -> None:
        """Assert that what is charged is what the slabs' assignments cost; for tests and simulation."""
        assert self.segment_bytes + self.growing_bytes + self.index_bytes <= self.budget_bytes
        assert self.segment_bytes == dram.slab_count * self.slab_bytes
        expected = 0
        for slabs, cost in ((dram, _dram_index_bytes), (disk, _disk_index_bytes)):
            for slab in range(slabs.slab_count if slabs is not None else 0):
                if slabs is not None and (assigned := slabs.assignment(slab)) is not None:
                    slot_bytes = slabs.classes[assigned[1]]
                    expected += cost(self.slab_bytes // slot_bytes, slot_bytes)
        assert self.index_bytes == expected

    def _charge(self, size: int) -> bool:
        if size > 0 and self.segment_bytes + self.growing_bytes + self.index_bytes + size > self.budget_bytes:
            return False
        self.index_bytes += size
        return True


def _digest_stride(slot_bytes: int) -> int:
    return digests.page_count(slot_bytes) * limits.DIGEST_BYTES


def _dram_index_bytes(slots: int, slot_bytes: int) -> int:
    # The first digest is within INDEX_ENTRY_BYTES; a 4 MiB block has 63 more, 0.012 % of its payload.
    return slots * (limits.INDEX_ENTRY_BYTES + _digest_stride(slot_bytes) - limits.DIGEST_BYTES)


def _disk_index_bytes(slots: int, _slot_bytes: int) -> int:
    return slots * limits.INDEX_ENTRY_BYTES
