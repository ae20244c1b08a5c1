"""A client of the simulation: it reads, holds what it was granted for a while, and knows what must have come.

It has the real router, gather, grants and gate at the origin. On a node's host it asks that node for everything, over
its Unix door; where that fails, and where there is none, it asks the owners of the blocks, and then the origin, all
within the deadline of its read.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal_core import keys, limits, view
from shoal_core.budget import Gate
from shoal_core.errors import DeadlineExceeded, NodeGone, ObjectChanged, OriginError, ShoalError
from shoal_core.gather import Gather
from shoal_core.router import Router
from shoal_core.routing import Here
from shoal_core.verbs import resolve
from shoal_core.verbs import view as view_verb
from shoal_node.objects import ObjectRecord
from shoal_transport.asking import Item
from tests.simulation.home import Home
from tests.simulation.network import Machine
from tests.simulation.origin import Stored
from tests.simulation.reader import Reader
from tests.simulation.sim_peers import shared_router
from tests.simulation.world import MS, Future, Process, S, Work

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

_ASK_NS = 1 * S


@dataclass(eq=False)
class Piece:
    """A range of a block that a read wants."""

    stored: Stored
    record: ObjectRecord
    block: int
    key: bytes
    offset: int
    length: int
    data: bytes | None = None
    error: ShoalError | None = None
    source: str = ""
    tries: int = 0

    @property
    def ended(self) -> bool:
        return self.data is not None or self.error is not None


class SimClient:
    """One process that reads."""

    gather = Gather

    def __init__(self, simulation: Simulation, number: int, machine: Machine, home_id: str) -> None:
        self.simulation, self.world = simulation, simulation.world
        self.name = f"c{number}"
        self.number = number
        self.machine = machine
        self.process = Process(self.name)
        chance = self.world.chance
        router = Router(Here(home_id, machine.zone, machine.rack), chance)
        self.router = shared_router(router, simulation.placements)
        identity = self.name.encode().ljust(16, b"c")
        self.reader = Reader(
            simulation.network, self.process, machine, self.router, identity, simulation.run_of_clients
        )
        self.gate = Gate(limits.DIRECT_READS_MAX, chance)
        self.home = Home(self, home_id) if home_id else None
        self.opened: dict[str, ObjectRecord] = {}
        self.stopping = False
        self.was_lost = False
        """No node gave what it read last: it asks where it asked first, by a name that leads to the present nodes."""
        self.stale_until_ns = 0
        """Until then it learns of no later view."""
        self.ended = self.world.spawn(self.process, self._work()).ended

    def _work(self) -> Work:
        chance, world, plan = self.world.chance, self.world, self.simulation.plan
        yield int(chance.random() * plan.think_ns)
        while not self.stopping:
            yield from self._read_something()
            if not self.stopping:
                yield int(2 * chance.random() * self.simulation.think_ns)
        if self.home is not None:
            yield from self.home.close()
        world.note("client ends", self.name)

    def _read_something(self) -> Work:
        chance, world, simulation = self.world.chance, self.world, self.simulation
        objects = simulation.origin.objects
        stored = objects[int(len(objects) * chance.random() ** 2)]
        record = self.opened.get(stored.url)
        if record is None or chance.random() < 0.05:
            record = self.opened[stored.url] = simulation.origin.record(stored)
        first = chance.randrange(record.block_count)
        count = min(record.block_count - first, 1 + chance.randrange(simulation.plan.read_blocks_max))
        pieces = [self._piece(stored, record, block) for block in range(first, first + count)]
        until_ns = world.now_ns + simulation.deadline_ns()
        simulation.watch.read_began(self, pieces, until_ns)
        try:
            yield from self.read(pieces, until_ns)
        except ShoalError as error:
            for piece in pieces:
                if not piece.ended:
                    piece.error = error
        simulation.watch.read_ended(self, pieces, until_ns)
        if any(isinstance(piece.error, ObjectChanged) for piece in pieces):
            self.opened.pop(stored.url, None)

    def _piece(self, stored: Stored, record: ObjectRecord, block: int) -> Piece:
        size, chance = record.block_bytes(block), self.world.chance
        offset, length = 0, size
        if chance.random() < 0.2:
            offset = chance.randrange(size)
            length = 1 + chance.randrange(size - offset)
        return Piece(stored, record, block, keys.block_key(record.fingerprint, block), offset, length)

    # A read

    def read(self, pieces: list[Piece], until_ns: int) -> Work:
        """Complete every piece, or give it an error."""
        if self.router.view is None or self.reader.late_epoch > self.router.epoch or self.was_lost:
            yield from self._learn(until_ns)
            self.was_lost = False
        if self.home is not None:
            yield from self.home.read(pieces, until_ns)
        left = [piece for piece in pieces if not piece.ended]
        if left and self.router.view is not None:
            yield from self._routed(left, until_ns)
        left = [piece for piece in left if not piece.ended]
        if left:
            self.was_lost = True
            yield from self._from_origin(left, until_ns)

    def _routed(self, pieces: list[Piece], until_ns: int) -> Work:
        items = [
            Item(
                piece.key, piece.record.fingerprint,
                resolve.Wanted(piece.stored.name, piece.record.size, piece.record.etag),
                piece.block, piece.offset, piece.length, None,
            )
            for piece in pieces
        ]  # fmt: skip
        now_ns, simulation = self.world.now_ns, self.simulation
        ways = [
            self.router.candidates(piece.key, simulation.replicas[piece.stored.space], now_ns) for piece in pieces
        ]  # fmt: skip
        gather = self.gather(self.router, [item.length for item in items], ways)
        late: ShoalError | None = None
        left: Sequence[int] = ()
        try:
            left = yield from self.reader.run(gather, items, until_ns, 0)
        except DeadlineExceeded as error:
            late = error
        for number, (piece, item) in enumerate(zip(pieces, items, strict=True)):
            if item.part is not None:
                piece.data, piece.source = bytes(item.part), item.node_id
            elif late is not None or number not in left:
                piece.error = late or item.error

    def _from_origin(self, pieces: list[Piece], until_ns: int) -> Work:
        done = [self.world.spawn(self.process, self._direct(piece, until_ns)).ended for piece in pieces]
        for future in done:
            yield future, until_ns - self.world.now_ns
        for piece in pieces:
            if not piece.ended:
                piece.error = DeadlineExceeded("not read from the origin in time")

    def _direct(self, piece: Piece, until_ns: int) -> Work:
        world, origin = self.world, self.simulation.origin
        while not self.gate.take(world.now_ns):
            yield max(20 * MS, self.gate.wait_ns(world.now_ns))
            if piece.ended or world.now_ns >= until_ns:
                return
        refused = False
        try:
            (block,) = yield from origin.read(self.process, self.name, piece.record, piece.block, 1)
            if not piece.ended:
                piece.data, piece.source = block[piece.offset : piece.offset + piece.length], "origin"
        except ShoalError as error:
            refused = isinstance(error, OriginError)
            if not piece.ended:
                piece.error = error
        finally:
            self.gate.ended(refused, world.now_ns)

    # The view

    def _learn(self, until_ns: int) -> Generator[Any, Any, None]:
        """Ask for a later view, the nearest first, until one has it."""
        if self.router.view is not None and self.world.now_ns < self.stale_until_ns:
            return
        late_epoch = self.reader.late_epoch
        for node_id in self._whom_to_ask():
            if self.world.now_ns >= until_ns:
                return
            until = min(until_ns, self.world.now_ns + _ASK_NS)
            try:
                reply = yield from self.reader.call(
                    node_id, view_verb.KIND, view_verb.Request(self.router.epoch), until
                )
            except (NodeGone, DeadlineExceeded):
                continue
            if reply.view is not None:
                self.adopt(reply.view)
            break
        if self.reader.late_epoch == late_epoch:
            self.reader.late_epoch = self.router.epoch

    def _whom_to_ask(self) -> list[str]:
        known = self.router.view
        if known is None or self.was_lost:
            present = [node.id for node in self.simulation.views.current.nodes]
            first = self.number % len(present)
            return [*present[first:], *present[:first]][:3]
        order = self.router.order(range(len(known.nodes)), self.world.now_ns)
        return [known.nodes[way.place].id for way in order if way.place is not None]

    def adopt(self, offered: view.View) -> None:
        if self.router.adopt(offered):
            self.reader.keep_only(offered)

    def heard(self, epoch: int) -> None:
        self.reader.late_epoch = max(self.reader.late_epoch, epoch)

    def over(self) -> Future:
        """It reads nothing more, and gives everything back."""
        self.stopping = True
        return self.ended
