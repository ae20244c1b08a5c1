"""Slabs: classes waste little, slots are handed out once, and a model of sets agrees after every step."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal_core import limits, slabs
from shoal_core.errors import InvariantBroken

MIB = 1 << 20
A, B = 1, 2
DRAM = slabs.slot_classes(16 * MIB, 4 * MIB, 512, 4096, 64)
DISK = slabs.slot_classes(16 * MIB, 4 * MIB, 4096, 4096)
SMALL = (1000, 2500, 5000)
"""Classes of a 10,000-byte slab: ten, four and two slots."""


def small_slabs(count: int = 1) -> slabs.Slabs:
    table = slabs.Slabs(10_000, SMALL)
    for _ in range(count):
        table.add_slab()
    return table


# Classes


def test_classes_of_the_default_slab():
    assert DRAM[-1] == DISK[-1] == 4 * MIB
    assert DRAM[0] == 512
    assert DISK[0] == 4096
    assert len(DRAM) <= 45
    assert all(size % 4096 == 0 for size in DISK)
    assert all(size % (4096 if size >= 64 * 1024 else 64) == 0 for size in DRAM)
    assert max(high / low for low, high in itertools.pairwise(DRAM)) < 1.256


@pytest.mark.parametrize("classes", [DRAM, DISK])
@pytest.mark.parametrize("shape", ["uniform", "log-uniform"])
def test_mean_internal_waste_is_at_most_12_percent(classes: tuple[int, ...], shape: str):
    rng = random.Random(1)
    low, high = math.log(classes[0]), math.log(classes[-1])
    if shape == "uniform":
        sizes = [rng.randint(1, classes[-1]) for _ in range(5000)]
    else:
        sizes = [int(math.exp(rng.uniform(low, high))) for _ in range(5000)]
    slots = [classes[slabs.class_of(classes, size)] for size in sizes]
    assert 1 - sum(sizes) / sum(slots) <= 0.12


@given(
    slab_log=st.integers(12, 24),
    block_log=st.integers(9, 24),
    slot_min=st.integers(1, 8192),
    alignment_log=st.integers(0, 12),
)
def test_every_size_has_a_class_and_a_slab_has_almost_no_rest(slab_log, block_log, slot_min, alignment_log):
    slab, block = 1 << slab_log, 1 << min(slab_log, block_log)
    slot_min = min(slot_min, block)
    classes = slabs.slot_classes(slab, block, slot_min, 4096, 1 << alignment_log)
    assert list(classes) == sorted(set(classes))
    assert classes[-1] == max(block, 1 << alignment_log)
    assert classes[0] >= slot_min
    assert slab // classes[0] <= limits.SLAB_SLOTS_MAX
    for size in classes:
        if size < 65536:
            assert size % (1 << alignment_log) == 0
        if slab >= 1 << 20:
            assert slab % size <= slab * 0.03
        assert slab // size >= slab // block or size > block


@given(size=st.integers(1, 4 * MIB))
def test_class_of_is_the_smallest_that_fits(size: int):
    index = slabs.class_of(DRAM, size)
    assert DRAM[index] >= size
    assert index == 0 or DRAM[index - 1] < size


def test_a_block_that_does_not_divide_the_slab_gets_its_exact_class():
    classes = slabs.slot_classes(MIB, 300 * 1024, 512, 4096, 64)
    assert classes[-1] == 300 * 1024
    assert classes[-2] == MIB // 4


def test_classes_that_cannot_be():
    with pytest.raises(ValueError, match="cannot hold a block"):
        slabs.slot_classes(MIB, 2 * MIB, 512, 4096)
    with pytest.raises(ValueError, match="smaller than one aligned slot"):
        slabs.slot_classes(1024, 1024, 512, 4096)
    with pytest.raises(ValueError, match="do not fit the largest slot"):
        slabs.class_of(SMALL, 5001)
    for classes in ((), (0, 10), (20, 10), (10, 10), (10, 20_000)):
        with pytest.raises(ValueError, match="ascending slot sizes"):
            slabs.Slabs(10_000, classes)
    with pytest.raises(ValueError, match="too many"):
        slabs.Slabs(16 * MIB, (8, 16))


# Slabs and slots


def test_take_needs_an_assigned_slab_and_ends_when_it_is_full():
    table = small_slabs()
    assert table.take(A, 1) is None
    assert table.assign(A, 1) == 0
    assert table.assign(A, 1) is None
    slots = [table.take(A, 1) for _ in range(4)]
    assert slots == [0, 1, 2, 3]
    assert table.take(A, 1) is None
    assert table.take(A, 0) is None
    assert table.take(B, 1) is None
    assert table.locate(3) == (0, 7500)
    assert table.slot_bytes(3) == 2500
    assert table.class_of(2500) == 1
    table.free(2)
    assert table.take(A, 1) == 2


def test_slot_numbers_carry_their_slab():
    table = small_slabs(3)
    for _ in range(3):
        table.assign(A, 2)
    slots = {table.take(A, 2) for _ in range(6)}
    assert slots == {slab * 2**20 + index for slab in range(3) for index in range(2)}
    assert table.locate(2 * 2**20 + 1) == (2, 5000)


def test_bytes_are_counted_per_space():
    table = small_slabs(2)
    table.assign(A, 0)
    table.assign(B, 1)
    first = table.take(A, 0)
    table.take(B, 1)
    table.take(B, 1)
    assert (table.used_bytes, table.space_used_bytes(A), table.space_used_bytes(B)) == (6000, 1000, 5000)
    assert first is not None
    table.free(first)
    assert (table.used_bytes, table.space_used_bytes(A)) == (5000, 0)
    assert table.space_used_bytes(3) == 0
    assert (table.space_slab_count(A), table.space_slab_count(3)) == (1, 0)


def test_an_empty_slab_is_released_and_serves_another_class():
    table = small_slabs(2)
    slab = table.assign(A, 0)
    assert slab is not None
    slot = table.take(A, 0)
    assert slot is not None
    assert table.empty_slabs(A) == []
    assert not table.is_empty(slab)
    with pytest.raises(InvariantBroken, match="1 used slots"):
        table.release(slab)
    table.free(slot)
    assert table.empty_slabs(A) == [slab]
    assert table.is_empty(slab)
    assert table.assignment(slab) == (A, 0)
    table.release(slab)
    assert table.assignment(slab) is None
    assert table.empty_slabs(A) == []
    assert table.unassigned_count == table.slab_count == 2
    assert table.take(A, 0) is None
    assert table.assign(B, 2) == slab
    assert list(table.slabs_of(B)) == list(table.slabs_of(B, 2)) == [slab]
    assert list(table.slabs_of(B, 0)) == list(table.slabs_of(A)) == []


def test_releasing_another_slab_than_the_one_in_use_changes_nothing_for_take():
    table = small_slabs(2)
    table.assign(A, 2)
    table.assign(A, 2)
    slot = table.take(A, 2)
    assert slot is not None
    used = slot >> 20
    table.release(1 - used)
    assert table.space_slab_count(A) == 1
    assert table.take(A, 2) is not None
    assert table.take(A, 2) is None


def test_restore_in_any_order():
    table = small_slabs()
    table.assign(A, 0, slab=0)
    for index in (7, 2, 3):
        table.restore(index)
    assert list(table.used_slots(0)) == [2, 3, 7]
    assert table.used_count(0) == 3
    assert {table.take(A, 0) for _ in range(7)} == {0, 1, 4, 5, 6, 8, 9}
    assert table.take(A, 0) is None


def test_a_restored_slot_that_is_freed_again_is_handed_out_once():
    table = small_slabs()
    table.assign(A, 0, slab=0)
    table.restore(5)
    table.restore(1)
    table.free(1)
    assert sorted(table.take(A, 0) or 0 for _ in range(9)) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert table.take(A, 0) is None


def test_restore_can_fill_a_slab():
    table = small_slabs()
    table.assign(A, 2, slab=0)
    table.restore(1)
    table.restore(0)
    assert table.take(A, 2) is None
    table.free(0)
    assert table.take(A, 2) == 0


@pytest.mark.parametrize("slot", [3, 10, 2**20, 5 * 2**20])
def test_restore_refuses_what_a_damaged_table_says(slot: int):
    table = small_slabs(2)
    table.assign(A, 0, slab=0)
    table.restore(3)
    with pytest.raises(ValueError, match=f"slot {slot} is"):
        table.restore(slot)


def test_bugs_of_the_caller_are_told():
    table = small_slabs(2)
    table.assign(A, 0, slab=1)
    with pytest.raises(InvariantBroken, match="not one of the unassigned"):
        table.assign(A, 0, slab=1)
    with pytest.raises(InvariantBroken, match="not used"):
        table.free(2**20)
    with pytest.raises(InvariantBroken, match="not used"):
        table.free(2**20 + 10)
    for slot in (0, 2 * 2**20):
        with pytest.raises(InvariantBroken, match="not assigned"):
            table.free(slot)


def test_slots_may_be_freed_while_they_are_listed():
    table = small_slabs()
    table.assign(A, 0)
    for _ in range(10):
        table.take(A, 0)
    for slot in table.used_slots(0):
        table.free(slot)
    assert table.is_empty(0)


def test_memory_per_slot_is_at_most_five_bytes():
    """One byte of flag, and the freed index: two bytes, or four beyond 65,536 slots to a slab."""
    for size, width in ((1024, 2), (128, 4)):
        table = slabs.Slabs(16 * MIB, (size,))
        table.add_slab()
        table.assign(A, 0)
        slots = [table.take(A, 0) for _ in range(16 * MIB // size)]
        for slot in slots[1:]:
            assert slot is not None
            table.free(slot)
        freed = table._freed[0]
        assert freed.itemsize * len(freed) == width * (len(slots) - 1)
        assert len(table._flags[0]) == len(slots)


class SlabsAgainstSets(RuleBasedStateMachine):
    """Slabs and a model made of sets agree after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.table = small_slabs()
        self.used: dict[int, tuple[int, int]] = {}
        self.assigned: dict[int, tuple[int, int]] = {}
        self.slabs = 1

    @rule()
    def add_slab(self) -> None:
        if self.slabs < 6:
            assert self.table.add_slab() == self.slabs
            self.slabs += 1

    @rule(space=st.sampled_from((A, B)), index=st.integers(0, 2))
    def assign(self, space: int, index: int) -> None:
        slab = self.table.assign(space, index)
        if slab is None:
            assert len(self.assigned) == self.slabs
        else:
            assert slab not in self.assigned
            self.assigned[slab] = (space, index)

    @rule(space=st.sampled_from((A, B)), index=st.integers(0, 2))
    def take(self, space: int, index: int) -> None:
        slot = self.table.take(space, index)
        mine = [slab for slab, owner in self.assigned.items() if owner == (space, index)]
        held = sum(owner == (space, index) for owner in self.used.values())
        if slot is None:
            assert held == len(mine) * (10_000 // SMALL[index])
        else:
            assert slot not in self.used
            assert slot >> 20 in mine
            assert (slot & 0xFFFFF) < 10_000 // SMALL[index]
            self.used[slot] = (space, index)

    @precondition(lambda self: self.used)
    @rule(choice=st.randoms(use_true_random=False))
    def free(self, choice: random.Random) -> None:
        slot = choice.choice(sorted(self.used))
        self.table.free(slot)
        del self.used[slot]

    @precondition(lambda self: self.assigned)
    @rule(choice=st.randoms(use_true_random=False), index=st.integers(0, 9))
    def restore(self, choice: random.Random, index: int) -> None:
        slab = choice.choice(sorted(self.assigned))
        slot = slab * 2**20 + index
        if index < 10_000 // SMALL[self.assigned[slab][1]] and slot not in self.used:
            self.table.restore(slot)
            self.used[slot] = self.assigned[slab]

    @rule(space=st.sampled_from((A, B)))
    def release_all_empty(self, space: int) -> None:
        busy = {slot >> 20 for slot in self.used}
        empty = {slab for slab, owner in self.assigned.items() if owner[0] == space and slab not in busy}
        assert set(self.table.empty_slabs(space)) == empty
        for slab in empty:
            self.table.release(slab)
            del self.assigned[slab]

    @invariant()
    def counts_agree(self) -> None:
        assert self.table.used_bytes == sum(SMALL[owner[1]] for owner in self.used.values())
        for space in (A, B):
            mine = sum(SMALL[owner[1]] for owner in self.used.values() if owner[0] == space)
            assert self.table.space_used_bytes(space) == mine
            assert self.table.space_slab_count(space) == sum(o[0] == space for o in self.assigned.values())
        listed = {slot for slab in self.assigned for slot in self.table.used_slots(slab)}
        assert listed == set(self.used)
        assert self.table.unassigned_count == self.slabs - len(self.assigned)


TestSlabsAgainstSets = SlabsAgainstSets.TestCase
TestSlabsAgainstSets.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
