"""Fills: how a missing block gets its bytes, once, however many ask.

A flight is one block on its way into DRAM. It starts with the first who wants it and runs in a task of its own, so that
whoever gives up waiting strands nobody. Flights of neighbouring blocks of one object travel in one ranged read. A block
that is on disk comes from there, with its checksum compared; if that fails it comes from the origin after all. The
number of reads at once is bounded per kind. Bytes go straight into the slots they will be served from; they are hashed
there as they arrive and then published.

Reads take turns: first what somebody waits for, then what is read ahead, then what plans name, in the order in which it
is used. A prefetched block that somebody asks for meanwhile is no prefetch any more. What is filled for a plan pushes
out nothing that is used sooner; it is dropped instead, and comes when it is asked for.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from shoal_core import digests, index
from shoal_core.errors import DeadlineExceeded, InvariantBroken, NodeGone, NoSpace, NotFound, ObjectChanged, ShoalError
from shoal_core.routing import Attempt
from shoal_core.verbs import get
from shoal_node.objects import ObjectRecord
from shoal_node.origin_budget import OriginBudget
from shoal_node.turns import Rank, Ticket, Turns, in_thread
from shoal_transport.origins.interface import ObjectMeta

if TYPE_CHECKING:
    from shoal_core.view import View
    from shoal_node.runtime import Node
    from shoal_node.state import NodeState

_HASH_BYTES = 512 << 10
"""Hashed as soon as so much has arrived: it is in the CPU's cache then, and 13 us do not hold the loop up."""

_DISK_READS = 4
"""Reads from disk at once: the depth at which one drive is near its limit with blocks of megabytes."""

_NO_ROOM_S = 1.0
"""After a wait in vain, fills of that space do not wait for this long: readers go to the origin at once."""

_ROOM_WAIT_S = 2.0
"""How long a fill waits for leases to come back before its readers are sent to the origin."""


class Flight:
    """One block on its way. `entry` and `disk_slot` are set while the block is on disk; the entry is then held."""

    __slots__ = (
        "block", "demanded", "disk_slot", "entry", "from_origin", "hops", "kept", "key", "landed", "owners", "planned",
        "pulled", "record", "size", "slot", "ticket", "use", "view", "ways",
    )  # fmt: skip

    def __init__(self, record: ObjectRecord, block: int, key: bytes, hops: int = 0) -> None:
        self.record = record
        self.block = block
        self.key = key
        self.size = record.block_bytes(block)
        self.entry = index.NONE
        self.disk_slot = index.NO_SLOT
        self.slot = -1
        self.demanded = False
        """Somebody waits for it, or did."""
        self.planned = False
        """A plan began it."""
        self.hops = hops
        """Nodes that passed the request for it on."""
        self.ways: list[Attempt] = []
        """Peers it is looked for at, in order, by their places in `view`; set once, when it starts."""
        self.view: View | None = None
        self.owners: list[str] = []
        """Ids of the nodes that are to hold it, the first in line first; none where this node is alone."""
        self.pulled = False
        """Another node offered it, or a preload brings it: nobody waits for it."""
        self.from_origin = False
        """It came from a peer, which had to ask the origin first."""
        self.kept = False
        """Whoever offered it says that this node is to hold it, whatever this node's view says."""
        self.landed = False
        """It came from a peer and is published."""
        self.use: int | None = None
        """Its next use, on the clock of its space, if a plan said it."""
        self.ticket: Ticket | None = None

    def is_near(self, node_id: str) -> bool:
        """Whether the block belongs to others than this node."""
        return bool(self.owners) and not self.kept and node_id not in self.owners

    @property
    def rank(self) -> Rank:
        if self.demanded:
            return _DEMANDED
        if self.pulled:
            return (3, 0)
        return (2, self.use or 0) if self.planned else (1, 0)


_DEMANDED: Rank = (0, 0)


_ENDINGS: tuple[tuple[type[Exception], str], ...] = ((DeadlineExceeded, "late"), (NoSpace, "refused"))
"""What is remembered of a block that did not come, for who asks why."""


