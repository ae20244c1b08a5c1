"""The bytes of a preload: brings the blocks that are not here, a few at a time, and hashes those that are.

A group of blocks is asked for as a reader's batch is, but its flights come after everything that anybody waits for.
Between groups the preload's rate and the disk's queue are looked at: what memory pushes out before it was written
would have to be brought again. Runs on the node's loop; hashing in a thread.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from shoal_core import index, keys, limits
from shoal_core.errors import BadRequest, ObjectChanged, ShoalError
from shoal_core.verbs import holding
from shoal_node import passing, write_behind
from shoal_node.batches import Batch, Delivered, Outcome
from shoal_node.fill import Flight
from shoal_node.objects import ObjectRecord
from shoal_node.preload_list import Row
from shoal_node.preload_progress import Progress, Throttle

if TYPE_CHECKING:
    from shoal_node.runtime import Node

GROUP_BLOCKS = 4
_GROUP_BYTES = 16 * limits.MIB
_GROUPS = 3
"""Under way at once: with the blocks in each, less than the fills that a node runs, so that a reader's begins soon."""
_TRIES = 4
_PAUSE_S = 0.5
"""Before the second try; each further one waits twice as long."""
_PATIENT_FAILURES = 24
"""With more blocks that could not be had, nothing is tried again: it is not a bad moment."""
_ROUNDS = 3
"""Times that what was not there when it was looked at is brought again."""
_LACKING_MAX = 10_000
"""Blocks that a look may find lacking: with more, what comes pushes out what came."""
_VERIFY_BLOCKS = 64
_SLICE = 256
"""Blocks gone through before the loop does something else."""
_LOOK_S = 0.05

_FINAL = (ObjectChanged, BadRequest)
"""To ask again would bring nothing else. NotFound is not one: a peer may not know the data set yet."""


class Unable(Exception):
    """The run cannot succeed, whatever is tried."""


class _Object:
    """One object while its blocks are brought."""

    __slots__ = ("has_failed", "left", "record", "row")

    def __init__(self, row: Row, record: ObjectRecord) -> None:
        self.row = row
        self.record = record
        self.left = len(row.blocks)
        self.has_failed = False


class _Wanted(NamedTuple):
    """A block that this node is to hold."""

    object: _Object
    block: int
    key: bytes
    size: int


class _Bringing(Batch):
    """A batch whose end the loop is told; no thread waits for it."""

    __slots__ = ("_loop", "over")

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(count)
        self.missing = count
        self.over = asyncio.Event()
        self._loop = loop

    def deliver(self, item: int, outcome: Outcome) -> bool:
        taken = super().deliver(item, outcome)
        if taken and not self.missing:
            self._loop.call_soon_threadsafe(self.over.set)
        return taken


