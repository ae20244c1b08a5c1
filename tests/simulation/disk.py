"""A disk that outlives the process: slots with records and payloads, slow, forgetful and torn as disks are.

What the real tier promises: a write voids the slot's record, writes the payload, then the record; killed at any point
the slot has the old block, the new one, or none. After a loss of power a record may describe bytes that never arrived.
`Writer` writes behind in the order of the real one: erasures and assignments first, then payloads, a few at once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from shoal_core import limits
from shoal_node import actions
from shoal_node.disk_writer import DISK_FAILURES_MAX
from shoal_node.tiers.nvme import Record
from tests.simulation.world import MS, US, Future, S, Work, World

if TYPE_CHECKING:
    from tests.simulation.sim_node import SimNode

_THREADS = 4
_UNSAFE_NS = 5 * S
"""What was written so lately may be lost with the power."""


class Disk:
    """One node's. Stands for the NVMe tier."""

    direct = True

    def __init__(self, world: World, slab_count: int) -> None:
        self.world = world
        self.slab_count = slab_count
        self.records: dict[int, Record] = {}
        self.payloads: dict[int, bytes] = {}
        self.slow = 1.0
        self.failing = 0.0
        """How often an operation fails."""
        self.damaged: dict[int, bytes] = {}
        """Slots whose payload is not what was written, on purpose: by slot the key."""
        self._slabs: dict[int, int] = {}
        self._written_ns: dict[int, int] = {}

    def recover(self) -> Iterator[tuple[str, int, int] | Record]:
        for slab in sorted(self._slabs):
            yield "slab", slab, self._slabs[slab]
            for slot in sorted(self.records):
                if slot // limits.SLAB_SLOTS_MAX == slab:
                    yield self.records[slot]

    def assign(self, slab: int, class_index: int) -> None:
        self._slabs[slab] = class_index
        for slot in [slot for slot in self.records if slot // limits.SLAB_SLOTS_MAX == slab]:
            del self.records[slot]
        for slot in [slot for slot in self.payloads if slot // limits.SLAB_SLOTS_MAX == slab]:
            del self.payloads[slot]

    def erase(self, slot: int) -> None:
        self.records.pop(slot, None)

    def write(self, record: Record, payload: memoryview) -> Generator[Any, Any, None]:
        slot = record.slot
        self.records.pop(slot, None)
        self.damaged.pop(slot, None)
        yield self._takes_ns()
        if self.world.chance.random() < self.failing:
            raise OSError("the disk is full")
        half = len(payload) // 2
        self.payloads[slot] = bytes(payload[:half])
        yield 20 * US
        self.payloads[slot] = bytes(payload)
        self.records[slot] = record
        self._written_ns[slot] = self.world.now_ns

    def read(self, slot: int, size: int, into: memoryview) -> Generator[Any, Any, None]:
        yield self._takes_ns()
        if self.world.chance.random() < self.failing:
            raise OSError("unreadable")
        found = self.payloads.get(slot, b"")[:size]
        into[: len(found)] = found

    def lose_power(self) -> None:
        """Of what was written last a part never arrived."""
        chance = self.world.chance
        for slot, written_ns in self._written_ns.items():
            late = written_ns > self.world.now_ns - _UNSAFE_NS
            if late and slot in self.records and slot in self.payloads and chance.random() < 0.5:
                payload = self.payloads[slot]
                kept = chance.randrange(len(payload))
                self.payloads[slot] = payload[:kept] + bytes(len(payload) - kept)
                self.damaged[slot] = self.records[slot].key

    def flip(self) -> None:
        """One bit of one payload."""
        chance = self.world.chance
        slots = [slot for slot in self.records if slot in self.payloads]
        if slots:
            slot = chance.choice(slots)
            payload = bytearray(self.payloads[slot])
            payload[chance.randrange(len(payload))] ^= 1 << chance.randrange(8)
            self.payloads[slot] = bytes(payload)
            self.damaged[slot] = self.records[slot].key

    def close(self) -> None:
        """There is nothing to close."""

    def _takes_ns(self) -> int:
        return int((50 * US + self.world.chance.random() * MS) * self.slow)


class Writer:
    """Writes behind."""

    def __init__(self, node: SimNode, disk: Disk) -> None:
        self._node, self._disk = node, disk
        self._wake = Future()
        self._writing = 0
        self._ended = Future()
        self._failures = 0
        node.world.spawn(node.process, self._run())

    @property
    def failed(self) -> bool:
        return self._failures >= DISK_FAILURES_MAX

    @property
    def idle(self) -> bool:
        return not self._writing

    def wake(self) -> None:
        self._wake.set()

    def carry_out(self) -> None:
        """Everything that was decided before."""
        decided = self._node.step().decided
        while decided:
            action = decided.popleft()
            if isinstance(action, actions.AssignDisk):
                self._disk.assign(action.slab, action.class_index)
            else:
                self._disk.erase(action.slot)

    def _run(self) -> Work:
        while True:
            yield self._wake
            self._wake = Future()
            yield 30 * US
            self.carry_out()
            while not self.failed and self._start_one():
                if self._writing >= _THREADS:
                    self._ended = Future()
                    yield self._ended
            if self.failed:
                with self._node.step() as state:
                    state.skip_disk_writes()

    def _start_one(self) -> bool:
        node = self._node
        with node.step() as state:
            job = state.next_disk_write(node.now_s())
            if job is None:
                return False
            entry, slot = job
            record = Record(
                slot=slot,
                key=state.index.key(entry),
                space=state.spaces[state.index.space[entry]].uid,
                size=state.index.size[entry],
                checksum=state.index.checksum[entry],
                filled_at_s=node.now_s(),
            )
            payload = node.entry_memory(entry)
        self._writing += 1
        node.world.spawn(node.process, self._write(entry, record, payload))
        return True

    def _write(self, entry: int, record: Record, payload: memoryview) -> Work:
        node = self._node
        try:
            self.carry_out()
            yield from self._disk.write(record, payload)
        except OSError:
            with node.step() as state:
                self._failures += 1
                state.disk_failed(entry, record.slot)
        else:
            with node.step() as state:
                self._failures = 0
                state.disk_written(entry, record.slot, node.now_s())
        self._writing -= 1
        self._ended.set()
