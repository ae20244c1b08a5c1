"""The node at work: one state under one lock, and everything that carries out what it decides.

Doors' threads call `get` and the other verbs here; fills run on the loop; both touch the state only inside `step`,
which holds the lock and, on the way out, carries out the actions the state asked for. A step is microseconds of
bookkeeping: no I/O, no waiting. The read of a cached block is one step, in the thread of the door it came through.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from shoal_core import digests, environment, flight, index, keys, limits
from shoal_core.config import NodeConfig
from shoal_core.errors import BadRequest, DeadlineExceeded, ShoalError, UnknownObject
from shoal_core.verbs import get
from shoal_node import actions, inspection
from shoal_node.batches import Batch, Delivered
from shoal_node.disk_writer import DiskWriter
from shoal_node.fill import Filler, Flight
from shoal_node.metrics import Counters, Gauges
from shoal_node.objects import ObjectRecord
from shoal_node.state import NodeState
from shoal_node.tiers import dram
from shoal_node.tiers.dram import DramSegment
from shoal_node.tiers.nvme import NvmeTier
from shoal_transport.origins import Origins

_FLUSH_S = 10.0

SendRevoke = Callable[[list[tuple[int, int]]], None]


T = TypeVar("T")
Answer = Callable[[NodeState, list[Delivered | Exception]], T]


class Step:
    """`with node.step() as state`. One for the whole node, as there is one lock."""

    __slots__ = ("_lock", "_perform", "_state", "decided")

    def __init__(self, state: NodeState, perform: Callable[[list[actions.Action]], None]) -> None:
        self._lock = threading.Lock()
        self._state = state
        self._perform = perform
        self.decided: deque[actions.TableAction] = deque()
        """What has to be done to the disk's tables, in the order in which it was decided: filled under the lock."""

    def __enter__(self) -> NodeState:
        self._lock.acquire()
        return self._state

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pending = self._state.actions
        if not pending or error is not None:
            self._lock.release()
            return
        self._state.actions = []
        self.decided.extend(action for action in pending if isinstance(action, actions.TableAction))
        self._lock.release()
        self._perform(pending)


