"""The DRAM budget is spent on segments and index together, and neither starves the other."""

import itertools

import pytest

from shoal_core import config, limits, slabs
from shoal_node.dram_layout import DramLayout
from shoal_node.spaces import tier_classes


def grown(budget: int, slab_bytes: int, slot_bytes: int) -> tuple[DramLayout, int]:
    """A layout that grew to its end while every slab was cut in slots of one size; and the slabs that got an index."""
    layout = DramLayout(budget, slab_bytes)
    assigned = slab_count = 0
    while size := layout.next_segment_bytes():
        layout.growing_bytes = size
        slab_count += layout.add_segment(size)
        while assigned < slab_count and layout.charge_dram(slab_bytes // slot_bytes, slot_bytes):
            assigned += 1
        assert layout.segment_bytes + layout.index_bytes <= budget
    return layout, assigned


@pytest.mark.parametrize("budget", [1 << 20, 48 << 20, 64 << 20, (64 << 20) + 1, 200 << 20, 8 << 30, 30 << 30])
@pytest.mark.parametrize("block_size", [512, 64 << 10, 4 << 20])
def test_a_full_cache_uses_its_budget_whatever_the_size_of_its_blocks(budget: int, block_size: int) -> None:
    """Also the smallest one, which is a single slab; and none keeps memory for which it has no index."""
    slab_bytes = config.slab_bytes(budget, block_size)
    budget = max(budget, slab_bytes + config.INDEX_BYTES_MIN)
    layout, assigned = grown(budget, slab_bytes, block_size)
    used = assigned * slab_bytes + layout.index_bytes
    # Of what is left the smallest index and one slab stand to reason; the rest is a share of one segment.
    assert used >= (budget - slab_bytes - config.INDEX_BYTES_MIN) * 0.85
    assert assigned >= 1


def test_a_large_disk_leaves_dram_half_of_the_budget() -> None:
    layout = DramLayout(64 << 20, 1 << 20)
    while layout.charge_disk(4096, 4096):
        pass
    assert 31 << 20 <= layout.index_bytes <= 32 << 20
    assert layout.charge_disk(-4096, 4096), "giving back is never refused"
    assert layout.next_segment_bytes() >= 15 << 20


def test_what_could_not_be_had_is_not_asked_for_again() -> None:
    layout = DramLayout(1 << 30, 1 << 20)
    layout.add_segment(layout.next_segment_bytes())
    assert layout.next_segment_bytes() > 0
    layout.stop_growing()
    assert layout.next_segment_bytes() == 0
    assert layout.charge_dram(64, 16 << 10), "what is there can still be used"


def test_segments_double_up_to_the_largest() -> None:
    layout = DramLayout(10 << 30, 16 << 20)
    sizes = []
    while size := layout.next_segment_bytes():
        sizes.append(size)
        layout.add_segment(size)
    assert sizes[:5] == [64 << 20, 64 << 20, 128 << 20, 256 << 20, 512 << 20]
    assert max(sizes) == limits.SEGMENT_BYTES_MAX


def test_slots_lie_where_the_segments_say_and_nowhere_twice() -> None:
    slab_bytes = 64 << 10
    layout = DramLayout(4 << 20, slab_bytes)
    classes, _ = tier_classes(slab_bytes, 16 << 10)
    pool = slabs.Slabs(slab_bytes, classes)
    for size in (2 * slab_bytes, 3 * slab_bytes):
        for _ in range(layout.add_segment(size)):
            pool.add_slab()
    seen = set()
    for number in range(5):
        pool.assign(0, number)
        while (slot := pool.take(0, number)) is not None:
            segment, offset = layout.locate(pool, slot)
            assert offset >= 0 and offset + classes[number] <= layout.segments[segment].slab_count * slab_bytes
            seen.add((segment, offset // slab_bytes, offset % slab_bytes, classes[number]))
    starts = sorted((segment, slab * slab_bytes + offset, size) for segment, slab, offset, size in seen)
    for (segment, start, size), (next_segment, next_start, _) in itertools.pairwise(starts):
        assert segment < next_segment or start + size <= next_start
    assert len({segment for segment, _, _ in starts}) == 2


def test_digests_are_kept_per_slot_also_when_a_slab_is_cut_anew() -> None:
    layout = DramLayout(4 << 20, 256 << 10)
    layout.add_segment(256 << 10)
    tables = {index: bytes([index]) * 16 for index in range(2)}
    for index, table in tables.items():
        layout.put_digests(index, 128 << 10, table)
    for index, table in tables.items():
        assert bytes(layout.digests(index, 128 << 10, 100_000)) == table
    assert bytes(layout.digests(1, 128 << 10, 1000)) == tables[1][:8]
    layout.put_digests(3, 64 << 10, b"x" * 8)
    assert bytes(layout.digests(3, 64 << 10, 5)) == b"x" * 8