class Filling:
    """Of one run. `turn` lets others have the loop, and raises when the run is to end."""

    def __init__(
        self,
        node: Node,
        progress: Progress,
        throttle: Throttle,
        record: Callable[[str, int, str], ObjectRecord],
        turn: Callable[[], Awaitable[None]],
    ) -> None:
        self._node = node
        self._progress = progress
        self._throttle = throttle
        self._record = record
        self._turn = turn
        self._failures = 0

    async def fill(self, rows: Iterable[Row]) -> None:
        """Bring what is not here. What cannot be had is counted."""
        await self._bring_all(self._wanted(row) for row in rows)

    async def verify(self, rows: Iterable[Row]) -> None:
        """Look at every block; what is not there, or not good, is brought again."""
        lacking = await self._look_at(wanted for row in rows for wanted in self._wanted(row))
        self._progress.bytes_done = self._progress.bytes_verified
        for _ in range(_ROUNDS):
            if not lacking:
                return
            for wanted in lacking:
                wanted.object.left = 0  # it was counted already
            await self._bring_all([lacking])
            lacking = await self._look_at(lacking)
        for wanted in lacking:
            self._progress.note(self._why(wanted))
        self._progress.bytes_done = self._progress.bytes_verified

    def _wanted(self, row: Row) -> list[_Wanted]:
        of = _Object(row, self._record(row.url, row.size, row.etag))
        return [
            _Wanted(of, block, keys.block_key(of.record.fingerprint, block), of.record.block_bytes(block))
            for block in row.blocks
        ]

    # Bringing

    async def _bring_all(self, wanted: Iterable[list[_Wanted]]) -> None:
        running: set[asyncio.Task[None]] = set()

        async def start(group: list[_Wanted], most: int = _GROUPS - 1) -> None:
            while len(running) > most:
                await self._turn()
                ended, _ = await asyncio.wait(running, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                running.difference_update(ended)
                for task in ended:
                    task.result()
            if group:
                running.add(asyncio.get_running_loop().create_task(self._bring(group)))

        try:
            group: list[_Wanted] = []
            for number, each in enumerate(block for blocks in wanted for block in blocks):
                if number % _SLICE == 0:
                    await self._turn()
                if self._is_here(each.key):
                    self._done(each)
                    continue
                if group and sum(other.size for other in group) + each.size > _GROUP_BYTES:
                    await start(group)
                    group = []
                group.append(each)
                if len(group) >= GROUP_BLOCKS:
                    await start(group)
                    group = []
            await start(group)
            await start([], 0)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _bring(self, group: list[_Wanted]) -> None:
        left, pause_s = group, _PAUSE_S
        for tries_left in reversed(range(_TRIES)):
            await asyncio.sleep(self._throttle.delay_s(sum(each.size for each in left), time.monotonic()))
            await self._disk_keeps_up()
            again: list[_Wanted] = []
            for each, error in zip(left, await self._ask(left), strict=True):
                if error is None:
                    self._done(each)
                elif isinstance(error, _FINAL) or not tries_left or self._failures >= _PATIENT_FAILURES:
                    self._failed(each, error)
                else:
                    again.append(each)
            if not again:
                return
            left = again
            await asyncio.sleep(pause_s)
            pause_s *= 2

    async def _ask(self, group: list[_Wanted]) -> list[Exception | None]:
        """Of each block why it is not here now; None: it is."""
        node = self._node
        batch = _Bringing(len(group), asyncio.get_running_loop())
        here = [False] * len(group)
        new: list[Flight] = []
        with node.step() as state:
            for position, each in enumerate(group):
                if state.index.find(each.key) != index.NONE:
                    here[position] = True
                    batch.missing -= 1
                else:
                    node.arrivals.bring(each.object.record, each.block, each.key, (batch, position), new)
            waits = batch.missing > 0
        node.filler.start(new)
        try:
            if waits:
                await batch.over.wait()
        finally:
            with node.step() as state:
                batch.abandoned = True
                for outcome in batch.outcomes:
                    if isinstance(outcome, Delivered):
                        state.unhold(outcome.entry)
        return [outcome if isinstance(outcome, Exception) else None for outcome in batch.outcomes]

    async def _disk_keeps_up(self) -> None:
        node = self._node
        most = max(GROUP_BLOCKS, node.config.dram.budget_bytes // 4 // node.config.fill.block_size_bytes)
        writer = node.writer
        while writer is not None and not writer.failed and node.state.disk_queue > most:  # noqa: ASYNC110 looked at
            await asyncio.sleep(_LOOK_S)

    def _is_here(self, key: bytes) -> bool:
        """Also what others brought here as a copy: from now on it is this node's own."""
        node = self._node
        with node.step() as state:
            entry = state.index.find(key)
            if entry != index.NONE and node.peers is not None and node.peers.near.discard(entry):
                write_behind.want_on_disk(state, entry)
            return entry != index.NONE

    def _done(self, wanted: _Wanted) -> None:
        self._progress.bytes_done += wanted.size
        of = wanted.object
        of.left -= 1
        self._progress.objects_done += of.left == 0 and of.row.is_led and not of.has_failed

    def _failed(self, wanted: _Wanted, error: Exception) -> None:
        self._failures += 1
        of = wanted.object
        of.left -= 1
        text = str(error) if isinstance(error, ShoalError) else f"{type(error).__name__}: {error}"
        self._progress.note(text if of.record.url in text else f"{of.record.url}: {text}")
        if not of.has_failed and of.left >= 0:
            of.has_failed = True
            self._progress.objects_failed += of.row.is_led

    # Looking

    async def _look_at(self, blocks: Iterable[_Wanted]) -> list[_Wanted]:
        """Those that are lacking."""
        lacking: list[_Wanted] = []
        blocks = iter(blocks)
        while part := list(itertools.islice(blocks, _VERIFY_BLOCKS)):
            lacking += await self._look(part)
            if len(lacking) > _LACKING_MAX:
                raise Unable(f"of what was brought more than {_LACKING_MAX} blocks are gone again: there is no room")
        return lacking

    async def _look(self, part: list[_Wanted]) -> list[_Wanted]:
        """Those that are not here, or were not good; the others count as verified."""
        await self._turn()
        request = holding.Request([each.key for each in part], verify=True)
        reply = await asyncio.get_running_loop().run_in_executor(None, passing.tell_holding, self._node, request)
        lacking: list[_Wanted] = []
        for each, state in zip(part, reply.states, strict=True):
            if state & (holding.DRAM | holding.DISK) and not state & holding.CORRUPT:
                self._progress.bytes_verified += each.size
            else:
                lacking.append(each)
        return lacking

    def _why(self, wanted: _Wanted) -> str:
        with self._node.step():
            ended = self._node.endings.why(wanted.key)
        return f"{wanted.object.record.url}: block {wanted.block}: {ended[0] if ended is not None else 'not here'}"
