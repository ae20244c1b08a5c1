"""A node of the simulation: the real state and everything real that decides, on a simulated machine.

`SimNode` is the real `runtime.Node` without its loop, threads and sockets: `step` carries out what the state asked for,
at once or as later events. A session answers requests one after another, by the real session's methods. Memory is real
memory, laid out by the real layout: whoever writes where he should not, writes over another block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, NamedTuple

from shoal_core import frame, limits, verbs
from shoal_core.config import NodeConfig
from shoal_core.errors import InvariantBroken, NodeGone, ShoalError
from shoal_core.verbs import fetch, get, hello, resolve, revoke
from shoal_node import actions, assembly, batches, expiry, inline, passing
from shoal_node.administration import Administration
from shoal_node.admission import Admission
from shoal_node.arrivals import Arrivals
from shoal_node.batches import Batch, Delivered, Outcome
from shoal_node.endings import Endings
from shoal_node.fill import Flight
from shoal_node.inline import HeldBlock
from shoal_node.metrics import Counters
from shoal_node.objects import ObjectRecord
from shoal_node.resolver import Resolver
from shoal_node.runtime import Node
from shoal_node.session import Reply, Session
from shoal_node.spaces import Space
from shoal_node.state import NodeState
from shoal_transport.origins.interface import ObjectMeta
from tests.simulation.disk import Disk, Writer
from tests.simulation.gathering import GatherRun
from tests.simulation.network import Connection, Machine, Network
from tests.simulation.origin import TENANT, Origin
from tests.simulation.sim_fill import SimFiller
from tests.simulation.sim_peers import Placements, SimPeers
from tests.simulation.world import LATE, MS, Future, Process, S, Work, World

SLAB_BYTES = limits.PAGE_BYTES


class Segment(NamedTuple):
    """DRAM, as a client maps it."""

    memory: memoryview
    size: int
    tenant: str


class SimStep:
    """As `runtime.Step`; two at a time would be a deadlock."""

    def __init__(self, state: NodeState, perform: Callable[[list[actions.Action]], None]) -> None:
        self._state, self._perform = state, perform
        self._inside = False
        self.decided: deque[actions.TableAction] = deque()

    def __enter__(self) -> NodeState:
        assert not self._inside, "a step inside a step: the lock would be waited for for ever"
        self._inside = True
        return self._state

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside = False
        pending = self._state.actions
        if pending and error is None:
            self._state.actions = []
            self.decided.extend(action for action in pending if isinstance(action, actions.TableAction))
            self._perform(pending)


class _Loop:
    """What the real code does on the node's loop, it does here as the next event."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process

    def call_soon_threadsafe(self, happens: Callable[..., None], *arguments: Any) -> None:
        self._world.soon(self._process, happens, *arguments)


class SimBatch(Batch):
    """Outcomes, and a future instead of an event of threads."""

    __slots__ = ("over",)

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.over = Future()

    def expect(self) -> None:
        self.missing += 1

    def deliver(self, item: int, outcome: Outcome) -> bool:
        taken = super().deliver(item, outcome)
        if taken and not self.missing:
            self.over.set()
        return taken


class Place(NamedTuple):
    """Where a node runs, and with whom."""

    world: World
    network: Network
    origin: Origin
    machine: Machine
    placements: Placements


