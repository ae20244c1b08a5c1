"""A model of the node's state: what bytes lie in each slot, and who relies on them.

`StateModel` plays the runtime: it fills what was reserved, carries out actions, passes blocks on to clients, and keeps
its own account of all that. What must hold at any time is asserted on the way and in the invariants; `teardown` gives
everything back and looks for what is left. The rules that drive it are in test_state.py.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from shoal_core import index, keys
from shoal_node import actions
from shoal_node.spaces import space_of
from shoal_node.state import NodeState

SLAB = 64 << 10
BUDGET = 1280 << 10
LEASE_MAX = 128 << 10
DISK_SLABS = 6
SPACES: list[dict[str, Any]] = [
    {"name": "default"},
    {"name": "quota", "quota_bytes": 100_000},
    {"name": "pinned", "eviction": "pin", "quota_bytes": 90_000},
    {"name": "scan", "eviction": "epoch", "ttl_s": 10},
]
SIZES = [65_536, 20_000, 300]
KEY_COUNT = 36


def make_state(disk_slabs: int = DISK_SLABS) -> NodeState:
    state = NodeState(BUDGET, SLAB, SLAB, LEASE_MAX, disk_slabs)
    for settings_of in SPACES:
        state.add_space(
            space_of("tenant", settings_of["name"], **{k: v for k, v in settings_of.items() if k != "name"})
        )
    return state


def block(number: int) -> tuple[bytes, int, int, bytes]:
    """(key, space, size, digest table) of block `number`: always the same."""
    key = keys.block_key(bytes(16), number)
    size = SIZES[number // len(SPACES) % len(SIZES)]
    return key, number % len(SPACES), size, bytes([number]) * 8


@dataclass
class ModelClient:
    standing: bool = True
    leases: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """By entry: (number of the lease, slot, block)."""
    asked: list[tuple[int, int]] = field(default_factory=list)


class StateModel(RuleBasedStateMachine):
    @initialize(disk=st.sampled_from([True, True, False]))
    def begin(self, disk: bool) -> None:
        self.state = make_state(DISK_SLABS if disk else 0)
        self.now_s = 1000
        self.slots: dict[int, int | None] = {}
        """What the memory of each slot holds: a block, or None while it is written to."""
        self.fills: dict[int, int] = {}
        """Slot being filled, by block."""
        self.promotions: dict[int, tuple[int, int]] = {}
        """(entry, slot) being read from disk, by block."""
        self.held: list[tuple[int, int]] = []
        """(entry, block) held for a send."""
        self.disk_slots: dict[int, int] = {}
        """What was written into each slot of the disk."""
        self.disk_writes: list[tuple[int, int, int]] = []
        """(entry, disk slot, block) being written."""
        self.clients: dict[bytes, ModelClient] = {}
        self.client_count = 0
        self.positions: dict[tuple[tuple[bytes, bytes], int], int] = {}
        """Of the streams that live, by ((client, stream), space)."""
        self.growth = 0
        self.bad: set[int] = set()
        """Slots whose memory is not trusted any more."""
        self.generations: set[tuple[int, int]] = set()
        size = self.state.layout.next_segment_bytes()
        self.state.segment_added(size)

    def carry_out(self) -> None:
        pending, self.state.actions = self.state.actions, []
        for action in pending:
            match action:
                case actions.Grow(size):
                    assert not self.growth, "one segment at a time"
                    self.growth = size
                case actions.Revoke(identity, grants):
                    client = self.clients[identity]
                    for entry, lease in grants:
                        assert client.leases[entry][0] == lease, "asked for what it holds"
                        assert entry not in [asked for asked, _ in client.asked], "asked twice without an answer"
                    client.asked += grants
                case actions.EraseDisk(slot):
                    assert all(slot != written for _, written, _ in self.disk_writes)
                case _:
                    pass

    def relied_on(self) -> dict[int, int | None]:
        """Slots whose bytes somebody may read or write now."""
        slots: dict[int, int | None] = dict.fromkeys(self.fills.values())
        slots.update(dict.fromkeys(slot for _, slot in self.promotions.values()))
        for entry, number in self.held + [(entry, number) for entry, _, number in self.disk_writes]:
            slots[self.state.index.dram_slot[entry]] = number
        for client in self.clients.values():
            slots.update({slot: number for _, slot, number in client.leases.values()})
        return slots

    def reserved(self, number: int, use: int | None = None) -> int | None:
        _, space, size, _ = block(number)
        relied_on = self.relied_on()
        slot = self.state.reserve(space, size, self.now_s, use)
        if slot is None and use is not None:
            pass  # what is there is used sooner
        elif slot is None:
            self.refused(number)
        else:
            assert slot not in relied_on, "a slot that somebody relies on was given away"
            assert slot not in self.bad, "quarantine ended"
            self.slots[slot] = None
        self.carry_out()
        return slot

    def refused(self, number: int) -> None:
        """A refusal has a reason."""
        space = self.state.spaces[block(number)[1]]
        busy = self.relied_on() or self.growth or self.state.layout.growing_bytes or self.state.quarantined_bytes
        pinned = any(
            self.state.spaces[block(other)[1]].eviction == "pin" for other in range(KEY_COUNT) if self.present(other)
        )
        assert busy or pinned or space.quota_bytes is not None

    def present(self, number: int) -> bool:
        return self.state.lookup(block(number)[0]) != index.NONE

    def pass_on(self, entry: int, number: int, client: int) -> None:
        """A held entry goes to a client under a lease, or is sent."""
        standing = [identity for identity, model in self.clients.items() if model.standing]
        if client and standing:
            identity = standing[client % len(standing)]
            found = self.state.leases.clients[identity]
            if self.state.leases.may_grant(found, entry):
                lease = self.state.leases.grant(found, entry)
                self.clients[identity].leases[entry] = lease, self.state.index.dram_slot[entry], number
                self.clients[identity].asked = [a for a in self.clients[identity].asked if a[0] != entry]
                return
        self.held.append((entry, number))

    def publish(self, number: int, client: int) -> None:
        key, space, size, table = block(number)
        slot = self.fills.pop(number)
        self.slots[slot] = number
        entry = self.state.publish(key, space, size, slot, table, self.now_s)
        identity = entry, self.state.index.generation[entry]
        assert identity not in self.generations, "an entry came back under the same generation"
        self.generations.add(identity)
        self.carry_out()
        self.pass_on(entry, number, client)

    def promote(self, number: int, good: bool, client: int) -> None:
        entry, slot = self.promotions.pop(number)
        table = block(number)[3]
        dropped = self.state.index.find(block(number)[0]) != entry
        self.slots[slot] = number
        assert self.state.promoted(entry, slot, table if good else b"corrupt.", self.now_s) == (good and not dropped)
        self.carry_out()
        if good and not dropped:
            self.pass_on(entry, number, client)
        else:
            assert not self.present(number)

    def sent_one(self, position: int) -> None:
        entry, number = self.held.pop(position)
        assert self.slots[self.state.index.dram_slot[entry]] == number
        self.state.unhold(entry)
        self.carry_out()

    def finish_write(self, position: int, good: bool) -> None:
        entry, slot, number = self.disk_writes.pop(position)
        assert self.slots[self.state.index.dram_slot[entry]] == number, "the source changed while it was written"
        if good:
            self.state.disk_written(entry, slot, self.now_s)
        else:
            self.state.disk_failed(entry, slot)
        self.carry_out()

    @invariant()
    def the_state_agrees(self) -> None:
        state = self.state
        state.check()
        for number in range(KEY_COUNT):
            entry = state.index.find(block(number)[0])
            if entry == index.NONE:
                continue
            assert state.index.size[entry] == block(number)[2] and state.index.space[entry] == block(number)[1]
            if (slot := state.index.dram_slot[entry]) != index.NO_SLOT:
                assert self.slots[slot] == number
            if (slot := state.index.disk_slot[entry]) != index.NO_SLOT:
                assert self.disk_slots[slot] == number
            assert number not in self.fills, "listed before it was published"
        for slot, number in self.relied_on().items():
            assert number is None or self.slots[slot] == number

    @invariant()
    def no_two_rely_on_the_same_bytes(self) -> None:
        ranges = []
        for slot in self.relied_on():
            segment, offset = self.state.slot_address(slot)
            ranges.append((segment, offset, offset + self.state.dram.slabs.slot_bytes(slot)))
        ranges.sort()
        for (segment, _, end), (following, start, _) in itertools.pairwise(ranges):
            assert segment != following or end <= start

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        state = self.state
        for slot in self.fills.values():
            state.give_back(slot)
        for number, (entry, slot) in self.promotions.items():
            state.promoted(entry, slot, b"corrupt.", self.now_s)
            assert state.lookup(block(number)[0]) == index.NONE
        for entry, _ in self.held:
            state.unhold(entry)
        for entry, slot, _ in self.disk_writes:
            state.disk_failed(entry, slot)
        for identity in self.clients:
            state.connection_ended(identity, events=True)
        for number in range(KEY_COUNT):
            if (entry := state.index.find(block(number)[0])) != index.NONE:
                state.drop(entry)
        state.check()
        assert state.dram.slabs.used_bytes == state.quarantined_bytes == sum(map(state.dram.slabs.slot_bytes, self.bad))
        assert state.disk is None or state.disk.slabs.used_bytes == len(state.disk) == 0
        assert len(state.index) == len(state.dram) == state.leases.count == 0
        assert len(state.index._free) == state.index.capacity, "an entry was lost"
        assert not any(state.index.leases)
