"""How a simulated node brings blocks: the order of events of the real `fill`, on simulated time.

reserve a slot -> bytes arrive in it and are hashed -> publish, deliver -> unhold. Turns, room, the origin's gate and
the ways after a failure are those of the real filler; tasks are generators.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from shoal_core import digests, index
from shoal_core.budget import Gate
from shoal_core.errors import InvariantBroken, NoSpace, NotFound, ObjectChanged, OriginError, ShoalError
from shoal_core.verbs import get
from shoal_node.fill import Filler, Flight
from shoal_node.turns import Rank
from tests.simulation.world import LATE, MS, US, Future, S, Work

if TYPE_CHECKING:
    from tests.simulation.sim_node import SimNode

_DISK_READS = 4
_ROOM_WAIT_NS = 2 * S
_NO_ROOM_NS = 1 * S


class SimTicket:
    """`yield from ticket.enter()`, and then `leave`, whatever happens."""

    def __init__(self, turns: SimTurns, rank: Rank) -> None:
        self._turns, self.rank = turns, rank
        self.future: Future | None = None

    def hurry(self, rank: Rank) -> None:
        if rank < self.rank:
            self.rank = rank
            if self.future is not None:
                self._turns.queue(self)

    def enter(self) -> Work:
        turns = self._turns
        if turns.free:
            turns.free -= 1
            return
        self.future = Future()
        turns.queue(self)
        yield self.future
        self.future = None

    def leave(self) -> None:
        self._turns.leave()


class SimTurns:
    """As `turns.Turns`."""

    def __init__(self, count: int) -> None:
        self.count = self.free = count
        self._waiting: list[tuple[Rank, int, SimTicket]] = []
        self._number = 0

    def ticket(self, rank: Rank) -> SimTicket:
        return SimTicket(self, rank)

    def queue(self, ticket: SimTicket) -> None:
        self._number += 1
        heapq.heappush(self._waiting, (ticket.rank, self._number, ticket))

    def leave(self) -> None:
        while self._waiting:
            rank, _, ticket = heapq.heappop(self._waiting)
            if ticket.future is not None and not ticket.future.done and rank == ticket.rank:
                ticket.future.set()
                return
        self.free += 1


class SimFiller(Filler):
    """The real one decides who goes where; its work is done here."""

    def __init__(self, node: SimNode) -> None:
        self._node = node  # type: ignore[assignment]
        self._world = node.world
        self._origin_turns = SimTurns(node.config.fill.concurrency)  # type: ignore[assignment]
        self._disk_turns = SimTurns(_DISK_READS)  # type: ignore[assignment]
        self.gate = Gate(node.config.fill.concurrency, node.world.chance)
        self._range_bytes = node.config.fill.range_bytes_max
        self._room_freed = Future()
        self._no_room_until_ns: dict[int, int] = {}
        self._running = 0

    @property
    def running(self) -> int:
        return self._running

    @property
    def turns_taken(self) -> int:
        """Of all kinds here."""
        return sum(turns.count - turns.free for turns in (self._origin_turns, self._disk_turns))

    def room_freed(self) -> None:
        freed, self._room_freed = self._room_freed, Future()
        freed.set()

    def _spawn(self, coroutine: Any) -> None:
        self._running += 1
        task = self._world.spawn(self._node.process, coroutine)
        task.ended.then(self._spawned_ended)

    def _spawned_ended(self, _: object) -> None:
        self._running -= 1

    def _from_origin(self, run: list[Flight]) -> Work:  # type: ignore[override]
        node = self._node
        if not run[0].record.has_origin:
            self.failed(run, NotFound(f"{run[0].record.url}: not in the cache, and no origin has it"))
            return
        ticket: Any = self.turn(self._origin_turns, run)  # type: ignore[arg-type]
        yield from ticket.enter()
        try:
            for flight in run:
                if flight.slot < 0:
                    flight.slot = yield from self.reserve(flight.record.space, flight.size, run)
            blocks = yield from self._through_the_gate(run)
            tables: list[bytes] = []
            for flight, block in zip(run, blocks, strict=True):
                memory = node.slot_memory(flight.slot, flight.size)
                memory[:] = block
                tables.append(digests.page_digests(memory))
            yield 20 * US
            with node.step():
                for flight, table in zip(run, tables, strict=True):
                    node.arrivals.publish(flight, table, get.SOURCE_ORIGIN, near=flight.is_near(node.config.node_name))
        except ShoalError as error:
            if isinstance(error, InvariantBroken):
                raise
            if isinstance(error, ObjectChanged | NotFound):
                with node.step() as state:
                    state.objects.forget_resolution(run[0].record)
            self.failed(run, error)
        finally:
            ticket.leave()

    def _through_the_gate(self, run: list[Flight]) -> Generator[Any, Any, list[bytes]]:
        """Read from the origin, when it is this node's turn there."""
        node, world = self._node, self._world
        while not self.gate.take(world.now_ns):
            yield max(10 * MS, self.gate.wait_ns(world.now_ns))
        refused = False
        try:
            return (
                yield from node.origin.read(node.process, node.config.node_name, run[0].record, run[0].block, len(run))
            )
        except OriginError:
            refused = True
            raise
        finally:
            self.gate.ended(refused, world.now_ns)

    def _from_disk(self, flight: Flight) -> Work:  # type: ignore[override]
        node = self._node
        assert node.nvme is not None
        promoted = False
        ticket: Any = self.turn(self._disk_turns, [flight])  # type: ignore[arg-type]
        yield from ticket.enter()
        try:
            flight.slot = yield from self.reserve(flight.record.space, flight.size, [flight])
            view = node.slot_memory(flight.slot, flight.size)
            yield from node.nvme.read(flight.disk_slot, flight.size, view)
            table = digests.page_digests(view)
            with node.step() as state:
                slot, flight.slot = flight.slot, -1
                key = state.index.key(flight.entry)
                promoted = self.promoted(state, flight, slot, table)
                if promoted:
                    node.arrivals.deliver(flight, flight.entry, get.SOURCE_DISK)
                else:
                    self._world.note("not promoted", node.config.node_name, key)
        except ShoalError as error:
            with node.step() as state:
                gone = isinstance(error, InvariantBroken) and state.is_dropped(flight.entry)
                state.unhold(flight.entry)
                if gone:
                    state.give_back(flight.slot)
                    flight.slot = -1
            if not gone:
                if isinstance(error, InvariantBroken):
                    raise
                self.failed([flight], error)
                return
        except OSError:
            with node.step() as state:
                state.give_back(flight.slot)
                flight.slot = -1
                state.drop(flight.entry, erase=True, reason="corrupt")
                state.unhold(flight.entry)
        finally:
            ticket.leave()
        if not promoted:
            flight.entry = index.NONE
            self._look([flight])

    def promoted(self, state: Any, flight: Flight, slot: int, table: bytes) -> bool:
        """What the state says of the bytes that came up."""
        return state.promoted(flight.entry, slot, table, self._node.now_s())

    def reserve(  # type: ignore[override]
        self, space: int, size: int, run: Sequence[Flight] = ()
    ) -> Generator[Any, Any, int]:
        """A slot, waiting a little for memory or leases to come back. NoSpace when there is no hope."""
        node, world = self._node, self._world
        end_ns = world.now_ns + _ROOM_WAIT_NS
        while True:
            freed = self._room_freed
            with node.step() as state:
                idle = bool(run) and all(not flight.demanded and (flight.planned or flight.pulled) for flight in run)
                slot = state.reserve(space, size, node.now_s(), run[0].use if idle else None)
                if slot is None and idle and not state.layout.growing_bytes:
                    no_room = NoSpace("what is there is used sooner, or leased")
                    self._fail(state, run, no_room)
                    raise no_room
                hope = state.can_wait_for_room() and world.now_ns >= self._no_room_until_ns.get(space, 0)
            if slot is not None:
                return slot
            left_ns = (end_ns if hope else world.now_ns) - world.now_ns
            if left_ns <= 0 or (yield freed, left_ns) is LATE:
                if hope and not idle:
                    self._no_room_until_ns[space] = world.now_ns + _NO_ROOM_NS
                raise NoSpace(f"space {node.state.spaces[space].name!r}: nothing can make room now")
