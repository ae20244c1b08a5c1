"""One tier's bookkeeping, pure: which entry lies in which slot, and who makes room for whom.

DRAM and NVMe use the same class. Slabs belong to one (space, class) at a time; each such pair has its own order of
eviction. When a block needs a slot and there is none, its own pair gives way, unless another pair's next victim is
much older: then that victim's whole slab changes sides, as far as nothing in it is leased. So classes find their share
of the tier by age, and no eviction drops more than one slab. A space over its quota pays with its own blocks only.

Memory beside the payload is charged as slabs are assigned (limits.INDEX_ENTRY_BYTES a slot), so that the budget covers
it. The tier knows nothing of segments, files, leases' owners or time's source.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from shoal_core import eviction, index, limits
from shoal_core.next_use import Clock, NextUse
from shoal_core.slabs import Slabs

_SLAB_SHIFT = limits.SLAB_SLOTS_MAX.bit_length() - 1
_SLOT_MASK = limits.SLAB_SLOTS_MAX - 1

STEAL_AGE_RATIO = 2
"""Another pair's next victim must be this many times older than one's own before its slab is taken."""

VICTIM_TRIES = 8
"""That `victims` finds none does not mean that there is none: each search looks at other candidates."""


class Tier:
    """Slots, orders of eviction and the way back from a slot to its entry."""

    def __init__(
        self,
        slab_bytes: int,
        classes: tuple[int, ...],
        make_policy: Callable[[int, eviction.Links], eviction.Policy],
        charge: Callable[[int, int], bool],
        slots: array[int],
    ) -> None:
        self.slabs = Slabs(slab_bytes, classes)
        self.links = eviction.Links()
        self.evictions = 0
        self._make_policy = make_policy
        self._charge = charge
        self._slots = slots
        self._policies: dict[tuple[int, int], eviction.Policy] = {}
        self._clocks: dict[int, Clock] = {}
        """Of the spaces that somebody made plans for: what is known of next uses goes before their own order."""
        self._entries: list[array[int]] = []
        """By slab, by index in the slab: the entry in that slot, or index.NONE."""

    def policy(self, space: int, class_index: int) -> eviction.Policy:
        found = self._policies.get((space, class_index))
        if found is None:
            found = self._policies[space, class_index] = self._made(space)
        return found

    def slot_bytes_for(self, size: int) -> int:
        """Of the smallest slot that holds `size` bytes."""
        return self.slabs.classes[self.slabs.class_of(size)]

    def add_slab(self) -> int:
        self._entries.append(array("I"))
        return self.slabs.add_slab()

    def assign(self, space: int, class_index: int, slab: int | None = None) -> int | None:
        """Give an unassigned slab to (space, class); None when there is none or its index does not fit the budget."""
        slot_bytes = self.slabs.classes[class_index]
        slots = self.slabs.slab_bytes // slot_bytes
        if not self.slabs.unassigned_count or not self._charge(slots, slot_bytes):
            return None
        slab = self.slabs.assign(space, class_index, slab)
        if slab is not None:
            self._entries[slab] = array("I", [index.NONE]) * slots
            self.policy(space, class_index)  # also if no block ever lies in it: `release_empty` looks at these
        return slab

    def unassign(self, slab: int) -> None:
        _, class_index = self.slabs.assignment(slab) or (0, 0)
        self.slabs.release(slab)
        self._charge(-len(self._entries[slab]), self.slabs.classes[class_index])
        self._entries[slab] = array("I")

    def insert(self, entry: int, slot: int, key_hash: int, now_s: int, use: int | None = None) -> None:
        """The block of `entry` now lies in `slot`, which was taken before. `use`: its next use, if that is known."""
        if entry >= self.links.capacity:
            self.links.grow(entry + 4096)
        slab = slot >> _SLAB_SHIFT
        self._slots[entry] = slot
        self._entries[slab][slot & _SLOT_MASK] = entry
        space, class_index = self.slabs.assignment(slab) or (0, 0)
        self.policy(space, class_index).insert(entry, key_hash, now_s)  # type: ignore[arg-type]
        if use is not None:
            self.plan(entry, use)

    def touch(self, entry: int, count: int = 1) -> None:
        self._policy_of(self._slots[entry]).touch(entry, count)

    # Next uses

    def follow(self, space: int, clock: Clock) -> None:
        """Plans are made for a space: from now on next uses, on that clock, go before its order of eviction."""
        if self._clocks.get(space) is not clock:
            self._clocks[space] = clock
            for pair, policy in self._policies.items():
                if pair[0] == space:
                    self._policies[pair] = eviction.with_next_use(policy, self.links, clock)

    def plan(self, entry: int, use: int) -> None:
        """The entry is used next at `use`."""
        if isinstance(policy := self._policy_of(self._slots[entry]), NextUse):
            policy.plan(entry, use)

    def next_use(self, entry: int) -> int | None:
        """When the entry, if it is here, is used next, if that is known."""
        policy = self._policy_of(self._slots[entry]) if entry in self else None
        return policy.next_use(entry) if isinstance(policy, NextUse) else None

    def gives_way(self, space: int, class_index: int, use: int, count: int) -> bool:
        """Whether so many blocks that are used at `use` would push out none that is used sooner."""
        own = self._policies.get((space, class_index))
        if isinstance(own, NextUse) and own.gives_way(use, count) >= count:
            return True
        # With little of its own a pair takes from others, by age.
        length = len(own) if own is not None else 0
        return length < count and len(self) > length

    def any_sooner(self, entries: list[int], space: int, use: int) -> bool:
        """Whether one of them is of that space and known to be used at `use` or before."""
        for entry in entries:
            assigned = self.slabs.assignment(self._slots[entry] >> _SLAB_SHIFT)
            known = self.next_use(entry) if assigned is not None and assigned[0] == space else None
            if known is not None and known <= use:
                return True
        return False

    def forget_uses(self, space: int) -> None:
        """The space's clock starts over."""
        for (of, _), policy in self._policies.items():
            if of == space and isinstance(policy, NextUse):
                policy.forget_uses()

    def _made(self, space: int) -> eviction.Policy:
        policy, clock = self._make_policy(space, self.links), self._clocks.get(space)
        return policy if clock is None else eviction.with_next_use(policy, self.links, clock)

    # Room

    def lends(self, entry: int, hit: bool) -> bool:
        """Whether a lease on the entry leaves the order of eviction as it is: always so while nothing has to go."""
        return not self.evictions or (hit and self._policy_of(self._slots[entry]).keeps(entry))

    def remove(self, entry: int, evicted_hash: int | None = None) -> int:
        """Forget the entry here; its slot, still taken, is the caller's to free.

        With `evicted_hash` it made room, and the policy may remember it.
        """
        slot = self._slots[entry]
        policy = self._policy_of(slot)
        if evicted_hash is None:
            policy.remove(entry)
        else:
            policy.evict(entry, evicted_hash)
            self.evictions += 1
        self._slots[entry] = index.NO_SLOT
        self._entries[slot >> _SLAB_SHIFT][slot & _SLOT_MASK] = index.NONE
        return slot

    def shrink(
        self, space: int, quota_bytes: int | None, skip: Callable[[int], bool], evict: Callable[[int], None]
    ) -> None:
        """Evict the space's own down to its quota, as far as they may go."""
        tries = VICTIM_TRIES
        while tries and self.exceeds(space, quota_bytes):
            found = self.victims(space, 1, 0, quota_bytes, skip)
            tries = VICTIM_TRIES if found else tries - 1
            for entry in found:
                evict(entry)

    def exceeds(self, space: int, quota_bytes: int | None) -> bool:
        """Whether a space has more than its quota here."""
        return quota_bytes is not None and self.slabs.space_used_bytes(space) > quota_bytes

    def __contains__(self, entry: int) -> bool:
        return self._slots[entry] != index.NO_SLOT

    def take(self, space: int, size: int) -> int | None:
        """A slot for `size` bytes if one is free or a slab can be assigned; evicts nothing."""
        class_index = self.slabs.class_of(size)
        slot = self.slabs.take(space, class_index)
        if slot is None and self.assign(space, class_index) is not None:
            slot = self.slabs.take(space, class_index)
        return slot

    def victims(
        self, space: int, size: int, now_s: int, quota_bytes: int | None, skip: Callable[[int], bool]
    ) -> list[int]:
        """Entries to drop so that `take` can succeed: one, one slab's worth, or none when nothing can go now."""
        class_index = self.slabs.class_of(size)
        if quota_bytes is not None:
            over = self.slabs.space_used_bytes(space) + self.slabs.classes[class_index] > quota_bytes
            if over:
                return self._quota_victims(space, class_index, skip)
        own = self._policies.get((space, class_index))
        own_age = self._age(own, now_s) if own is not None else -1
        stalest = max(self._policies.values(), key=lambda policy: self._age(policy, now_s), default=None)
        steal = stalest is not None and stalest is not own and self._age(stalest, now_s) > STEAL_AGE_RATIO * own_age
        if steal and stalest is not None and (slab_victims := self._slab_victims(stalest, skip)):
            return slab_victims
        if own is not None and (entry := own.victim(skip)) is not None:
            return [entry]
        for policy in self._policies.values():
            if policy is not own and len(policy) and (slab_victims := self._slab_victims(policy, skip)):
                return slab_victims
        return []

    def release_empty(self, but: tuple[int, int]) -> int:
        """Unassign slabs that hold nothing, except those of one (space, class); how many."""
        count = 0
        for space in {space for space, _ in self._policies}:
            for slab in self.slabs.empty_slabs(space):
                if self.slabs.assignment(slab) != but:
                    self.unassign(slab)
                    count += 1
        return count

    def expired(self, now_s: int, count_max: int) -> list[int]:
        """Up to so many of each pair, oldest first."""
        return [entry for policy in self._policies.values() for entry in policy.expired(now_s, count_max)]

    def renew(self, space: int, key_hashes: array[int], now_s: int) -> None:
        """The space's settings have changed: its blocks are queued anew, as if they had come now."""
        for (of, class_index), old in list(self._policies.items()):
            if of == space:
                new = self._policies[of, class_index] = self._made(space)
                for slab in self.slabs.slabs_of(space, class_index):
                    for entry in self.entries(slab):
                        if entry != index.NONE:
                            use = old.next_use(entry) if isinstance(old, NextUse) else None
                            old.remove(entry)
                            new.insert(entry, key_hashes[entry], now_s)
                            if use is not None and isinstance(new, NextUse):
                                new.plan(entry, use)

    def recovered(self) -> None:
        """All that was found at the start is inserted."""
        for policy in self._policies.values():
            policy.sort_births()

    def __len__(self) -> int:
        return sum(len(policy) for policy in self._policies.values())

    def entries(self, slab: int) -> list[int]:
        """Entries in one slab."""
        mine = self._entries[slab]
        return [mine[slot & _SLOT_MASK] for slot in self.slabs.used_slots(slab)]

    @property
    def memory_bytes(self) -> int:
        """Of the links and the way back from slots; the slabs' own tables add about 5 bytes a slot."""
        return self.links.memory_bytes + sum(len(column) * 4 for column in self._entries)

    def check(self, entries: index.Index) -> None:
        """Assert that slots, entries and orders of eviction agree; for tests and simulation."""
        used_bytes = placed = 0
        for slab in range(self.slabs.slab_count):
            if self.slabs.assignment(slab) is None:
                assert not self._entries[slab]
                continue
            for slot in self.slabs.used_slots(slab):
                used_bytes += self.slabs.slot_bytes(slot)
                entry = self._entries[slab][slot & _SLOT_MASK]
                if entry != index.NONE:
                    placed += 1
                    assert self._slots[entry] == slot, "an entry and its slot name different partners"
                    assert entries.size[entry] <= self.slabs.slot_bytes(slot)
                    assert entries.space[entry] == (self.slabs.assignment(slab) or (None,))[0]
            assert sum(entry != index.NONE for entry in self._entries[slab]) == len(
                [entry for entry in self.entries(slab) if entry != index.NONE]
            ), "an entry lies in a free slot"
        assert used_bytes == self.slabs.used_bytes
        assert placed == len(self), "a policy counts other entries than lie in slots"

    def _policy_of(self, slot: int) -> eviction.Policy:
        return self._policies[self.slabs.assignment(slot >> _SLAB_SHIFT)]  # type: ignore[index]

    @staticmethod
    def _age(policy: eviction.Policy, now_s: int) -> int:
        oldest = policy.oldest_s()
        return -1 if oldest is None else now_s - oldest

    def _quota_victims(self, space: int, class_index: int, skip: Callable[[int], bool]) -> list[int]:
        own = self._policies.get((space, class_index))
        rest = [policy for (of, _), policy in self._policies.items() if of == space and policy is not own]
        for policy in ([own] if own is not None else []) + rest:
            if len(policy) and (entry := policy.victim(skip)) is not None:
                return [entry]
        return []

    def _slab_victims(self, policy: eviction.Policy, skip: Callable[[int], bool]) -> list[int]:
        """Everything in the slab of the policy's next victim, or nothing when any of it must stay."""
        entry = policy.victim(skip)
        if entry is None:
            return []
        whole = self.entries(self._slots[entry] >> _SLAB_SHIFT)
        return whole if not any(other == index.NONE or skip(other) for other in whole) else []
