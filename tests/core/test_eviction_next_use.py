"""Eviction by next use: against an exact one, in epochs of a loader, and what goes first when nothing is certain."""

import random
import sys
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal_core import eviction, limits, queues
from shoal_core.next_use import BUCKETS_MAX, USE_MAX, Clock, NextUse


def free(entry: int) -> bool:
    return False


def order(
    capacity: int, name: eviction.PolicyName = "s3fifo", *, live: bool = True, ttl_s: int | None = None
) -> tuple[NextUse, Clock]:
    links = queues.Links(capacity)
    clock = Clock()
    clock.live = live
    policy = eviction.with_next_use(eviction.policy(name, links, ttl_s), links, clock)
    assert isinstance(policy, NextUse)
    return policy, clock


def leave(policy: NextUse, count: int) -> list[int]:
    """Who goes, in order."""
    gone: list[int] = []
    for _ in range(count):
        victim = policy.victim(free)
        assert victim is not None
        policy.evict(victim, victim)
        gone.append(victim)
    return gone


class Loader:
    """A cache in front of which epochs are read, each item's use in the next epoch told as it is read."""

    def __init__(self, capacity: int, name: eviction.PolicyName = "s3fifo") -> None:
        self.policy, self.clock = order(capacity, name)
        self.entries: dict[int, int] = {}
        self.items = [-1] * capacity
        self.room = list(range(capacity))
        self.misses = 0

    def read(self, item: int, now: int, following: int) -> None:
        self.clock.now = self.clock.passed = now
        entry = self.entries.get(item)
        if entry is None:
            self.misses += 1
            if not self.room:
                victim = self.policy.victim(free)
                assert victim is not None
                self.policy.evict(victim, 0)
                del self.entries[self.items[victim]]
                self.room.append(victim)
            entry = self.entries[item] = self.room.pop()
            self.items[entry] = item
            self.policy.insert(entry, 0, 1)
        self.clock.now = now + 1
        self.policy.plan(entry, following)

    def epoch(self, number: int, this: list[int], following: list[int]) -> int:
        """Misses of one epoch."""
        misses, count = self.misses, len(this)
        places = {item: place for place, item in enumerate(following)}
        for place, item in enumerate(this):
            self.read(item, number * count + place, (number + 1) * count + places[item])
        return self.misses - misses


