"""Eviction: hit ratios against a plain LRU, searches that end and find, ages, memory, two policies on shared links."""

import bisect
import itertools
import random
import sys
from collections import OrderedDict
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal_core import eviction, limits, queues, s3fifo
from shoal_core.ghosts import Ghosts


def spread(number: int) -> int:
    """64 well-mixed bits, as keys have them."""
    number = (number + 1) * 0x9E3779B97F4A7C15 % 2**64
    number = (number ^ number >> 31) * 0xBF58476D1CE4E5B9 % 2**64
    return number ^ number >> 29


def free(entry: int) -> bool:
    return False


class Cache:
    """What a tier does with a policy: find, touch, make room, insert."""

    def __init__(self, name: eviction.PolicyName, capacity: int) -> None:
        self.policy = eviction.policy(name, queues.Links(capacity))
        self.entries: dict[int, int] = {}
        self.keys = [-1] * capacity
        self.room = list(range(capacity))

    def read(self, key: int) -> bool:
        entry = self.entries.get(key)
        if entry is not None:
            self.policy.touch(entry)
            return True
        if not self.room:
            victim = self.policy.victim(free)
            assert victim is not None
            self.policy.evict(victim, spread(self.keys[victim]))
            del self.entries[self.keys[victim]]
            self.room.append(victim)
        entry = self.room.pop()
        self.entries[key] = entry
        self.keys[entry] = key
        self.policy.insert(entry, spread(key), 1)
        return False


class Lru:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.keys: OrderedDict[int, None] = OrderedDict()

    def read(self, key: int) -> bool:
        if key in self.keys:
            self.keys.move_to_end(key)
            return True
        if len(self.keys) == self.capacity:
            self.keys.popitem(last=False)
        self.keys[key] = None
        return False


def hit_ratio(cache: Cache | Lru, reads: Iterable[int]) -> float:
    hits = [cache.read(key) for key in reads]
    return sum(hits) / len(hits)


def zipf(count: int, reads: int, rng: random.Random) -> list[int]:
    """Keys drawn with probability proportional to 1 / rank."""
    bounds = list(itertools.accumulate(1 / rank for rank in range(1, count + 1)))
    return [bisect.bisect(bounds, rng.random() * bounds[-1]) for _ in range(reads)]


# Hit ratios


def test_s3fifo_beats_lru_on_zipf_with_one_hit_wonders():
    rng = random.Random(7)
    fresh = itertools.count(10**6)
    reads = [key for hot in zipf(5000, 20_000, rng) for key in ([hot, next(fresh)] if rng.random() < 0.3 else [hot])]
    for capacity in (100, 500):
        assert hit_ratio(Cache("s3fifo", capacity), reads) > 1.1 * hit_ratio(Lru(capacity), reads)


def test_s3fifo_keeps_what_is_hot_through_a_scan():
    hot, cold = range(50), range(1000, 3000)
    s3, lru = Cache("s3fifo", 100), Lru(100)
    for cache in (s3, lru):
        for _ in range(4):
            hit_ratio(cache, hot)
        hit_ratio(cache, cold)
    assert hit_ratio(s3, hot) == 1
    assert hit_ratio(lru, hot) == 0


def test_a_ghost_goes_to_main_at_once():
    s3 = Cache("s3fifo", 100)
    hit_ratio(s3, range(200))
    assert s3.read(60) is False
    hit_ratio(s3, range(1000, 1200))
    assert s3.read(60) is True


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("times", [1.5, 2, 5])
def test_epoch_policy_serves_its_share_of_a_data_set_larger_than_the_cache(times: float, shuffled: bool):
    capacity, rng = 400, random.Random(3)
    data = list(range(int(times * capacity)))
    scan, lru = Cache("epoch", capacity), Lru(capacity)
    ratios = []
    for _ in range(6):
        if shuffled:
            rng.shuffle(data)
        ratios.append(hit_ratio(scan, data))
        if not shuffled:
            assert hit_ratio(lru, data) == 0
    assert min(ratios[1:]) >= 0.9 / times


def test_epoch_policy_lets_a_dead_version_go():
    cache = Cache("epoch", 400)
    for _ in range(3):
        hit_ratio(cache, range(800))
    ratios = [hit_ratio(cache, range(10_000, 10_800)) for _ in range(8)]
    assert ratios[0] == 0
    assert ratios[-1] >= 0.9 / 2


def test_epoch_policy_when_everything_fits():
    cache = Cache("epoch", 400)
    hit_ratio(cache, range(400))
    assert hit_ratio(cache, range(400)) == 1


# Skips, bounds, ages


