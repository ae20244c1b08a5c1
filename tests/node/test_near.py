"""Near copies: their order, their bound, and that the sum is right though nobody says when a block goes."""

from __future__ import annotations

from collections import OrderedDict

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal_core import index, limits
from shoal_node.near import NearCopies
from shoal_node.spaces import space_of
from shoal_node.state import NodeState

MIB = 1 << 20


class Blocks:
    """An index whose blocks come and go, as a state makes them; freed numbers are given out again at once."""

    def __init__(self) -> None:
        self.index = index.Index()
        self.count = 0

    def come(self, size: int = 100) -> int:
        self.count += 1
        entry = self.index.add(self.count.to_bytes(16, "little"), 0, size)
        self.index.dram_slot[entry] = self.count
        return entry

    def go(self, entry: int) -> None:
        self.index.unlink(entry)
        self.index.dram_slot[entry] = index.NO_SLOT
        self.index.recycle(entry)


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


def some(blocks: Blocks, near: NearCopies, count: int) -> list[int]:
    entries = [blocks.come() for _ in range(count)]
    for entry in entries:
        near.add(entry, 100)
    return entries


def test_the_least_recently_used_go_first_and_no_more_than_must(blocks: Blocks) -> None:
    near = NearCopies(blocks.index, 500)
    first, second, third, *_ = entries = some(blocks, near, 5)
    assert near.bytes == 500 and near.over() == []
    near.touch(first)
    new = blocks.come()
    near.add(new, 250)
    assert near.over() == [second, third, entries[3]] and near.bytes == 450
    assert near.over() == []
    assert first in near and new in near and second not in near
    near.check()


def test_room_for_one_that_is_coming(blocks: Blocks) -> None:
    near = NearCopies(blocks.index, 500)
    entries = some(blocks, near, 5)
    assert near.over(150) == entries[:2]
    assert near.bytes + 150 <= 500
    assert near.over(1000) == entries[2:], "more than all there may be"


def test_what_is_leased_stays_and_others_go_in_its_place(blocks: Blocks) -> None:
    near = NearCopies(blocks.index, 300)
    entries = some(blocks, near, 5)
    blocks.index.leases[entries[0]] = 1
    assert near.over() == entries[1:3]
    assert entries[0] in near and near.bytes == 300
    for entry in (entries[0], *entries[3:]):
        blocks.index.leases[entry] = 2
    near.bytes_max = 0
    assert near.over() == [] and near.bytes == 300, "still counted, as it is still there"
    blocks.index.leases[entries[3]] = 0
    assert near.over() == [entries[3]]


def test_a_search_among_leased_ones_ends_and_goes_on_next_time(blocks: Blocks) -> None:
    near = NearCopies(blocks.index, 0)
    entries = some(blocks, near, limits.VICTIM_SKIPS_MAX + 10)
    for entry in entries[:-1]:
        blocks.index.leases[entry] = 1
    assert near.over() == []
    assert near.over() == entries[-1:]


def test_leased_ones_keep_their_order_when_none_of_them_can_go(blocks: Blocks) -> None:
    near = NearCopies(blocks.index, 0)
    entries = some(blocks, near, 3)
    for entry in entries:
        blocks.index.leases[entry] = 1
    assert near.over() == []
    for entry in entries:
        blocks.index.leases[entry] = 0
    assert near.over() == entries


def test_another_block_under_the_same_number_is_another_block(blocks: Blocks) -> None:
    near = NearCopies(blocks.index, 1000)
    (entry,) = some(blocks, near, 1)
    blocks.go(entry)
    assert entry not in near
    assert blocks.come() == entry, "the index gives the number out again"
    assert entry not in near
    near.touch(entry)
    assert near.bytes == len(near) == 0, "noticed"
    near.add(entry, 30)
    assert entry in near and near.bytes == 30


def test_over_does_not_name_a_stale_one(blocks: Blocks) -> None:
    near = NearCopies(blocks.index, 250)
    entries = some(blocks, near, 4)
    for entry in entries[:2]:
        blocks.go(entry)
    owned = blocks.come()
    assert owned == entries[1]
    assert near.over() == []
    assert near.bytes == 200 and owned not in near
    near.bytes_max = 100
    assert near.over() == [entries[2]]


def test_what_left_memory_for_the_disk_takes_no_room_here(blocks: Blocks) -> None:
    near = NearCopies(blocks.index, 1000)
    (entry,) = some(blocks, near, 1)
    blocks.index.dram_slot[entry] = index.NO_SLOT
    assert entry not in near
    near.touch(entry)
    assert near.bytes == 0
    blocks.index.dram_slot[entry] = 7
    near.add(entry, 100)
    assert entry in near and near.bytes == 100


def test_once_more_is_once(blocks: Blocks) -> None:
    near = NearCopies(blocks.index, 250)
    first, second = some(blocks, near, 2)
    near.add(first, 120)
    assert near.bytes == 220 and len(near) == 2
    near.bytes_max = 150
    assert near.over() == [second], "the first was used again by that"
    with pytest.raises(ValueError, match="0 bytes"):
        near.add(first, 0)


def test_a_block_that_is_owned_now_or_goes_is_no_near_copy(blocks: Blocks) -> None:
    near = NearCopies(blocks.index, 1000)
    first, second = some(blocks, near, 2)
    assert near.discard(first) and not near.discard(first)
    assert first not in near and near.bytes == 100
    blocks.go(second)
    assert not near.discard(second), "it was another block"
    assert near.bytes == len(near) == 0
    assert not near.discard(10**9) and 10**9 not in near
    near.touch(10**9)


