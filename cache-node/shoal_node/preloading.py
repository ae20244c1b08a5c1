"""Preloads: each node brings what it is to hold of a data set, and shows that it has it.

A run lists the origin once and keeps what concerns this node (`preload_list`). Then it fills what is not here, a few
blocks at a time, behind everything that anybody waits for, no faster than its share of the preload's rate and than the
disk takes it; what is here already is passed over, so that a run which was interrupted goes on where it was. At last
every block is hashed where it lies; what is missing or wrong is brought again, a few times. Where the view decides
otherwise who holds what, the run begins anew, even when it had ended: numbers of different epochs do not add up.

What cannot be had is counted and said, and the rest goes on. What does not fit is said at once: a tier that is too
small would be filled for ever. Runs on the node's loop; hashing in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from shoal_core import keys
from shoal_core.errors import BadRequest, NotFound, ShoalError
from shoal_node import preload_progress
from shoal_node.objects import ObjectRecord
from shoal_node.preload_filling import Filling, Unable
from shoal_node.preload_list import PreloadList, Row
from shoal_node.preload_progress import Preload, Progress, Throttle
from shoal_node.spaces import refusal_of
from shoal_transport.origins.interface import ObjectMeta

if TYPE_CHECKING:
    from shoal_core.view import View
    from shoal_node.runtime import Node

log = logging.getLogger("shoal.node")
_LIST_TRIES = 5
_PAUSE_S = 0.5
_PAGE_S = 60.0
_SLICE = 256
"""Objects, or _BLOCKS, gone through before the loop does something else."""
_BLOCKS = 2048
_SETTLED_S = 1.0
"""A view that just changed may change again: the run begins anew when it has been the same for so long."""
_LOOK_S = 0.25


class _ViewChanged(Exception):
    """Others are to hold the blocks now."""


class Preloads:
    """All runs of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._runs: dict[str, tuple[Preload, Run, asyncio.Task[None]]] = {}

    def follow(self, tasks: Mapping[str, Preload]) -> None:
        """These are all: one that is not among them stops and is forgotten. On the loop."""
        for name in list(self._runs):
            if tasks.get(name) != self._runs[name][0]:
                self._runs.pop(name)[2].cancel()
        for name, task in tasks.items():
            if name not in self._runs:
                run = Run(self._node, task)
                self._runs[name] = task, run, asyncio.get_running_loop().create_task(run.run())

    def status(self) -> dict[str, dict[str, Any]]:
        """By name, as plain data."""
        return {name: msgspec.to_builtins(run.progress) for name, (_, run, _) in list(self._runs.items())}

    async def close(self) -> None:
        tasks = [task for _, _, task in self._runs.values()]
        self._runs.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Run:
    """One preload on this node."""

    def __init__(self, node: Node, task: Preload) -> None:
        self.progress = Progress()
        self._node = node
        self._task = task
        self._view: View | None = None
        self._placement: preload_progress.Placement = ()
        self._space = 0
        """Number of the data set, while it is known."""

    async def run(self) -> None:
        """Until cancelled: also when it is done it watches the view."""
        while True:
            view = self._view = await self._settled_view()
            self._placement = preload_progress.placement_of(view)
            self.progress = Progress(epoch=view.epoch)
            try:
                await self._once(preload_progress.share(view, self._node.config.node_name))
            except _ViewChanged:
                continue
            except Unable as error:
                self.progress.fail(str(error))
            except ShoalError as error:
                self.progress.fail(str(error))
            except OSError as error:
                self.progress.fail(f"the list of objects cannot be kept: {error.strerror or error}")
            except Exception as error:  # a bug; the next run may fare better
                log.exception("preload of %s", self._task.dataset)
                self.progress.fail(f"{type(error).__name__}: {error}")
            while self._is_current():  # noqa: ASYNC110 the view may change in any thread
                await asyncio.sleep(_LOOK_S)

    async def _once(self, share: float) -> None:
        """`share`: of the pool, by capacity; a node without one holds nothing."""
        progress, rate = self.progress, self._task.bytes_per_s
        if share:
            throttle = Throttle(None if rate is None else max(1.0, rate * share))
            filling = Filling(self._node, progress, throttle, self._record, self._turn)
            objects = PreloadList(self._node.config.state_directory)
            try:
                await self._list(objects)
                progress.bytes_owned = progress.bytes_scanned
                self._expect_room(objects)
                progress.state = "filling"
                await filling.fill(objects.rows())
                if self._task.verify:
                    progress.state = "verifying"
                    await filling.verify(objects.rows())
            finally:
                objects.close()
        lacking = progress.bytes_owned - progress.bytes_done
        if lacking:
            raise Unable(f"{lacking} of the {progress.bytes_owned} bytes that this node is to hold are not here")
        progress.objects_done, progress.objects_failed = progress.objects_scanned, 0
        progress.state = "done"

    # The view

    async def _settled_view(self) -> View:
        found, since_s = None, 0.0
        while True:
            peers = self._node.peers
            known = peers.cluster.router.view if peers is not None else None
            if known is not None:
                placement = preload_progress.placement_of(known)
                if placement != found:
                    found, since_s = placement, time.monotonic() if self._placement else 0.0
                if time.monotonic() - since_s >= _SETTLED_S:
                    return known
            await asyncio.sleep(_LOOK_S)

    def _is_current(self) -> bool:
        """Whether the run is still about the view that the node follows; addresses may have changed."""
        peers = self._node.peers
        known = peers.cluster.router.view if peers is not None else None
        if known is None:
            return False
        if known is not self._view:
            if preload_progress.placement_of(known) != self._placement:
                return False
            self._view = known
            self.progress.epoch = known.epoch
        return True

    async def _turn(self) -> None:
        """Others' turn on the loop."""
        await asyncio.sleep(0)
        if not self._is_current():
            raise _ViewChanged

    # Listing

    async def _list(self, objects: PreloadList) -> None:
        for number, space in enumerate(self._node.state.spaces):
            if space.name == self._task.dataset and space.url is not None:
                self._space = number
                break
        else:
            raise Unable(f"there is no data set {self._task.dataset} on this node")
        for root in preload_progress.roots(self._task.paths):
            found = 0
            async with contextlib.aclosing(self._pages(root)) as pages:
                async for page in pages:
                    for place, meta in enumerate(page):
                        found += await self._scan(meta, objects)
                        if place % _SLICE == 0:
                            await self._turn()
            if not found:
                raise Unable(f"{root or self._task.dataset}: there is no object of the data set")

    async def _pages(self, root: str) -> AsyncGenerator[list[ObjectMeta], None]:
        """An object, or all below it. A listing that did not begin is tried again: secrets are granted late."""
        space = self._node.state.spaces[self._space]
        base = (space.url or "").rstrip("/")
        origins, pause_s = self._node.origins, _PAUSE_S
        for tries_left in reversed(range(_LIST_TRIES)):
            has_begun = False
            self._node.counters.origin_requests += 1
            try:
                if root and f"{root}/" not in self._task.paths:
                    with contextlib.suppress(NotFound):
                        yield [await origins.head(f"{base}/{root}", timeout_s=_PAGE_S, dataset=space.name)]
                        return
                url = f"{base}/{root}/" if root else base
                async for page in origins.list(url, timeout_s=_PAGE_S, dataset=space.name):
                    has_begun = True
                    yield page
                return
            except ShoalError as error:
                if has_begun or not tries_left or isinstance(error, BadRequest):
                    raise
                self.progress.note(str(error))
            await asyncio.sleep(pause_s)
            pause_s *= 2

    async def _scan(self, meta: ObjectMeta, objects: PreloadList) -> bool:
        """Whether the object belongs to the data set; counted and kept if it concerns this node."""
        node, progress = self._node, self.progress
        space = node.state.spaces[self._space]
        if refusal_of(space, meta.url):
            return False
        assert node.peers is not None
        record = self._record(meta.url, meta.size, meta.etag)
        router, me = node.peers.cluster.router, node.peers.cluster.me
        blocks: list[int] = []
        is_led = False
        for start in range(0, max(1, record.block_count), _BLOCKS):
            if start:
                await self._turn()
            with node.peers.lock:
                count, owners_of = router.replicas(space.replicas), router.placement.owners_of
                for block in range(start, min(max(1, record.block_count), start + _BLOCKS)):
                    line = owners_of(keys.block_key(record.fingerprint, block))[:count]
                    is_led = is_led or (block == 0 and line[:1] == (me,))
                    if me in line and record.block_count:
                        blocks.append(block)
        progress.objects_scanned += is_led
        progress.bytes_scanned += sum(record.block_bytes(block) for block in blocks)
        if blocks:
            objects.add(Row(meta.url, meta.size, meta.etag, is_led, blocks))
        elif is_led:
            progress.objects_done += 1  # it has no block
        return True

    def _record(self, url: str, size: int, etag: str) -> ObjectRecord:
        block_size = self._node.config.fill.block_size_bytes
        uid = self._node.state.spaces[self._space].uid
        fingerprint = keys.object_fingerprint(uid, url, etag, size, block_size)
        return ObjectRecord(fingerprint, url, size, etag, self._space, block_size)

    def _expect_room(self, objects: PreloadList) -> None:
        state = self._node.state
        tier, name = (state.dram, "DRAM") if state.disk is None else (state.disk, "disk")
        room = state.layout.budget_bytes if state.disk is None else tier.slabs.slab_count * tier.slabs.slab_bytes
        quota = state.spaces[self._space].quota_bytes
        if quota is not None and quota < room:
            room, name = quota, "quota of the data set in the"
        needed = self.progress.bytes_owned
        if needed * 2 > room:  # else it fits, whatever its slots
            needed = sum(
                tier.slot_bytes_for(record.block_bytes(block))
                for row in objects.rows()
                for record in [self._record(row.url, row.size, row.etag)]
                for block in row.blocks
            )
        if needed > room:
            raise Unable(f"this node is to hold {needed} bytes, and its {name} tier holds {room}")
