"""What travels through the connection for one range, and the digests that go with it.

Whole pages travel with the digests that were made when the block was filled, so the reader's check covers all that
happened since. A range that is less than half of its pages travels alone: the node checks the pages against their
digests itself and sends digests of the range; to hash a page costs 3 to 6 us, to send and receive it about 25. Pages
that do not match travel whole: the reader finds out and complains, and the complaint is what quarantines a block.

Called outside the node's lock: the block is held, so its bytes and its digests stay.
"""

from __future__ import annotations

from typing import NamedTuple

from shoal_core import digests
from shoal_core.limits import DIGEST_BYTES, PAGE_BYTES
from shoal_core.verbs import get


class HeldBlock(NamedTuple):
    """A block in DRAM, held for a send."""

    entry: int
    generation: int
    source: int
    memory: memoryview
    table: bytes
    """Its page digests."""


def answer(item: get.Item, block: HeldBlock, checked: set[tuple[int, int]]) -> tuple[get.Inline, memoryview]:
    """The answer and its bytes. `checked`: (entry, page offset) that this batch found good already."""
    start = item.offset - item.offset % PAGE_BYTES
    end = min(-(-(item.offset + item.length) // PAGE_BYTES) * PAGE_BYTES, len(block.memory))
    if item.length * 2 < end - start and _good(block, start, end, checked):
        start, end = item.offset, item.offset + item.length
        view = block.memory[start:end]
        table = digests.page_digests(view)
    else:
        view = block.memory[start:end]
        table = block.table[start // PAGE_BYTES * DIGEST_BYTES : -(-end // PAGE_BYTES) * DIGEST_BYTES]
    return get.Inline(block.source, start, end - start, table, block.entry, block.generation), view


def is_good(block: HeldBlock) -> bool:
    """Whether all of a block has the digests that it was filled with."""
    return digests.matches(block.memory, block.table)


def _good(block: HeldBlock, start: int, end: int, checked: set[tuple[int, int]]) -> bool:
    for page in range(start, end, PAGE_BYTES):
        if (block.entry, page) in checked:
            continue
        first = page // PAGE_BYTES * DIGEST_BYTES
        if not digests.matches(block.memory[page : page + PAGE_BYTES], block.table[first : first + DIGEST_BYTES]):
            return False
        checked.add((block.entry, page))
    return True