def test_a_discarded_one_is_known_as_such_while_its_bytes_are_on_their_way_out(blocks: Blocks) -> None:
    near = NearCopies(blocks.index, 1000)
    (entry,) = some(blocks, near, 1)
    blocks.index.dram_slot[entry] = index.NO_SLOT
    assert near.discard(entry)


@pytest.mark.parametrize("use", ["touch", "add"])
def test_stale_ones_are_noticed_wherever_they_are(blocks: Blocks, use: str) -> None:
    near = NearCopies(blocks.index, 1 << 40)
    entries = some(blocks, near, 300)
    kept = entries[::3]
    for entry in entries:
        if entry not in kept:
            blocks.go(entry)
    assert near.bytes >= 100 * len(kept)
    for number in range(600):
        if use == "touch":
            near.touch(kept[number % 2])
        else:
            near.add(kept[number % 7], 100)
    assert near.bytes == 100 * len(kept) and len(near) == len(kept)
    near.check()


def test_the_turn_goes_on_though_the_one_whose_turn_it_is_moves(blocks: Blocks) -> None:
    near = NearCopies(blocks.index, 1 << 40)
    entries = some(blocks, near, 90)
    kept = set(entries[::3])
    for entry in entries:
        if entry not in kept:
            blocks.go(entry)
    for _ in range(180):
        near.touch(near._turn if near._turn in kept else entries[0])
    assert len(near) == len(kept)
    near.check()


def test_memory_is_flat(blocks: Blocks) -> None:
    near = NearCopies(blocks.index, 1 << 40)
    assert near.memory_bytes == 0
    some(blocks, near, 10_000)
    assert 10_000 * 16 <= near.memory_bytes <= 15_000 * 16


def test_with_a_real_state_the_cap_is_a_cap() -> None:
    state = NodeState(17 * MIB, MIB, MIB, 4 * MIB)
    state.segment_added(16 * MIB)
    state.add_space(space_of("local", "urls"))
    near = NearCopies(state.index, 3 * MIB)
    for number in range(40):
        slot = state.reserve(0, MIB, 1)
        assert slot is not None
        entry = state.publish(number.to_bytes(16, "little"), 0, MIB, slot, b"digests.", 1)
        if number % 2:
            near.add(entry, MIB)
            for gone in near.over():
                assert state.drop(gone)
        state.unhold(entry)
        present = [entry for entry in state.index.linked() if entry in near]
        assert len(present) * MIB <= near.bytes <= 3 * MIB
        near.check()
        state.check()
    assert len(present) == 3


class NearMachine(RuleBasedStateMachine):
    """Against a plain ordered dict that is told everything."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = Blocks()
        self.near = NearCopies(self.blocks.index, 1000)
        self.model: OrderedDict[int, int] = OrderedDict()
        self.present: list[int] = []

    @rule(size=st.integers(1, 400), near=st.booleans())
    def come(self, size: int, near: bool) -> None:
        entry = self.blocks.come()
        self.present.append(entry)
        if near:
            self.near.add(entry, size)
            self.model[entry] = size

    @precondition(lambda self: self.present)
    @rule(number=st.integers(0, 99), size=st.integers(1, 400))
    def becomes_near(self, number: int, size: int) -> None:
        entry = self.present[number % len(self.present)]
        self.near.add(entry, size)
        self.model[entry] = size
        self.model.move_to_end(entry)

    @precondition(lambda self: self.present)
    @rule(number=st.integers(0, 99))
    def goes_without_a_word(self, number: int) -> None:
        entry = self.present.pop(number % len(self.present))
        self.model.pop(entry, None)
        self.blocks.index.leases[entry] = 0
        self.blocks.go(entry)

    @precondition(lambda self: self.present)
    @rule(number=st.integers(0, 99))
    def touch(self, number: int) -> None:
        entry = self.present[number % len(self.present)]
        self.near.touch(entry)
        if entry in self.model:
            self.model.move_to_end(entry)

    @precondition(lambda self: self.present)
    @rule(number=st.integers(0, 99))
    def discard(self, number: int) -> None:
        entry = self.present[number % len(self.present)]
        assert self.near.discard(entry) == (self.model.pop(entry, None) is not None)

    @precondition(lambda self: self.present)
    @rule(number=st.integers(0, 99), count=st.integers(0, 2))
    def lease(self, number: int, count: int) -> None:
        self.blocks.index.leases[self.present[number % len(self.present)]] = count

    @rule(bytes_max=st.integers(0, 1500), coming=st.integers(0, 300))
    def over(self, bytes_max: int, coming: int) -> None:
        self.near.bytes_max = bytes_max
        leases = self.blocks.index.leases
        found = self.near.over(coming)
        kept_max = bytes_max - coming
        before = dict(self.model)
        assert found == [entry for entry in before if not leases[entry]][: len(found)], "the oldest that may go"
        for entry in found:
            del self.model[entry]
            self.present.remove(entry)
            self.blocks.go(entry)
        rest = sum(self.model.values())
        if self.near.bytes > kept_max:
            # All that stayed were passed over once, which leaves their order as it was.
            assert self.near.bytes == rest and all(leases[entry] for entry in self.model)
        elif found:
            assert len(self.near) > len(self.model) or rest + before[found[-1]] > kept_max, "one more than had to"
            for entry in list(before)[: list(before).index(found[-1])]:
                if leases[entry]:
                    self.model.move_to_end(entry)

    @invariant()
    def they_agree(self) -> None:
        self.near.check()
        assert self.near.bytes >= sum(self.model.values())
        for entry in range(self.blocks.count + 1):
            assert (entry in self.near) == (entry in self.model)

    def teardown(self) -> None:
        for entry in self.present:
            self.blocks.index.leases[entry] = 0
        self.near.bytes_max = 0
        assert self.near.over() == list(self.model)
        assert self.near.bytes == 0


NearMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestNear = NearMachine.TestCase