@pytest.mark.parametrize("name", ["s3fifo", "epoch"])
@pytest.mark.parametrize("count", [1, 2, 10, 1000])
def test_a_victim_is_found_around_those_in_use_and_the_search_ends(name: eviction.PolicyName, count: int):
    policy = eviction.policy(name, queues.Links(count))
    for entry in range(count):
        policy.insert(entry, spread(entry), entry)
    asked: list[int] = []

    def skip(entry: int) -> bool:
        asked.append(entry)
        return True

    assert policy.victim(skip) is None
    assert len(asked) <= limits.VICTIM_SKIPS_MAX
    for wanted in {0, count // 2, count - 1}:
        found = None
        for _ in range(count):  # each call goes on where the one before gave up
            if (found := policy.victim(lambda entry, wanted=wanted: entry != wanted)) is not None:
                break
        assert found == wanted
    assert len(policy) == count


@pytest.mark.parametrize("hot", [False, True])
def test_a_queue_in_use_as_a_whole_does_not_hide_the_other(hot: bool):
    """Small all leased, or main all leased: a victim is found in the other."""
    cache = Cache("s3fifo", 2000)
    for _ in range(3):
        hit_ratio(cache, range(1500))
    hit_ratio(cache, range(2000, 4000))
    leased = {entry for key, entry in cache.entries.items() if (key < 2000) == hot}
    assert 0 < len(leased) < 2000
    for _ in range(20):
        victim = cache.policy.victim(leased.__contains__)
        assert victim is not None
        cache.policy.evict(victim, spread(cache.keys[victim]))


def test_a_transit_in_use_as_a_whole_does_not_hide_what_is_held():
    cache = Cache("epoch", 2000)
    hit_ratio(cache, range(4000))
    leased = {entry for key, entry in cache.entries.items() if key >= 2000}
    assert len(leased) > limits.VICTIM_SKIPS_MAX
    assert cache.policy.victim(leased.__contains__) is not None


def test_a_full_tier_of_hot_entries_is_decided_within_a_bound():
    links = queues.Links(5000)
    policy = s3fifo.S3Fifo(links)
    for entry in range(5000):
        policy.insert(entry, spread(entry), 1)
        policy.touch(entry, 1000)
    assert policy.victim(free) == s3fifo.PASSES_MAX
    assert sum(mark & queues.SECOND > 0 for mark in links.mark) == s3fifo.PASSES_MAX
    assert all(links.mark[entry] & queues.COUNT == 3 for entry in range(s3fifo.PASSES_MAX, 5000))


@pytest.mark.parametrize("name", ["s3fifo", "epoch"])
def test_oldest_is_when_the_next_victim_was_queued(name: eviction.PolicyName):
    policy = eviction.policy(name, queues.Links(100))
    assert policy.oldest_s() is None
    assert policy.victim(free) is None
    for entry in range(100):
        policy.insert(entry, spread(entry), 1000 + entry)
    while len(policy):
        oldest = policy.oldest_s()
        victim = policy.victim(free)
        assert victim is not None
        assert oldest == 1000 + victim
        policy.remove(victim)
    assert policy.oldest_s() is None


def test_pinned_entries_stay():
    policy = eviction.policy("pin", queues.Links(4))
    policy.insert(1, 1, 1)
    policy.insert(2, 2, 1)
    policy.touch(1)
    assert len(policy) == 2
    assert policy.victim(free) is None
    assert policy.oldest_s() is None
    policy.evict(1, 1)
    policy.remove(2)
    assert len(policy) == 0
    assert policy.expired(10**9) == []


@pytest.mark.parametrize("name", ["s3fifo", "epoch", "pin"])
def test_what_has_expired_comes_oldest_first(name: eviction.PolicyName):
    links = queues.Links(2)
    policy = eviction.policy(name, links, 60)
    links.grow(10)
    for entry in range(10):
        policy.insert(entry, spread(entry), 100 + entry)
        policy.touch(entry)
    assert policy.expired(159) == []
    assert policy.expired(164) == [0, 1, 2, 3, 4]
    assert policy.expired(164, count_max=2) == [0, 1]
    for entry in (0, 3):
        policy.remove(entry)
    policy.evict(1, spread(1))
    assert policy.expired(164) == [2, 4]
    policy.insert(1, spread(1), 165)
    assert policy.expired(10**6)[-1] == 1
    for entry in policy.expired(10**6):
        policy.remove(entry)
    assert len(policy) == 0
    assert policy.expired(10**6) == []


# Memory


def test_memory_is_13_bytes_an_entry_and_12_more_with_a_ttl():
    links = queues.Links(1000)
    assert links.memory_bytes == 13_000
    for _ in range(2):
        eviction.policy("pin", links, 60)
        assert links.memory_bytes == 25_000
    links.grow(500)
    assert links.capacity == 1000
    links.grow(2000)
    assert links.memory_bytes == 50_000


def test_a_policy_that_evicts_nothing_costs_under_a_kilobyte():
    policy = s3fifo.S3Fifo(queues.Links())
    assert policy._ghosts is None
    assert sys.getsizeof(policy) + sys.getsizeof(policy._small) + sys.getsizeof(policy._main) < 1000


# Ghosts


def test_ghosts_remember_most_of_their_lifetime_and_nothing_beyond():
    ghosts = Ghosts(1000)
    assert ghosts.memory_bytes == 4 * ghosts.capacity == 4096
    for key in range(100_000):
        ghosts.add(spread(key))
    recent = [ghosts.take(spread(key), 1000) for key in range(99_100, 100_000)]
    assert sum(recent) > 0.7 * len(recent)
    assert not any(ghosts.take(spread(key), 1000) for key in range(95_000, 98_900))
    assert not any(ghosts.take(spread(key), 1000) for key in range(99_100, 100_000))


def test_a_fingerprint_of_zero_is_no_empty_cell():
    ghosts = Ghosts(16)
    assert not ghosts.take(0, 16)
    ghosts.add(0)
    assert ghosts.take(0, 16)
    assert not ghosts.take(0, 16)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=60), st.integers(0, 2**64 - 1))