class SimNode(Node):
    """One process of a node. After a kill there is a new one on the same disk."""

    run_of_peers = GatherRun
    filler_of = SimFiller

    def __init__(self, place: Place, config: NodeConfig, spaces: list[Space], disk: Disk | None, wall_s: int) -> None:
        self.world, self.network, self.origin, self.machine, placements = place
        self.process = Process(config.node_name)
        self.config = config
        self.state = NodeState(
            config.dram.budget_bytes, SLAB_BYTES, config.fill.block_size_bytes, config.lease_bytes_max,
            disk.slab_count if disk is not None else 0,
        )  # fmt: skip
        for space in spaces:
            self.state.add_space(space)
        self.nvme = disk  # type: ignore[assignment]
        if disk is not None:
            assembly._recover(self.state, disk)  # type: ignore[arg-type]
        self.tenant = TENANT
        self.admission = Admission(config)
        self.counters = Counters()
        self.draining = self.refusing = False
        self.endings = Endings()
        self.state.ended = self._note_ending
        self.segments = []
        self.events = {}
        self.batches: dict[SimBatch, None] = {}
        self.held: dict[int, None] = {}
        """Numbers of replies whose blocks are held."""
        self.loop = _Loop(self.world, self.process)  # type: ignore[assignment]
        self._step = SimStep(self.state, self._perform)  # type: ignore[assignment]
        self._now_s = 0
        self.clock_ns = wall_s * S
        """What its wall clock shows beyond the world's time."""
        self.filler = self.filler_of(self)
        self.arrivals = Arrivals(self)
        self.writer = Writer(self, disk) if disk is not None else None  # type: ignore[assignment]
        self.peers = SimPeers(self, placements)
        self.addresses = []
        self.origin_environment = ""
        self.resolver = Resolver(self)
        self.administration = Administration(self, self.resolver)
        self.sessions: dict[SimSession, None] = {}
        self.grow(self.state.layout.next_segment_bytes())
        self.world.spawn(self.process, self._expiring())
        self.network.doors[config.node_name] = self

    def now_s(self) -> int:
        self._now_s = max(self._now_s, (self.world.now_ns + self.clock_ns) // S)
        return self._now_s

    def accept(self, connection: Connection, identity: bytes, role: str) -> SimSession:
        """Somebody connects and says hello."""
        return SimSession(self, connection, identity, role)

    def grow(self, size: int) -> None:
        with self.step() as state:
            self.segments.append(Segment(memoryview(bytearray(size)), size, TENANT))  # type: ignore[arg-type]
            state.segment_added(size)

    def _expiring(self) -> Work:
        while True:
            yield S
            dropped = True
            while dropped:
                with self.step() as state:
                    dropped = expiry.expire(state, self.now_s()) > 0

    def _perform(self, pending: list[actions.Action]) -> None:
        world, process = self.world, self.process
        for action in pending:
            match action:
                case actions.Grow(size):
                    world.at(3 * MS, process, self.grow, size)
                case actions.Revoke(client, grants):
                    if (send := self.events.get(client)) is not None:
                        world.soon(process, send, grants)
                case actions.SpaceFreed():
                    world.soon(process, self.filler.room_freed)
                case _:
                    if self.writer is not None:
                        self.writer.wake()

    # The read

    def outcomes(
        self, records: list[ObjectRecord], request: get.Request, until_ns: int
    ) -> Generator[Any, Any, SimBatch]:
        """As `Node.get`, up to the answer."""
        batch = SimBatch(len(request.items))
        new: list[Flight] = []
        with self.step() as state:
            self.arrivals.look_up(state, records, request, batch, new)
        if new:
            self.world.soon(self.process, self.filler.start, new)
        yield from self._waited(batch, until_ns, lambda: self.arrivals.give_up(batch, records, request))
        return batch

    def held_outcomes(self, wanted: list[bytes], until_ns: int) -> Generator[Any, Any, SimBatch]:
        """As the first half of `passing.give`."""
        batch = SimBatch(len(wanted))
        new: list[Flight] = []
        with self.step():
            self.arrivals.held_batch(wanted, batch, new)
        if new:
            self.world.soon(self.process, self.filler.start, new)

        def give_up() -> None:
            batch.abandoned = True

        yield from self._waited(batch, until_ns, give_up)
        return batch

    def _waited(self, batch: SimBatch, until_ns: int, give_up: Callable[[], None]) -> Work:
        if batch.missing:
            self.batches[batch] = None
            if (yield batch.over, until_ns - self.world.now_ns) is LATE:
                give_up()
            del self.batches[batch]


class SimSession(Session):
    """One connection; requests are answered one after another."""

    def __init__(self, node: SimNode, connection: Connection, identity: bytes, role: str) -> None:
        self.node = self._node_of = node
        self.resolver, self.administration = node.resolver, node.administration
        self.door = "unix" if role == hello.EVENTS or connection.client_machine is node.machine else "tcp"
        self.grants = self.door == "unix"
        super().__init__(self, self)  # type: ignore[arg-type]  # it is its own server and connection, as far as asked
        self._sim = connection
        self._waiting: deque[bytes] = deque()
        self._busy = self._ended = False
        node.sessions[self] = None
        self._hello(hello.Request(identity, role, "simulated"))

    def arrived(self, data: bytes) -> None:
        header = frame.parse_header(data)
        if self._events and header.kind == revoke.KIND | frame.REPLY:
            self._revoked(header, data[frame.HEADER_BYTES :])
            return
        self._waiting.append(data)
        if not self._busy:
            self._busy = True
            self._node_of.world.spawn_now(self._node_of.process, self._answering())

    def ended(self) -> None:
        """The other end has gone."""
        self._ended = True
        if not self._busy:
            self._close()

    def _close(self) -> None:
        if self._node_of.sessions.pop(self, 0) is None:
            with self._node_of.step() as state:
                state.connection_ended(self._identity, self._events)
                if self._events:
                    self._node_of.events.pop(self._identity, None)

    def _answering(self) -> Work:
        while self._waiting and not self._ended:
            yield from self._one(self._waiting.popleft())
        self._busy = False
        if self._ended:
            self._close()

    def _one(self, data: bytes) -> Work:
        header = frame.parse_header(data)
        reply: Reply | None = None
        try:
            request = verbs.decode_request(header.kind, data[frame.HEADER_BYTES :])
            reply = yield from self._reply_to(header.kind, request)
            size = sum(map(len, reply.payload))
            encoded = frame.encode(header.kind | frame.REPLY, header.request, verbs.encode(reply.body), size)
        except NodeGone:
            self._sim.server_close()
            return
        except InvariantBroken:
            raise
        except ShoalError as error:
            encoded = frame.encode(frame.FAILURE, header.request, verbs.failure(error))
        if reply is None or not reply.payload:
            self._sim.answer(encoded)
            if reply is not None and reply.done is not None:
                reply.done()
            return
        sent = Future()
        self._sim.answer(encoded, reply.payload, sent.set)
        yield sent
        if reply.done is not None:
            reply.done()

    def _reply_to(self, kind: int, request: Any) -> Generator[Any, Any, Reply]:
        if kind == get.KIND:
            return (yield from self._blocks(request))
        if kind == fetch.KIND:
            return (yield from self._whole(request))
        if kind == resolve.KIND:
            return Reply(self._resolved(request))
        answered = self._verbs[kind](request)
        return answered if isinstance(answered, Reply) else Reply(answered)

    def _blocks(self, request: get.Request) -> Generator[Any, Any, Reply]:
        """As `_get`."""
        node = self._node_of
        if node.refusing:
            raise NodeGone("draining")
        until_ns = node.world.now_ns + request.deadline_ms * MS
        if request.released or request.touches:
            self._report(request.released, request.touches)
        records = self._records(request)
        batches.check_items(records, request)
        batch = yield from node.outcomes(records, request, until_ns)
        with node.step() as state:
            items, held = self._items(request, state, batch.outcomes)  # type: ignore[arg-type]
        payload: list[memoryview] = []
        checked: set[tuple[int, int]] = set()
        for position, block in held:
            items[position], view = inline.answer(request.items[position], block, checked)
            payload.append(view)
        also = self._also(records, request.likely) if request.likely and self.grants else []
        hot = node.peers.hot(held) if held else []
        body = get.Reply(items, also, node.epoch, passing.load(node), hot)
        return Reply(body, payload, done=(lambda: self._unhold(held)) if held else None)

    def _whole(self, request: fetch.Request) -> Generator[Any, Any, Reply]:
        """As `passing.give`."""
        node = self._node_of
        if node.refusing:
            raise NodeGone("draining")
        until_ns = node.world.now_ns + request.deadline_ms * MS
        batch = yield from node.held_outcomes(request.keys, until_ns)
        items: list[get.Inline | get.Bypass] = []
        held: list[HeldBlock] = []
        with node.step() as state:
            for outcome in batch.outcomes:
                if isinstance(outcome, Delivered):
                    block = passing.held_block(node, state, outcome.entry, outcome.source)
                    held.append(block)
                    items.append(inline.answer(get.Item(0, 0, 0, len(block.memory)), block, set())[0])
                else:
                    items.append(get.Bypass(str(outcome)))

        def done() -> None:
            with node.step() as state:
                for block in held:
                    state.unhold(block.entry)

        body = fetch.Reply(items, node.epoch, passing.load(node))
        return Reply(body, [block.memory for block in held], done=done)

    def _resolved(self, request: resolve.Request) -> resolve.Reply:
        """Only what a client claims already."""
        found: list[resolve.Object | resolve.Failed] = []
        for wanted in request.wanted:
            assert wanted.size is not None and wanted.etag is not None
            space, url = self.resolver.locate(wanted.url)
            record = self.resolver._remember(space, ObjectMeta(url, wanted.size, wanted.etag), fresh=False)
            found.append(self.resolver._object(wanted.url, record, stale=False))
        return resolve.Reply(found)

    def _send(self, data: bytes, payload: Any = (), descriptors: Any = ()) -> None:
        self._sim.push(data)