class Node:
    """Owns state, segments, disk tier, origins and fills. Made and closed on its loop."""

    def __init__(self, config: NodeConfig, state: NodeState, nvme: NvmeTier | None, tenant: str) -> None:
        self.config = config
        self.state = state
        self.nvme = nvme
        self.tenant = tenant
        self.counters = Counters()
        self.started_s = time.time()
        self.draining = False
        self.segments: list[DramSegment] = []
        self.events: dict[bytes, SendRevoke] = {}
        """How to reach each client that has an events connection."""
        self.loop = asyncio.get_running_loop()
        self.origins = Origins(config.origins, retry_count_max=config.fill.retries)
        fill = config.fill
        self.filler = Filler(self, fill.concurrency, fill.range_bytes_max, fill.timeout_s)
        self._step = Step(state, self._perform)
        self.writer = DiskWriter(self, nvme, self._step.decided) if nvme is not None else None
        self._flights: flight.Flights[bytes, Flight | tuple[Batch, int]] = flight.Flights()
        self._revokes = ThreadPoolExecutor(2, "shoal-revoke")
        self.addresses: list[str] = []
        self.origin_environment = environment.digest(os.environ)
        self._now_s = 0

    def now_s(self) -> int:
        """Whole seconds of the wall clock, never running backwards: records on disk carry it over restarts."""
        self._now_s = max(self._now_s, int(time.time()))
        return self._now_s

    def step(self) -> Step:
        """The state, under the lock; its actions are carried out when the block ends."""
        return self._step

    # The read

    def get(self, records: list[ObjectRecord], request: get.Request, deadline: float, answer: Answer[T]) -> T:
        """`answer` of the outcomes, in order, inside a step; every Delivered is held once for it.

        `deadline` is on the monotonic clock. Missing blocks are filled meanwhile; what is not there in time is a
        DeadlineExceeded, and its fill goes on for whoever asks next. A batch that is all there is one step.
        """
        batch = Batch(len(request.items))
        new: list[Flight] = []
        with self._step as state:
            self._look_up(state, records, request, batch, new)
            if not batch.missing and not new:
                return answer(state, batch.outcomes)  # type: ignore[arg-type]  # every position is set
        if new:
            self.loop.call_soon_threadsafe(self.filler.start, new)
        if not batch.wait(deadline - time.monotonic()):
            self._give_up(batch, records, request)
        with self._step as state:
            return answer(state, batch.outcomes)  # type: ignore[arg-type]

    def _look_up(
        self, state: NodeState, records: list[ObjectRecord], request: get.Request, batch: Batch, new: list[Flight]
    ) -> None:
        outcomes = batch.outcomes
        seen: dict[tuple[int, int], Delivered] = {}
        for position, item in enumerate(request.items):
            place = item.object, item.block
            found = seen.get(place)
            if found is None:
                record = records[item.object]
                key = keys.block_key(record.fingerprint, item.block)
                entry = state.lookup(key)
                if entry == index.NONE:
                    batch.expect()
                    self._want(record, item.block, key, (batch, position), new)
                    continue
                state.hit(entry)
                found = seen[place] = Delivered(entry, get.SOURCE_DRAM)
            state.hold(found.entry)
            outcomes[position] = found
        for ahead in request.ahead:
            self._want_ahead(records[ahead.object], ahead, new)

    def in_memory(
        self, state: NodeState, records: list[ObjectRecord], likely: list[get.Ahead]
    ) -> list[tuple[int, int, int]]:
        """(object, block, entry) of blocks that were not asked for but are there, each run up to its first gap."""
        found: list[tuple[int, int, int]] = []
        for ahead in likely:
            record = records[ahead.object]
            for block in range(ahead.block, min(ahead.block + ahead.count, record.block_count)):
                entry = state.lookup(keys.block_key(record.fingerprint, block))
                if entry == index.NONE or len(found) >= limits.LIKELY_BLOCKS_MAX:
                    break
                found.append((ahead.object, block, entry))
        return found

    def _want(
        self, record: ObjectRecord, block: int, key: bytes, waiter: tuple[Batch, int] | None, new: list[Flight]
    ) -> None:
        wanted = self.flight(key)
        if wanted is None:
            # The flight leads itself: it runs in a task of its own, and no waiter's leaving ends it.
            wanted = Flight(record, block, key)
            self._flights.join(key, wanted)
            entry = self.state.index.find(key)
            if entry != index.NONE:
                wanted.entry = entry
                wanted.disk_slot = self.state.index.disk_slot[entry]
                self.state.hold(entry)
            new.append(wanted)
        elif waiter is not None and not wanted.demanded:
            self.counters.prefetches["joined"] += wanted.planned
            self.loop.call_soon_threadsafe(self.filler.hurry, wanted)
        if waiter is not None:
            wanted.demanded = True
            self._flights.join(key, waiter)

    def _want_ahead(self, record: ObjectRecord, ahead: get.Ahead, new: list[Flight]) -> None:
        for block in range(ahead.block, min(ahead.block + ahead.count, record.block_count)):
            if len(self._flights) >= limits.FILLS_IN_FLIGHT_MAX:
                return
            key = keys.block_key(record.fingerprint, block)
            if self.state.lookup(key) == index.NONE and key not in self._flights:
                self._want(record, block, key, None, new)

    @property
    def flight_count(self) -> int:
        return len(self._flights)

    def flight(self, key: bytes) -> Flight | None:
        """The one that brings this block, if it is on its way. Inside a step."""
        leader = self._flights.leader(key)
        return leader if isinstance(leader, Flight) else None

    def fill_planned(self, record: ObjectRecord, block: int, key: bytes, use: int, new: list[Flight]) -> None:
        """A plan names a block that is neither in memory nor on its way. Inside a step."""
        self._want(record, block, key, None, new)
        new[-1].use, new[-1].planned = use, True

    def _give_up(self, batch: Batch, records: list[ObjectRecord], request: get.Request) -> None:
        with self.step():
            batch.abandoned = True
            for position, outcome in enumerate(batch.outcomes):
                if outcome is None:
                    url = records[request.items[position].object].url
                    batch.outcomes[position] = DeadlineExceeded(f"{url}: not filled within the deadline")

    def deliver(self, landed: Flight, entry: int, source: int) -> None:
        """A block is in DRAM, held once by its flight; every waiter gets a hold of its own. Inside a step."""
        self.counters.prefetches["filled"] += landed.planned and not landed.demanded
        for waiter in self._flights.finish(landed.key, landed):
            if isinstance(waiter, tuple) and waiter[0].deliver(waiter[1], Delivered(entry, source)):
                self.state.hold(entry)
        self.state.unhold(entry)

    def deliver_error(self, failed: Flight, error: Exception) -> None:
        """A flight ended without its block. Inside a step."""
        members = self._flights.finish(failed.key, failed)
        self.counters.prefetches["dropped"] += bool(members) and failed.planned and not failed.demanded
        for waiter in members:
            if isinstance(waiter, tuple):
                waiter[0].deliver(waiter[1], error)

    def records(self, fingerprints: list[bytes]) -> list[ObjectRecord]:
        """What each fingerprint stands for; UnknownObject when one was forgotten."""
        with self._step as state:
            found = [state.objects.get(fingerprint) for fingerprint in fingerprints]
        known = [record for record in found if record is not None]
        if len(known) != len(found):
            raise UnknownObject("a fingerprint is not remembered here; resolve its URL again")
        return known

    def check_items(self, records: list[ObjectRecord], request: get.Request) -> None:
        """BadRequest unless every item lies inside its block and every object named is one of those given."""
        if len(request.items) > limits.BATCH_ITEMS_MAX:
            raise BadRequest(f"{len(request.items)} items in one get; at most {limits.BATCH_ITEMS_MAX}")
        for item in request.items:
            if not 0 <= item.object < len(records) or item.block < 0:
                raise BadRequest("get: an item names no object or block")
            size = records[item.object].block_bytes(item.block)
            if item.offset < 0 or item.length <= 0 or item.offset + item.length > size:
                raise BadRequest(
                    f"{records[item.object].url}: range {item.offset}+{item.length} of block {item.block} "
                    f"of {size} bytes"
                )
        for ahead in (*request.ahead, *request.likely):
            if not 0 <= ahead.object < len(records) or ahead.block < 0:
                raise BadRequest("get: a read ahead names no object or block")

    @property
    def batch_bytes_max(self) -> int:
        """Bytes of one `get`: a batch is held until its last block is there, so many must fit the cache at once."""
        quotas = [space.quota_bytes // 2 for space in self.state.spaces if space.quota_bytes is not None]
        room = min([self.config.dram.budget_bytes // 8, *quotas])
        return max(self.config.fill.block_size_bytes, min(limits.BATCH_BYTES_MAX, room))

    # What the control door asks

    def status(self) -> dict[str, Any]:
        return inspection.status(self)

    def ready(self) -> tuple[bool, str]:
        return (False, "draining") if self.draining else (True, "ok")

    def start_drain(self) -> dict[str, Any]:
        """No new reads are taken; what runs ends by itself."""
        self.draining = True
        return self.drain_progress()

    def drain_progress(self) -> dict[str, Any]:
        with self.step() as state:
            return {
                "draining": self.draining,
                "fills_in_flight": self.filler.running,
                "disk_queue": state.disk_queue,
                "leases": state.leases.count,
            }

    def metrics_values(self) -> tuple[Counters, Gauges]:
        with self.step():
            return self.counters, inspection.gauges(self)

    # Memory

    def slot_memory(self, slot: int, size: int) -> memoryview:
        """The node's writable view of a DRAM slot."""
        segment, offset = self.state.slot_address(slot)
        return self.segments[segment].memory[offset : offset + size]

    def entry_memory(self, entry: int) -> memoryview:
        segment, offset = self.state.address(entry)
        return self.segments[segment].memory[offset : offset + self.state.index.size[entry]]

    def grow(self, size: int) -> None:
        """Make a segment; blocks for about 0.3 s per GiB. Without memory the cache stays as it is, visibly."""
        try:
            segment = dram.make(size, self.tenant, self.config.dram.huge_pages)
        except ShoalError:
            with self.step() as state:
                self.counters.fallbacks["dram_budget"] += 1
                state.segment_failed()
            return
        if not segment.huge and self.config.dram.huge_pages == "auto" and dram.huge_pages_configured():
            self.counters.fallbacks["huge_pages"] += 1
        with self.step() as state:
            self.segments.append(segment)
            state.segment_added(size)

    # A reader's complaint

    def complain(self, entry: int, generation: int) -> bool:
        """Hash our own copy; whether it was bad and is now quarantined."""
        with self.step() as state:
            known = 0 <= entry < state.index.capacity and state.index.generation[entry] == generation
            if not known or state.index.dram_slot[entry] == index.NO_SLOT:
                return False
            state.hold(entry)
            memory, table = self.entry_memory(entry), bytes(state.digest_table(entry))
        good = digests.page_digests(memory) == table
        with self.step() as state:
            if not good:
                self.counters.corrupt_pages["dram"] += 1
                state.drop(entry, erase=True, quarantine=True)
            state.unhold(entry)
        return not good

    # Ending

    async def close(self) -> None:
        """Ends fills; gives writing behind _FLUSH_S to finish, so that the next start is warm."""
        await self.filler.close()
        if self.writer is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_S):
                    await self.writer.idle()
            await self.writer.close()
        await self.origins.close()
        self._revokes.shutdown(wait=False, cancel_futures=True)
        if self.nvme is not None:
            self.nvme.close()
        for segment in self.segments:
            segment.close()

    def _perform(self, pending: list[actions.Action]) -> None:
        asked_back: dict[bytes, list[tuple[int, int]]] = {}
        for action in pending:
            match action:
                case actions.Grow(size):
                    self.loop.call_soon_threadsafe(self.loop.run_in_executor, None, self.grow, size)
                case actions.Revoke(client, grants):
                    asked_back.setdefault(client, []).extend(grants)
                case actions.SpaceFreed():
                    self.loop.call_soon_threadsafe(self.filler.room_freed)
                case actions.AssignDisk() | actions.EraseDisk() | actions.WriteDisk():
                    if self.writer is not None:
                        self.writer.wake()
        for client, grants in asked_back.items():
            if (send := self.events.get(client)) is not None:
                for start in range(0, len(grants), limits.REVOKE_BATCH_MAX):
                    self._revokes.submit(send, grants[start : start + limits.REVOKE_BATCH_MAX])