def test_the_last_ghost_is_always_there(keys: list[int], last: int):
    ghosts = Ghosts(16)
    for key in [*keys, last]:
        ghosts.add(key)
    assert ghosts.take(last, 16)


def test_ghosts_grow_with_their_policy():
    cache = Cache("s3fifo", 20)
    hit_ratio(cache, range(100))
    policy = cache.policy
    assert isinstance(policy, s3fifo.S3Fifo)
    assert policy._ghosts is not None
    assert policy._ghosts.capacity == 32
    policy._links.grow(100)
    for entry in range(20, 100):
        policy.insert(entry, spread(10_000 + entry), 1)
    policy.evict(99, spread(10_099))
    assert policy._ghosts.capacity == 128
    policy.insert(99, spread(10_099), 1)
    assert policy._links.mark[99] == queues.SECOND


# Anything goes


class PolicyAgainstSet(RuleBasedStateMachine):
    """Two policies share one `Links`; each holds exactly what was put in and not taken out."""

    @initialize(
        names=st.tuples(st.sampled_from(["s3fifo", "epoch", "pin"]), st.sampled_from(["s3fifo", "epoch"])),
        ttl_s=st.sampled_from([None, 5]),
    )
    def start(self, names: tuple[eviction.PolicyName, eviction.PolicyName], ttl_s: int | None) -> None:
        self.links = queues.Links(64)
        self.names = names
        self.policies = [eviction.policy(names[0], self.links, ttl_s), eviction.policy(names[1], self.links, ttl_s)]
        self.ttl_s = ttl_s
        self.now_s = 0
        self.inside: list[dict[int, int]] = [{}, {}]
        """Per policy: entry -> when it was inserted."""

    @rule(which=st.integers(0, 1), count=st.integers(1, 20), seconds=st.integers(0, 3))
    def insert(self, which: int, count: int, seconds: int) -> None:
        self.now_s += seconds
        room = [entry for entry in range(64) if not any(entry in inside for inside in self.inside)]
        for entry in room[:count]:
            self.policies[which].insert(entry, spread(entry), self.now_s)
            self.inside[which][entry] = self.now_s

    @rule(which=st.integers(0, 1), position=st.integers(0, 63), count=st.integers(1, 5))
    def touch(self, which: int, position: int, count: int) -> None:
        for entry in sorted(self.inside[which])[position : position + 10]:
            self.policies[which].touch(entry, count)

    @rule(which=st.integers(0, 1), busy=st.sets(st.integers(0, 63), max_size=12), times=st.integers(1, 20))
    def evict(self, which: int, busy: set[int], times: int) -> None:
        for _ in range(times):
            victim = self.policies[which].victim(busy.__contains__)
            if victim is None:
                # With few in use, every entry was tried in as many rounds as it takes.
                free_count = len(set(self.inside[which]) - busy)
                assert self.names[which] == "pin" or free_count == 0 or len(busy) > 7
                return
            assert victim in self.inside[which]
            assert victim not in busy
            self.policies[which].evict(victim, spread(victim))
            del self.inside[which][victim]

    @rule(which=st.integers(0, 1), position=st.integers(0, 63))
    def remove(self, which: int, position: int) -> None:
        for entry in sorted(self.inside[which])[position : position + 1]:
            self.policies[which].remove(entry)
            del self.inside[which][entry]

    @invariant()
    def agree(self) -> None:
        for policy, inside in zip(self.policies, self.inside, strict=True):
            assert len(policy) == len(inside)
            expired = policy.expired(self.now_s)
            due = {
                entry for entry, born in inside.items() if self.ttl_s is not None and born + self.ttl_s <= self.now_s
            }
            assert set(expired) == due
            assert [inside[entry] for entry in expired] == sorted(inside[entry] for entry in due)


TestPolicyAgainstSet = PolicyAgainstSet.TestCase
TestPolicyAgainstSet.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