class Filler:
    """Runs flights on the node's loop."""

    def __init__(self, node: Node, concurrency: int, range_bytes: int, timeout_s: float) -> None:
        self._node = node
        self._origin_turns = Turns(concurrency)
        self._budget = OriginBudget(concurrency)
        self._disk_turns = Turns(_DISK_READS)
        self._range_bytes = range_bytes
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._no_room_until: dict[int, float] = {}
        """By space: no fill waits for room before this time."""
        self.disk_pool = ThreadPoolExecutor(_DISK_READS, "shoal-disk")

    @property
    def running(self) -> int:
        """Reads under way or waiting for their turn."""
        return len(self._tasks)

    def start(self, flights: list[Flight]) -> None:
        """Run these flights; called on the loop."""
        missing: list[Flight] = []
        for flight in flights:
            if flight.entry != index.NONE:
                self._spawn(self._from_disk(flight))
            else:
                missing.append(flight)
        self._look(missing)

    def _look(self, flights: list[Flight]) -> None:
        """At the peers, where there are any, and then at the origin."""
        peers = self._node.peers
        if peers is not None and flights:
            flights, batches = peers.divide(flights)
            for batch in batches:
                self._spawn(peers.fill(batch, self._fetch))
        self._fetch(flights)

    def _fetch(self, flights: list[Flight]) -> None:
        for run in _runs(flights, self._range_bytes):
            self._spawn(self._from_origin(run))

    def hurry(self, flight: Flight) -> None:
        """Somebody waits for it now; called on the loop."""
        if flight.ticket is not None:
            flight.ticket.hurry(_DEMANDED)

    def room_freed(self) -> None:
        """A slot may be had again: those who wait try."""
        self._room.set()
        self._room = asyncio.Event()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.disk_pool.shutdown(wait=True)

    def _spawn(self, coroutine: object) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _from_origin(self, run: list[Flight]) -> None:
        node = self._node
        if not run[0].record.has_origin:
            url = run[0].record.url
            # Where only a key was known, somebody who knows more may have joined: for them it is not the last word.
            gone = NotFound(f"{url}: not in the cache, and no origin has it") if url else NodeGone("not held here")
            self.failed(run, gone)
            return
        result = "cancelled"
        try:
            async with self.turn(self._origin_turns, run):
                for flight in run:
                    if flight.slot < 0:
                        flight.slot = await self.reserve(flight.record.space, flight.size, run)
                first = run[0]
                record = first.record
                parts = [list(_parts(node.slot_memory(flight.slot, flight.size))) for flight in run]
                hashed: list[bytes] = []
                meta = ObjectMeta(record.url, record.size, record.etag)
                offset = first.block * record.block_size_bytes
                async with self._budget.turn(record.url):
                    node.counters.origin_requests += 1
                    await node.origins.fetch(
                        meta,
                        offset,
                        [part for block in parts for part in block],
                        timeout_s=self._timeout_s,
                        dataset=node.state.spaces[record.space].name,
                        filled=lambda part: hashed.append(digests.page_digests(part)),
                    )
            found = iter(hashed)
            with node.step() as state:
                for flight, block in zip(run, parts, strict=True):
                    table = b"".join(itertools.islice(found, len(block)))
                    node.arrivals.publish(flight, table, get.SOURCE_ORIGIN, near=flight.is_near(node.config.node_name))
                    node.counters.fill_bytes += flight.size
            result = "ok"
        except ShoalError as error:
            result = type(error).__name__
            if isinstance(error, ObjectChanged | NotFound):
                with node.step() as state:
                    state.objects.forget_resolution(run[0].record)
            self.failed(run, error)
        except BaseException as error:
            self.failed(run, error if isinstance(error, Exception) else NoSpace("the node is shutting down"))
            raise
        finally:
            node.counters.fills[run[0].record.url.partition(":")[0], result] += len(run)

    async def _from_disk(self, flight: Flight) -> None:
        node = self._node
        promoted = False
        try:
            async with self.turn(self._disk_turns, [flight]):
                flight.slot = await self.reserve(flight.record.space, flight.size, [flight])
                view = node.slot_memory(flight.slot, flight.size)
                loop = asyncio.get_running_loop()
                table = await in_thread(loop.run_in_executor(self.disk_pool, self._read, flight, view))
            with node.step() as state:
                slot, flight.slot = flight.slot, -1
                dropped = state.is_dropped(flight.entry)
                promoted = state.promoted(flight.entry, slot, table, node.now_s())
                if promoted:
                    node.arrivals.deliver(flight, flight.entry, get.SOURCE_DISK)
                elif not dropped:  # else its slot may have been written to meanwhile
                    node.counters.corrupt_pages["disk"] += 1
        except (ShoalError, asyncio.CancelledError) as error:
            with node.step() as state:
                # Dropped while it waited, its slab may be cut in other slots by now: no such slot is no error then.
                gone = isinstance(error, InvariantBroken) and state.is_dropped(flight.entry)
                state.unhold(flight.entry)
                if gone:
                    state.give_back(flight.slot)
                    flight.slot = -1
            if not gone:
                self.failed([flight], error if isinstance(error, ShoalError) else NoSpace("the node is shutting down"))
                return
        except OSError:
            with node.step() as state:
                node.counters.disk_errors["read"] += 1
                state.give_back(flight.slot)
                flight.slot = -1
                state.drop(flight.entry, erase=True, reason="corrupt")
                state.unhold(flight.entry)
        if not promoted:
            # The disk's copy is no good; a peer's or the origin's is.
            flight.entry = index.NONE
            self._look([flight])

    def _read(self, flight: Flight, view: memoryview) -> bytes:
        assert self._node.nvme is not None
        self._node.nvme.read(flight.disk_slot, flight.size, view)
        return digests.page_digests(view)

    def turn(self, turns: Turns, run: list[Flight]) -> Ticket:
        """`async with` it; whoever asks for one of the run meanwhile hurries it."""
        ticket = turns.ticket(min(flight.rank for flight in run))
        for flight in run:
            flight.ticket = ticket
        return ticket

    async def reserve(self, space: int, size: int, run: Sequence[Flight] = ()) -> int:
        """A slot, waiting a little for memory or leases to come back. NoSpace when there is no hope.

        For a `run` that only a plan or another node asked for, only memory under way is waited for: others need the
        turn, and the slots that the run has already, more.
        """
        node = self._node
        loop = asyncio.get_running_loop()
        end = loop.time() + _ROOM_WAIT_S
        while True:
            room = self._room
            with node.step() as state:
                planned = bool(run) and all(not flight.demanded and (flight.planned or flight.pulled) for flight in run)
                slot = state.reserve(space, size, node.now_s(), run[0].use if planned else None)
                if slot is None and planned and not state.layout.growing_bytes:
                    # In this step: a reader who comes after it begins anew.
                    error = NoSpace(f"space {state.spaces[space].name!r}: what is there is used sooner, or leased")
                    self._fail(state, run, error)
                    raise error
                hope = state.can_wait_for_room() and loop.time() >= self._no_room_until.get(space, 0.0)
            if slot is not None:
                return slot
            try:
                async with asyncio.timeout_at(end if hope else loop.time()):
                    await room.wait()
            except TimeoutError:
                if not planned and hope:
                    # Whoever comes next need not find out by waiting as long.
                    self._no_room_until[space] = loop.time() + _NO_ROOM_S
                name = node.state.spaces[space].name
                raise NoSpace(f"space {name!r}: nothing can make room now (leased, pinned or over quota)") from None

    def failed(self, run: Iterable[Flight], error: Exception) -> None:
        """These flights end without their blocks."""
        with self._node.step() as state:
            self._fail(state, run, error)

    def _fail(self, state: NodeState, run: Iterable[Flight], error: Exception) -> None:
        for flight in run:
            if flight.slot >= 0:
                state.give_back(flight.slot)
                flight.slot = -1
            if flight.record.has_origin:
                reason = next((name for kind, name in _ENDINGS if isinstance(error, kind)), "failed")
                self._node.endings.note(flight.key, reason, self._node.now_s())
            self._node.arrivals.deliver_error(flight, error)


def _parts(memory: memoryview) -> Iterator[memoryview]:
    """Whole pages, hashed together."""
    for start in range(0, len(memory), _HASH_BYTES):
        yield memory[start : start + _HASH_BYTES]


def _runs(flights: list[Flight], range_bytes: int) -> list[list[Flight]]:
    """Neighbouring blocks of one object, together, up to `range_bytes` a run."""
    runs: list[list[Flight]] = []
    size = 0
    for flight in flights:
        last = runs[-1][-1] if runs else None
        joins = (
            last is not None
            and last.record is flight.record
            and last.block + 1 == flight.block
            and size + flight.size <= range_bytes
        )
        if joins:
            runs[-1].append(flight)
            size += flight.size
        else:
            runs.append([flight])
            size = flight.size
    return runs
