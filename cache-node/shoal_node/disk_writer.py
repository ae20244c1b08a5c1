"""Writing behind: published blocks go to the disk tier when nobody is kept waiting by it.

Headers and erasures happen in the order they were decided, before any later write: whoever writes first does what is
waiting, however many threads decided it. Payloads are written by a few threads at once. A block that is evicted from
DRAM before its turn is skipped and counted. A failing disk costs nothing but itself: after DISK_FAILURES_MAX failed
writes in a row the tier is written no more, which is visible.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from shoal_node import actions
from shoal_node.tiers.nvme import NvmeTier, Record

if TYPE_CHECKING:
    from shoal_node.runtime import Node

_THREADS = 4
DISK_FAILURES_MAX = 8


class DiskWriter:
    """One task that takes blocks in order and hands their writes to threads."""

    def __init__(self, node: Node, nvme: NvmeTier, decided: deque[actions.TableAction]) -> None:
        self._node = node
        self._nvme = nvme
        self._decided = decided
        self._tables = threading.Lock()
        self._pool = ThreadPoolExecutor(_THREADS, "shoal-write")
        self._order = ThreadPoolExecutor(1, "shoal-write-order")
        self._writing: set[asyncio.Future[None]] = set()
        self._wake = asyncio.Event()
        self._failures = 0
        self._task = node.loop.create_task(self._run())

    @property
    def failed(self) -> bool:
        """The disk is written no more."""
        return self._failures >= DISK_FAILURES_MAX

    def wake(self) -> None:
        """There is something to do; from any thread."""
        self._node.loop.call_soon_threadsafe(self._wake.set)

    def _carry_out(self) -> None:
        """Do to the tables what was decided. After it everything decided before the call is done."""
        with self._tables:
            while self._decided:
                action = self._decided.popleft()
                try:
                    if isinstance(action, actions.AssignDisk):
                        self._nvme.assign(action.slab, action.class_index)
                    else:
                        self._nvme.erase(action.slot)
                except OSError:
                    self._node.counters.disk_errors["erase"] += 1

    async def idle(self) -> None:
        """Until everything that was to be written is written or failed."""
        while not self.failed and (self._node.state.disk_queue or any(not w.done() for w in self._writing)):
            self._wake.set()
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, *self._writing, return_exceptions=True)
        await self._node.loop.run_in_executor(self._order, self._carry_out)
        self._order.shutdown(wait=True)
        self._pool.shutdown(wait=True)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self.failed:
                self._skip()
            # In a thread: assigning a slab may preallocate a file.
            await self._node.loop.run_in_executor(self._order, self._carry_out)
            while not self.failed and await self._node.loop.run_in_executor(self._order, self._start_one):
                if len(self._writing) >= _THREADS:
                    await asyncio.wait(self._writing, return_when=asyncio.FIRST_COMPLETED)
                self._writing = {writing for writing in self._writing if not writing.done()}
            if self.failed:
                self._skip()

    def _skip(self) -> None:
        with self._node.step() as state:
            self._node.counters.fallbacks["disk_write_skipped"] += state.skip_disk_writes()

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
        written = self._pool.submit(self._write, entry, record, payload)
        self._writing.add(asyncio.wrap_future(written, loop=node.loop))
        return True

    def _write(self, entry: int, record: Record, payload: memoryview) -> None:
        self._carry_out()
        try:
            self._nvme.write(record, payload)
        except OSError:
            with self._node.step() as state:
                self._failures += 1
                self._node.counters.disk_errors["write"] += 1
                state.disk_failed(entry, record.slot)
            return
        with self._node.step() as state:
            self._failures = 0
            state.disk_written(entry, record.slot, self._node.now_s())
