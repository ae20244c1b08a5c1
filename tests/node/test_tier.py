"""One tier's bookkeeping: who makes room for whom, what that costs, and that nothing in use is touched."""

from __future__ import annotations

import pytest

from shoal_core import eviction, index
from shoal_core.index import Index
from shoal_node.tier import Tier

SLAB = 64 << 10
CLASSES = (1 << 10, 16 << 10, 64 << 10)


class Charged:
    """A budget for the index."""

    def __init__(self, slots_max: int) -> None:
        self.left = slots_max

    def __call__(self, slots: int, slot_bytes: int) -> bool:
        if slots > self.left:
            return False
        self.left -= slots
        return True


class Cache:
    """A tier with entries in it, told apart by number."""

    def __init__(
        self, slabs: int, slots_max: int = 10**6, policy: eviction.PolicyName = "s3fifo", ttl_s: int | None = None
    ) -> None:
        self.index = Index()
        self.charged = Charged(slots_max)
        self.policy: eviction.PolicyName = policy
        self.ttl_s = ttl_s
        self.tier = Tier(SLAB, CLASSES, self.make, self.charged, self.index.dram_slot)
        self.count = 0
        for _ in range(slabs):
            self.tier.add_slab()

    def make(self, space: int, links: eviction.Links) -> eviction.Policy:
        return eviction.policy(self.policy, links, self.ttl_s)

    def add(self, space: int, size: int, now_s: int) -> int:
        """A new entry in a slot of its own."""
        slot = self.tier.take(space, size)
        assert slot is not None
        self.count += 1
        entry = self.index.add(self.count.to_bytes(16, "little"), space, size)
        self.tier.insert(entry, slot, self.index.key_low[entry], now_s)
        return entry

    def evict(self, entries: list[int]) -> None:
        for entry in entries:
            self.tier.slabs.free(self.tier.remove(entry, self.index.key_low[entry]))
        self.tier.check(self.index)


def nothing(entry: int) -> bool:
    return False


def test_a_slot_leads_back_to_its_entry() -> None:
    cache = Cache(2)
    entries = [cache.add(0, 1000, 1) for _ in range(64)] + [cache.add(0, 60_000, 1)]
    assert cache.tier.take(0, 1000) is None and len(cache.tier) == 65
    assert sorted(cache.tier.entries(0) + cache.tier.entries(1)) == sorted(entries)
    cache.evict(entries[:3])
    assert sorted(cache.tier.entries(0) + cache.tier.entries(1)) == sorted(entries[3:])
    assert cache.index.dram_slot[entries[0]] == index.NO_SLOT
    assert cache.tier.evictions == 3


def test_its_own_pair_gives_way_first() -> None:
    cache = Cache(2)
    mine = [cache.add(0, 16_000, 10) for _ in range(4)]
    other = [cache.add(1, 16_000, 10) for _ in range(4)]
    victims = cache.tier.victims(0, 16_000, 11, None, nothing)
    assert len(victims) == 1 and victims[0] in mine
    cache.evict(victims)
    assert cache.tier.take(0, 16_000) is not None
    assert len(cache.tier.entries(1)) == len(other)


def test_a_pair_that_is_much_older_loses_a_whole_slab() -> None:
    cache = Cache(2)
    old = [cache.add(1, 16_000, 10) for _ in range(4)]
    cache.add(0, 60_000, 100)
    victims = cache.tier.victims(0, 60_000, 110, None, nothing)
    assert sorted(victims) == sorted(old)
    cache.evict(victims)
    assert cache.tier.release_empty((0, 2)) == 1
    assert cache.tier.take(0, 60_000) is not None


def test_a_slab_with_anything_in_use_stays_where_it_is() -> None:
    cache = Cache(2)
    old = [cache.add(1, 16_000, 10) for _ in range(4)]
    mine = cache.add(0, 60_000, 100)
    assert cache.tier.victims(0, 60_000, 110, None, lambda entry: entry == old[2]) == [mine]
    assert cache.tier.victims(0, 60_000, 110, None, lambda entry: entry in (old[2], mine)) == []
    reserved = cache.tier.take(1, 1000)
    assert reserved is None
    cache.evict([old[0]])
    assert cache.tier.take(1, 16_000) is not None, "reserved: it has no entry yet"
    assert cache.tier.victims(0, 60_000, 110, None, lambda entry: entry == mine) == []


