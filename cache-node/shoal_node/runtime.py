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
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from shoal_core import environment, limits
from shoal_core.config import NodeConfig
from shoal_core.errors import BadRequest, ShoalError, UnknownObject
from shoal_core.verbs import drain, get
from shoal_node import actions, inspection, write_behind
from shoal_node.admission import Admission
from shoal_node.arrivals import Arrivals
from shoal_node.batches import Batch, Delivered
from shoal_node.datasets import Datasets
from shoal_node.disk_writer import DiskWriter
from shoal_node.endings import Endings
from shoal_node.fill import Filler, Flight
from shoal_node.metrics import Counters, Gauges
from shoal_node.objects import ObjectRecord
from shoal_node.peers import Peers
from shoal_node.state import NodeState
from shoal_node.tiers import dram
from shoal_node.tiers.dram import DramSegment
from shoal_node.tiers.nvme import NvmeTier
from shoal_transport.origins import Origins

if TYPE_CHECKING:
    from shoal_node.kubernetes.pool import Pool

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
        self.admission = Admission(config)
        self.counters = Counters()
        self.started_s = time.time()
        self.draining = False
        """It hands its blocks over, and is not for new readers."""
        self.refusing = False
        """It serves nobody any more."""
        self.endings = Endings()
        state.ended = self._note_ending
        self.segments: list[DramSegment] = []
        self.events: dict[bytes, SendRevoke] = {}
        """How to reach each client that has an events connection."""
        self.loop = asyncio.get_running_loop()
        self.origins = Origins(config.origins, retry_count_max=config.fill.retries)
        fill = config.fill
        self.filler = Filler(self, fill.concurrency, fill.range_bytes_max, fill.timeout_s)
        self._step = Step(state, self._perform)
        self.writer = DiskWriter(self, nvme, self._step.decided) if nvme is not None else None
        self.arrivals = Arrivals(self)
        self._revokes = ThreadPoolExecutor(2, "shoal-revoke")
        self.addresses: list[str] = []
        self.volume_count = 0
        """Volumes that have a socket here."""
        self.peers = Peers(self, config.cluster) if config.cluster is not None else None
        """None: this node is alone."""
        self.datasets = Datasets(self)
        self.pool: Pool | None = None
        """Where Kubernetes says what this node holds."""
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
        batch.is_readers = not request.hops
        new: list[Flight] = []
        with self._step as state:
            self.arrivals.look_up(state, records, request, batch, new)
            if not batch.missing and not new:
                return answer(state, batch.outcomes)  # type: ignore[arg-type]  # every position is set
        if new:
            self.loop.call_soon_threadsafe(self.filler.start, new)
        if not batch.wait(deadline - time.monotonic()):
            self.arrivals.give_up(batch, records, request)
        with self._step as state:
            return answer(state, batch.outcomes)  # type: ignore[arg-type]

    def records(self, fingerprints: list[bytes]) -> list[ObjectRecord]:
        """What each fingerprint stands for; UnknownObject when one was forgotten."""
        with self._step as state:
            found = [state.objects.get(fingerprint) for fingerprint in fingerprints]
        known = [record for record in found if record is not None]
        if len(known) != len(found):
            raise UnknownObject("a fingerprint is not remembered here; resolve its URL again")
        return known

    @property
    def batch_bytes_max(self) -> int:
        """Bytes of one `get`: a batch is held until its last block is there, so many must fit the cache at once."""
        quotas = [space.quota_bytes // 2 for space in self.state.spaces if space.quota_bytes is not None]
        room = min([self.config.dram.budget_bytes // 8, *quotas])
        return max(self.config.fill.block_size_bytes, min(limits.BATCH_BYTES_MAX, room))

    # What the control door asks

    def status(self) -> dict[str, Any]:
        return inspection.status(self)

    @property
    def epoch(self) -> int:
        """Of the view that the node follows; 0: it is alone."""
        return self.peers.epoch if self.peers is not None else 0

    def ready(self) -> tuple[bool, str]:
        return (False, "draining") if self.draining else (True, "ok")

    def check_operator(self, authorization: str) -> None:
        self.admission.check_operator(authorization)

    def start_drain(self) -> dict[str, Any]:
        """Hand the blocks over to the other nodes, if there are any, and then take no more reads; what runs ends."""
        self.draining = True
        if self.peers is None or self.peers.cluster.alone:
            self.refusing = True
        else:
            self.peers.upkeep.start_drain()
        return self.drain_progress()

    def refuse(self) -> None:
        """No new reads are taken from now on."""
        self.draining = self.refusing = True

    def cancel_drain(self) -> dict[str, Any]:
        """Take new readers again."""
        self.draining = self.refusing = False
        if self.peers is not None:
            self.peers.upkeep.cancel_drain()
        return self.drain_progress()

    def drain(self, action: str) -> dict[str, Any]:
        """What the verb asks for."""
        match action:
            case drain.START:
                return self.start_drain()
            case drain.PROGRESS:
                return self.drain_progress()
            case drain.CANCEL:
                return self.cancel_drain()
            case _:
                raise BadRequest(f"drain: {action!r} is none of start, progress, cancel")

    def drain_progress(self) -> dict[str, Any]:
        with self.step() as state:
            values = {
                "draining": self.draining,
                "refusing": self.refusing,
                "fills_in_flight": self.filler.running,
                "disk_queue": state.disk_queue,
                "leases": state.leases.count,
            }
            return values | ({"handover": self.peers.handover.progress()} if self.peers is not None else {})

    def view(self) -> tuple[int, bytes] | None:
        """Epoch and JSON of the view; None where the node is alone."""
        known = self.peers.cluster.router.view if self.peers is not None else None
        return (known.epoch, msgspec.json.encode(known)) if known is not None else None

    def metrics_values(self) -> tuple[Counters, Gauges]:
        with self.step():
            return self.counters, inspection.gauges(self)

    def _note_ending(self, entry: int, reason: str) -> None:
        if self.peers is not None and self.peers.ended(entry) and reason in ("evicted", "quota"):
            reason = "near"
        self.endings.note(self.state.index.key(entry), reason, self._now_s)

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

    # Ending

    async def close(self) -> None:
        """Ends fills; gives writing behind _FLUSH_S to finish, so that the next start is warm."""
        if self.peers is not None:
            self.peers.stop()
        await self.filler.close()
        if self.peers is not None:
            await asyncio.to_thread(self.peers.close)
        if self.writer is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_S):
                    await self.writer.idle()
                    self._want_all_on_disk()
                    await self.writer.idle()
            await self.writer.close()
        await self.origins.close()
        self._revokes.shutdown(wait=False, cancel_futures=True)
        if self.nvme is not None:
            self.nvme.close()
        for segment in self.segments:
            segment.close()

    def _want_all_on_disk(self) -> None:
        """What is in memory alone, but for copies of what others own: this process's memory goes with it."""
        with self.step() as state:
            near = self.peers.near if self.peers is not None else ()
            for entry in state.index.linked():
                if entry not in near:
                    write_behind.want_on_disk(state, entry)

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