def shuffled(count: int, epochs: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [rng.sample(range(count), count) for _ in range(epochs)]


def belady_misses(reads: list[int], capacity: int) -> int:
    """What an order that knows everything misses, by going through all that is held for each victim."""
    following = {}
    uses: list[int] = [0] * len(reads)
    for place in range(len(reads) - 1, -1, -1):
        uses[place] = following.get(reads[place], len(reads))
        following[reads[place]] = place
    held: dict[int, int] = {}
    misses = 0
    for place, item in enumerate(reads):
        if item not in held:
            misses += 1
            if len(held) == capacity:
                del held[max(held, key=held.__getitem__)]
        held[item] = uses[place]
    return misses


@given(
    reads=st.lists(st.integers(0, 30), min_size=1, max_size=200), capacity=st.integers(1, 12),
    name=st.sampled_from(["s3fifo", "epoch"]),
)  # fmt: skip
def test_where_all_is_known_nothing_does_better(reads: list[int], capacity: int, name: eviction.PolicyName):
    loader = Loader(capacity, name)
    for place, item in enumerate(reads):
        later = (later for later in range(place + 1, len(reads)) if reads[later] == item)
        loader.read(item, place, next(later, len(reads)))
    # An exact order passes by no newcomer: neither does this one.
    assert loader.misses == belady_misses(reads, capacity)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_shuffled_epochs_miss_no_more_than_what_does_not_fit(share: float):
    count = 3000
    capacity = int(count * share)
    loader = Loader(capacity)
    orders = shuffled(count, 5, seed=7)
    misses = [loader.epoch(number, orders[number], orders[number + 1]) for number in range(4)]
    assert misses[0] == count
    assert all(missed <= (count - capacity) * 1.02 for missed in misses[1:]), misses


def test_many_uses_are_kept_in_a_bounded_number_of_buckets():
    count = 20_000
    policy, _ = order(count)
    uses = random.Random(3).sample(range(10 * count), count)
    empty = sys.getsizeof(policy._numbers)
    for entry, use in enumerate(uses):
        policy.insert(entry, entry, 1)
        policy.plan(entry, use)
    assert len(policy._numbers) == len(policy._buckets) <= BUCKETS_MAX
    assert sys.getsizeof(policy._numbers) < empty + 16 * BUCKETS_MAX
    gone = [uses[entry] for entry in leave(policy, count)]
    width = 10 * count // (BUCKETS_MAX // 2)
    assert all(use >= later - width for use, later in zip(gone, sorted(uses, reverse=True), strict=True))
    assert len(policy) == 0 and not policy._buckets


def test_what_was_passed_by_goes_first_then_the_unknown_then_the_farthest():
    policy, clock = order(6)
    for entry in range(6):
        policy.insert(entry, entry, 1)
    for entry, use in ((0, 50), (1, 10), (2, 90), (3, 12)):
        policy.plan(entry, use)
    clock.now, clock.passed = 20, 20
    assert leave(policy, 6) == [1, 3, 4, 5, 2, 0]


def test_when_the_stream_is_dead_what_was_known_goes_before_all_else():
    policy, clock = order(4)
    for entry in range(4):
        policy.insert(entry, entry, 1)
    for entry, use in ((0, 50), (1, 90), (2, 70)):
        policy.plan(entry, use)
    clock.live = False
    assert policy.next_use(1) is None and policy.gives_way(0, 10) == 4
    policy.touch(1)
    assert leave(policy, 2) == [2, 0], "but not what somebody still reads"
    assert set(leave(policy, 2)) == {1, 3}


def test_the_nearest_use_that_is_still_ahead_is_the_next():
    policy, clock = order(3)
    for entry, use in ((0, 10), (1, 20), (2, 30)):
        policy.insert(entry, entry, 1)
        policy.plan(entry, use)
    policy.plan(2, 5)
    policy.plan(1, 400)
    assert [policy.next_use(entry) for entry in range(3)] == [10, 20, 5]
    clock.now = 11  # the use at 10 was
    policy.plan(0, USE_MAX + 100)
    policy.plan(1, 400)
    assert [policy.next_use(entry) for entry in range(2)] == [USE_MAX, 20]
    assert leave(policy, 3) == [0, 1, 2]


def test_it_says_how_many_would_go_before_a_block_of_that_use():
    policy, clock = order(6)
    for entry in range(6):
        policy.insert(entry, entry, 1)
    for entry, use in ((0, 10), (1, 40), (2, 60), (3, 60)):
        policy.plan(entry, use)
    clock.now = clock.passed = 20
    assert policy.gives_way(60, 100) == 3, "two unknown, one passed by; its equals stay"
    assert policy.gives_way(59, 100) == 5 and policy.gives_way(30, 100) == 6
    assert policy.gives_way(30, 4) == 4


@pytest.mark.parametrize("exact", [True, False])
def test_a_search_among_those_in_use_ends_and_asking_again_goes_on(exact: bool):
    count = 400
    policy, _ = order(count)
    for entry in range(count):
        policy.insert(entry, entry, 1)
        policy.plan(entry, 1000 + (entry if exact else entry // 200))
    asked: list[int] = []

    def in_use(entry: int) -> bool:
        asked.append(entry)
        return entry != 199

    for _ in range(20):
        if (victim := policy.victim(in_use)) is not None:
            break
        assert len(asked) <= limits.VICTIM_SKIPS_MAX
        asked.clear()
    assert victim == 199


def test_a_lease_is_worth_keeping_while_the_block_is_not_about_to_go():
    policy, clock = order(100)
    for entry in range(100):
        policy.insert(entry, entry, 1)
        policy.plan(entry, 100 + entry)
    clock.now, clock.window_end = 95, 110
    assert not policy.keeps(5), "wanted now; of its next use nothing is known"
    assert policy.keeps(20) and not policy.keeps(99)
    clock.live = False
    assert not policy.keeps(20)


def test_age_is_the_time_until_the_farthest_use():
    policy, clock = order(10)
    assert policy.oldest_s() is None
    policy.insert(0, 0, 500)
    assert policy.oldest_s() == 500
    policy.plan(0, 3000)
    clock.told_s, clock.now = 1000, 1000
    assert policy.oldest_s() == 1000
    clock.items_per_s = 10.0
    assert policy.oldest_s() == 800
    policy.insert(1, 1, 700)
    assert policy.oldest_s() == 700


def test_the_ttl_goes_on_through_plans():
    policy, _ = order(10, ttl_s=10)
    for entry in range(4):
        policy.insert(entry, entry, entry)
    policy.plan(2, 7)
    policy.plan(0, 9)
    policy.plan(2, 11)
    assert policy.expired(11) == [0, 1] and policy.expired(12) == [0, 1, 2]
    policy.remove(0)
    policy.remove(1)
    assert policy.expired(50) == [2, 3]


def test_pinned_entries_take_no_order():
    links = queues.Links(1)
    pinned = eviction.policy("pin", links)
    assert eviction.with_next_use(pinned, links, Clock()) is pinned


@pytest.mark.parametrize("name", ["s3fifo", "epoch"])
def test_a_clock_that_starts_over_gives_all_back_to_the_policy_inside(name: eviction.PolicyName):
    policy, _ = order(50, name)
    for entry in range(50):
        policy.insert(entry, entry, 1)
        if entry % 2:
            policy.plan(entry, 100 - entry)
    policy.forget_uses()
    assert len(policy) == 50 and not policy._buckets and all(policy.next_use(entry) is None for entry in range(50))
    assert sorted(leave(policy, 50)) == list(range(50))


class NextUseAgainstDict(RuleBasedStateMachine):
    """Whatever is told in whatever order, every entry stands in one place, and victims come in their order."""

    @initialize(name=st.sampled_from(["s3fifo", "epoch"]), ttl_s=st.sampled_from([None, 5]))
    def begin(self, name: eviction.PolicyName, ttl_s: int | None):
        self.policy, self.clock = order(1000, name, ttl_s=ttl_s)
        self.present: set[int] = set()
        self.uses: dict[int, int] = {}
        self.now_s = 0

    @rule(entries=st.sets(st.integers(0, 999), max_size=200))
    def insert(self, entries: Iterable[int]):
        self.now_s += 1
        for entry in set(entries) - self.present:
            self.policy.insert(entry, entry, self.now_s)
            self.present.add(entry)

    @rule(seed=st.integers(), ahead=st.sampled_from([10, 1000, 1 << 20, 1 << 40]))
    def plan(self, seed: int, ahead: int):
        rng = random.Random(seed)
        for entry in sorted(self.present):
            if rng.random() < 0.5:
                use = self.clock.now + rng.randrange(ahead)
                self.policy.plan(entry, use)
                known = self.uses.get(entry, -1)
                if not (self.clock.live and self.clock.now <= known <= use):  # else it comes before this one
                    self.uses[entry] = min(use, USE_MAX)

    @rule(entries=st.lists(st.integers(0, 999), max_size=20))
    def touch(self, entries: list[int]):
        for entry in set(entries) & self.present:
            self.policy.touch(entry)
            if self.uses.get(entry, 0) < self.clock.passed or not self.clock.live:
                self.uses.pop(entry, None)

    @rule(entries=st.sets(st.integers(0, 999), max_size=50))
    def remove(self, entries: set[int]):
        for entry in entries & self.present:
            self.policy.remove(entry)
            self.present.remove(entry)
            self.uses.pop(entry, None)

    @rule(items=st.integers(0, 2000), live=st.booleans())
    def time_passes(self, items: int, live: bool):
        self.clock.now += items
        self.clock.passed = max(0, self.clock.now - 100)
        self.clock.live = live

    @rule(count=st.integers(1, 100))
    def evict(self, count: int):
        for entry in leave(self.policy, min(count, len(self.present))):
            use = self.uses.pop(entry, None)
            self.present.remove(entry)
            known = self.uses.values()
            width = 1 << self.policy._shift
            if not self.clock.live:
                assert use is not None or not self.uses
                assert use is None or use > max(known, default=0) - width
            elif use is None:
                assert not [other for other in known if other < self.clock.passed - width]
            elif use >= self.clock.passed:
                assert len(self.uses) == len(self.present), "one of unknown use stands behind"
                assert use > max(known, default=0) - width

    @rule(entries=st.sets(st.integers(0, 999)))
    def victim_among_those_in_use(self, entries: set[int]):
        victim = self.policy.victim(entries.__contains__)
        assert victim is None or victim in self.present - entries

    @invariant()
    def it_agrees(self):
        if not hasattr(self, "policy"):
            return
        policy = self.policy
        assert len(policy) == len(self.present) and policy._known == len(self.uses)
        assert len(policy._numbers) <= BUCKETS_MAX
        assert policy._numbers == sorted(policy._buckets) and all(queue.length for queue in policy._buckets.values())
        assert sum(queue.length for queue in policy._buckets.values()) == policy._known
        for entry, use in self.uses.items():
            expected = use if self.clock.live and use >= self.clock.passed else None
            assert policy.next_use(entry) == expected


TestNextUseAgainstDict = NextUseAgainstDict.TestCase
TestNextUseAgainstDict.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