def test_who_has_nothing_takes_from_whoever_can_give() -> None:
    cache = Cache(1)
    entries = [cache.add(1, 16_000, 10) for _ in range(3)]
    assert sorted(cache.tier.victims(0, 1000, 10, None, nothing)) == sorted(entries)


def test_over_its_quota_a_space_pays_with_its_own() -> None:
    cache = Cache(4)
    old = [cache.add(1, 16_000, 1) for _ in range(4)]
    mine = [cache.add(0, 16_000, 100) for _ in range(2)] + [cache.add(0, 1000, 50)]
    quota = 34 << 10
    victims = cache.tier.victims(0, 16_000, 101, quota, nothing)
    assert len(victims) == 1 and victims[0] in mine and not set(victims) & set(old)
    assert cache.tier.victims(0, 16_000, 101, quota, lambda entry: entry in mine) == []
    last = cache.tier.victims(0, 16_000, 101, quota, lambda entry: entry in mine[:2])
    assert last == [mine[2]], "also of another class"


def test_pinned_blocks_make_room_for_nobody() -> None:
    cache = Cache(1, policy="pin")
    cache.add(0, 60_000, 1)
    assert cache.tier.victims(0, 60_000, 100, None, nothing) == []
    assert cache.tier.victims(1, 60_000, 100, None, nothing) == []


def test_the_index_is_charged_with_the_slab_and_given_back_with_it() -> None:
    cache = Cache(3, slots_max=70)
    entry = cache.add(0, 1000, 1)
    assert cache.charged.left == 6
    assert cache.tier.take(1, 1000) is None, "no index for another 64 slots, though a slab is free"
    assert cache.tier.take(1, 60_000) is not None
    cache.evict([entry])
    assert cache.tier.release_empty((1, 1)) == 1
    assert cache.charged.left == 69
    assert cache.tier.take(1, 1000) is not None


def test_a_slab_that_never_held_a_block_is_given_back_too() -> None:
    """A fill that failed leaves it to a space that has nothing else."""
    cache = Cache(1)
    slot = cache.tier.take(7, 1000)
    assert slot is not None
    cache.tier.slabs.free(slot)
    assert cache.tier.take(0, 60_000) is None
    assert cache.tier.release_empty((0, 2)) == 1
    assert cache.tier.take(0, 60_000) is not None


def test_what_has_expired_is_named_oldest_first_and_no_more_than_asked_for() -> None:
    cache = Cache(2, ttl_s=10)
    entries = [cache.add(0, 1000, now_s) for now_s in (1, 2, 3, 30)]
    assert cache.tier.expired(5, 100) == []
    assert cache.tier.expired(13, 100) == entries[:3]
    assert cache.tier.expired(13, 2) == entries[:2]


@pytest.mark.parametrize("policy", ["s3fifo", "epoch", "pin"])
def test_other_settings_hold_for_what_is_there(policy: eviction.PolicyName) -> None:
    cache = Cache(3)
    entries = [cache.add(0, 1000, 1) for _ in range(5)] + [cache.add(0, 60_000, 1)]
    other = cache.add(1, 1000, 1)
    cache.policy, cache.ttl_s = policy, 10
    cache.tier.renew(0, cache.index.key_low, 50)
    cache.tier.check(cache.index)
    assert cache.tier.expired(59, 100) == []
    assert sorted(cache.tier.expired(60, 100)) == sorted(entries)
    victims = cache.tier.victims(0, 1000, 60, 0, nothing)
    assert victims == [] if policy == "pin" else victims[0] in entries
    cache.evict([*entries, other])
    assert len(cache.tier) == 0


def test_the_check_sees_tables_that_disagree() -> None:
    cache = Cache(1)
    entries = [cache.add(0, 1000, 1) for _ in range(2)]
    cache.tier.check(cache.index)
    cache.index.dram_slot[entries[0]] = cache.index.dram_slot[entries[1]]
    with pytest.raises(AssertionError):
        cache.tier.check(cache.index)
