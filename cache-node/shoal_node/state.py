"""What a node knows and decides; it does no I/O, reads no clock, draws no chance.

Every method is an event ("these bytes arrived", "that client is gone") or a question (`lookup`); what has to be done
outside is appended to `actions`, which the runtime drains after each step under its one lock. The life of a block:

    miss      -> `reserve` a slot (somebody may have to go) -> bytes arrive in it -> `publish`
    published -> found by `lookup`, leased to clients, written behind to disk (`next_disk_write`, `disk_written`)
    evicted   -> out of DRAM; if it is on disk it stays known and comes back by `reserve` and `promoted`
    dropped   -> found by nobody; its slot is free when its last lease ends

A block is in the index only when its data, digests and entry are in place; nothing half-filled is ever visible.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable

from shoal_core import digests, eviction, index, limits
from shoal_core.errors import InvariantBroken
from shoal_node import actions, disk_room, invariants
from shoal_node.dram_layout import DramLayout
from shoal_node.leases import Leases
from shoal_node.objects import Objects
from shoal_node.spaces import Space, tier_classes
from shoal_node.streams import Streams
from shoal_node.tier import VICTIM_TRIES, Tier

_DROPPED, _QUARANTINED = 1, 2
"""Bits of `Index.state`: out of the table; its slot is kept from use."""


class NodeState:
    """The whole state of one node for one tenant."""

    def __init__(
        self,
        dram_budget_bytes: int,
        slab_bytes: int,
        block_size_bytes: int,
        lease_bytes_max: int,
        disk_slab_count: int = 0,
    ) -> None:
        self.index = index.Index()
        self.objects = Objects()
        self.leases = Leases(self.index, lease_bytes_max)
        self.streams = Streams()
        self.spaces: list[Space] = []
        self.actions: list[actions.Action] = []
        self.layout = DramLayout(dram_budget_bytes, slab_bytes)
        self.quarantined_bytes = 0
        self.disk_writes_skipped = 0
        self.ended: Callable[[int, str], None] = lambda entry, reason: None
        """Told of each entry that nobody finds any more, and why; for `explain`."""
        self.room_wanted = False
        """Somebody waits for a slot: `SpaceFreed` is worth saying."""
        self._blocked: list[int] = []
        self.over_quota: set[int] = set()
        """Spaces whose quota was lowered below what is in use."""
        self._unpublished = 0
        """Slots reserved and neither published nor given back."""
        self._to_disk: deque[tuple[int, int]] = deque()
        dram_classes, disk_classes = tier_classes(slab_bytes, block_size_bytes)
        self.dram = Tier(slab_bytes, dram_classes, self._policy, self.layout.charge_dram, self.index.dram_slot)
        self.disk: Tier | None = None
        if disk_slab_count:
            self.disk = Tier(slab_bytes, disk_classes, self._policy, self.layout.charge_disk, self.index.disk_slot)
            for _ in range(disk_slab_count):
                self.disk.add_slab()
        self.tiers = [self.dram] if self.disk is None else [self.dram, self.disk]

    # Spaces

    def add_space(self, space: Space, now_s: int = 0) -> int:
        """Its number. A space of that name that exists keeps its blocks and takes the new settings."""
        for number, known in enumerate(self.spaces):
            if known.name == space.name:
                self.spaces[number] = space
                if (known.eviction, known.ttl_s) != (space.eviction, space.ttl_s):
                    for tier in self.tiers:
                        tier.renew(number, self.index.key_low, now_s)
                self._shrink(number)
                return number
        self.spaces.append(space)
        return len(self.spaces) - 1

    def _shrink(self, space: int) -> None:
        """Evict down to a quota that was lowered. What is in use is asked back, and follows as leases end."""
        quota = self.spaces[space].quota_bytes
        self._blocked.clear()
        for tier in self.tiers:
            tier.shrink(space, quota, self.leased, functools.partial(self.evict, tier, reason="quota"))
        over = any(tier.exceeds(space, quota) for tier in self.tiers)
        (self.over_quota.add if over else self.over_quota.discard)(space)
        self._ask_back(self._blocked)

    # DRAM arrives

    def segment_added(self, size: int) -> None:
        for _ in range(self.layout.add_segment(size)):
            self.dram.add_slab()
        self._room()

    def segment_failed(self) -> None:
        self.layout.stop_growing()
        self._room()

    # Hot path

    def lookup(self, key: bytes) -> int:
        """The entry whose bytes are in DRAM, or index.NONE."""
        entry = self.index.find(key)
        return entry if entry != index.NONE and self.index.dram_slot[entry] != index.NO_SLOT else index.NONE

    def hold(self, entry: int) -> None:
        """A transfer lease: the slot stays while bytes are sent, written or about to be granted."""
        self.index.leases[entry] += 1

    def unhold(self, entry: int) -> None:
        self.index.leases[entry] -= 1
        self._lease_ended(entry)

    def touch(self, entry: int, generation: int, count: int) -> None:
        if self.index.generation[entry] == generation and not self.index.state[entry] & _DROPPED:
            for tier in self.tiers:
                if entry in tier:
                    tier.touch(entry, count)

    def hit(self, entry: int) -> None:
        """A block that `lookup` just found was asked for."""
        self.dram.touch(entry)
        if self.disk is not None and self.index.disk_slot[entry] != index.NO_SLOT:
            self.disk.touch(entry)

    def plan(self, entry: int, use: int) -> None:
        """A block that is known is used next at `use`, on its space's clock."""
        for tier in self.tiers:
            if entry in tier:
                tier.plan(entry, use)

    def address(self, entry: int) -> tuple[int, int]:
        """(segment, byte offset in it) of the entry's block in DRAM."""
        return self.slot_address(self.index.dram_slot[entry])

    def slot_address(self, slot: int) -> tuple[int, int]:
        return self.layout.locate(self.dram.slabs, slot)

    def digest_table(self, entry: int) -> memoryview:
        """The page digests of a block in DRAM."""
        slot = self.index.dram_slot[entry]
        return self.layout.digests(slot, self.dram.slabs.slot_bytes(slot), self.index.size[entry])

    # Fills

    def reserve(self, space: int, size: int, now_s: int, use: int | None = None) -> int | None:
        """A slot to fill, or None: nothing can go now. What stands in the way was asked back.

        With `use`, the next use of a block that nobody waits for, nothing of its space that is used sooner goes.
        """
        quota = self.spaces[space].quota_bytes
        tier = self.dram
        self._blocked.clear()
        for _ in range(VICTIM_TRIES):
            fits = quota is None or tier.slabs.space_used_bytes(space) + tier.slot_bytes_for(size) <= quota
            if fits and (slot := tier.take(space, size)) is not None:
                self._unpublished += 1
                self._grow_ahead()
                self._ask_back(self._blocked)
                return slot
            if fits and self._grow():
                self.room_wanted = True
                return None
            victims = tier.victims(space, size, now_s, quota, self.leased)
            if use is not None and tier.any_sooner(victims, space, use):
                self._blocked.clear()
                break
            for entry in victims:
                self.evict(tier, entry, "evicted" if fits else "quota")
            tier.release_empty((space, tier.slabs.class_of(size)))
        self._ask_back(self._blocked)
        self.room_wanted = True
        return None

    def give_back(self, slot: int) -> None:
        """A reserved slot was not filled after all."""
        self._unpublished -= 1
        self.dram.slabs.free(slot)
        self._room()

    def can_wait_for_room(self) -> bool:
        """Whether the `reserve` just refused may succeed soon: memory is being made, leases or fills are in the way."""
        return bool(self.layout.growing_bytes or self._blocked or self._unpublished)

    def publish(
        self, key: bytes, space: int, size: int, slot: int, table: bytes, now_s: int, use: int | None = None,
        keep: bool = True,
    ) -> int:  # fmt: skip
        """The slot holds the block's verified bytes: list it. Returns its entry, held once for the caller.

        `keep`: it is to go to the disk as well.
        """
        if self.index.find(key) != index.NONE:
            raise InvariantBroken(f"block {key.hex()} published twice")
        entry = self.index.add(key, space, size)
        self.index.checksum[entry] = digests.checksum(table)
        self._place(entry, slot, table, now_s, use)
        if self.disk is not None and keep:
            self._to_disk.append((entry, self.index.generation[entry]))
            self.actions.append(actions.WriteDisk())
        return entry

    def promoted(self, entry: int, slot: int, table: bytes, now_s: int) -> bool:
        """Bytes came up from disk. False: they are not what was written; the entry is gone, the slot given back."""
        if self.index.state[entry] & _DROPPED or digests.checksum(table) != self.index.checksum[entry]:
            self.drop(entry, erase=True, reason="corrupt")
            self.unhold(entry)
            self.give_back(slot)
            return False
        assert self.disk is not None
        self._place(entry, slot, table, now_s, self.disk.next_use(entry))
        self.index.leases[entry] -= 1  # the reader's own hold; _place gave the caller one
        return True

    def _place(self, entry: int, slot: int, table: bytes, now_s: int, use: int | None) -> None:
        self.layout.put_digests(slot, self.dram.slabs.slot_bytes(slot), table)
        self.dram.insert(entry, slot, self.index.key_low[entry], now_s, use)
        self.index.leases[entry] += 1
        self._unpublished -= 1

    # Disk

    def next_disk_write(self, now_s: int) -> tuple[int, int] | None:
        """(entry, disk slot) of a block to write now, held until `disk_written`; None when there is none."""
        assert self.disk is not None
        while self._to_disk:
            entry, generation = self._to_disk.popleft()
            current = self.index.generation[entry] == generation and not self.index.state[entry] & _DROPPED
            if not current or self.index.disk_slot[entry] != index.NO_SLOT:
                continue
            slot = disk_room.reserve(self, self.index.space[entry], self.index.size[entry], now_s)
            if slot is None:
                self.disk_writes_skipped += 1
                continue
            self.hold(entry)
            return entry, slot
        return None

    def skip_disk_writes(self) -> int:
        """The disk takes no more: what waits for it stays in DRAM only. How many that were."""
        count = len(self._to_disk)
        self._to_disk.clear()
        self.disk_writes_skipped += count
        return count

    @property
    def disk_queue(self) -> int:
        return len(self._to_disk)

    def disk_written(self, entry: int, slot: int, now_s: int) -> None:
        assert self.disk is not None
        if self.index.state[entry] & _DROPPED or self.index.disk_slot[entry] != index.NO_SLOT:  # queued twice
            self.disk.slabs.free(slot)
            self.actions.append(actions.EraseDisk(slot))
        else:
            self.disk.insert(entry, slot, self.index.key_low[entry], now_s, self.dram.next_use(entry))
        self.unhold(entry)

    def disk_failed(self, entry: int, slot: int) -> None:
        """The write failed: the block stays in DRAM only, the slot goes back."""
        assert self.disk is not None
        self.disk.slabs.free(slot)
        self.unhold(entry)

    def recovered(self, key: bytes, space: int, size: int, checksum: int, slot: int, now_s: int) -> bool:
        """A record found on disk at start. False when its slot or key is taken: the record is to be ignored."""
        assert self.disk is not None
        if self.index.find(key) != index.NONE:
            return False
        try:
            self.disk.slabs.restore(slot)
        except ValueError:
            return False
        entry = self.index.add(key, space, size)
        self.index.checksum[entry] = checksum
        self.disk.insert(entry, slot, self.index.key_low[entry], now_s)
        return True

    def recovery_ended(self) -> None:
        """All that was found is listed; what a quota does not allow any more goes."""
        assert self.disk is not None
        self.disk.recovered()
        for space in range(len(self.spaces)):
            self._shrink(space)

    # Leases and endings

    def connection_ended(self, identity: bytes, events: bool) -> None:
        if events:
            self.streams.gone(identity)
        for entry in self.leases.gone(identity, events):
            self._lease_ended(entry)

    def released(self, identity: bytes, grants: list[tuple[int, int]]) -> int:
        client = self.leases.clients.get(identity)
        ended = [grant for grant in grants if client is not None and self.leases.release(client, *grant)]
        for entry, _ in ended:
            self._lease_ended(entry)
        if len(ended) < len(grants):  # the rest was granted anew before this came: what is over its quota asks again
            for space in tuple(self.over_quota):
                self._shrink(space)
        return len(ended)

    def revoke_busy(self, identity: bytes, grants: list[tuple[int, int]]) -> None:
        """The client has live views: it may be asked again later."""
        if (client := self.leases.clients.get(identity)) is not None:
            client.asked.difference_update(entry for entry, _ in grants)

    def is_dropped(self, entry: int) -> bool:
        """Whether a held block was dropped, and goes with its last lease."""
        return bool(self.index.state[entry] & _DROPPED)

    def drop(self, entry: int, erase: bool = False, quarantine: bool = False, reason: str = "dropped") -> bool:
        """Nobody finds the block any more; False if so already. With `quarantine` its DRAM slot is never used again."""
        if self.index.state[entry] & _DROPPED:
            return False
        self.ended(entry, reason)
        self.index.unlink(entry)
        self.index.state[entry] |= _DROPPED | (_QUARANTINED if quarantine else 0)
        if self.disk is not None and self.index.disk_slot[entry] != index.NO_SLOT:
            slot = self.disk.remove(entry)
            self.disk.slabs.free(slot)
            if erase:
                self.actions.append(actions.EraseDisk(slot))
        self._ask_back([entry] if self.index.leases[entry] else [])
        self._lease_ended(entry)
        return True

    def _lease_ended(self, entry: int) -> None:
        if self.index.leases[entry]:
            return
        if self.index.state[entry] & _DROPPED:
            if self.index.dram_slot[entry] != index.NO_SLOT:
                slot = self.dram.remove(entry)
                if self.index.state[entry] & _QUARANTINED:
                    self.quarantined_bytes += self.dram.slabs.slot_bytes(slot)
                else:
                    self.dram.slabs.free(slot)
            self.index.recycle(entry)
        if self.index.space[entry] in self.over_quota:
            self._shrink(self.index.space[entry])
        self._room()

    def evict(self, tier: Tier, entry: int, reason: str = "evicted") -> None:
        """Out of one tier, and out of the index when it is in no other."""
        tier.slabs.free(tier.remove(entry, self.index.key_low[entry]))
        if self.index.dram_slot[entry] == self.index.disk_slot[entry] == index.NO_SLOT:
            self.disk_writes_skipped += tier is self.dram and self.disk is not None
            self.ended(entry, reason)
            self.index.unlink(entry)
            self.index.recycle(entry)

    # Room

    def leased(self, entry: int) -> bool:
        """Whether it may not go now; then it stands in the way, and may be asked back."""
        if self.index.leases[entry]:
            self._blocked.append(entry)
            return True
        return False

    def _ask_back(self, entries: list[int]) -> None:
        """Whoever holds leases on these is to give them back."""
        wanted = self.leases.ask_back(dict.fromkeys(entries[: limits.REVOKE_BATCH_MAX]))
        self.actions += [actions.Revoke(identity, grants) for identity, grants in wanted.items()]

    def _room(self) -> None:
        if self.room_wanted:
            self.room_wanted = False
            self.actions.append(actions.SpaceFreed())

    def _grow(self) -> bool:
        """Whether more memory is on its way, so that evicting would be premature."""
        if not self.layout.growing_bytes and (size := self.layout.next_segment_bytes()):
            self.layout.growing_bytes = size
            self.actions.append(actions.Grow(size))
        return bool(self.layout.growing_bytes)

    def _grow_ahead(self) -> None:
        # The next segment takes a fraction of a second to make: ask while a third of the last is still unassigned.
        if self.dram.slabs.unassigned_count * self.layout.slab_bytes * 3 < self.layout.segment_bytes:
            self._grow()

    def _policy(self, space: int, links: eviction.Links) -> eviction.Policy:
        return eviction.policy(self.spaces[space].eviction, links, self.spaces[space].ttl_s)

    def check(self) -> None:
        """Assert what must hold after every step; for tests and simulation, it reads everything."""
        invariants.check(self)
