"""A network between machines, over which connections deliver in order, as TCP does, or not at all.

What may happen to a message: it is late; it is lost and comes again much later; it is lost and nothing comes after it,
and after a while the connection ends; a bit of its payload flips; it comes once more over another connection, as from a
reader that tried again. Directions between two machines can be blocked one by one: what is sent meanwhile waits, and
after STUCK_NS the connection ends. Between two connections there is no order. The Unix door of a machine is a
connection that none of this befalls; a stopped process only takes nothing from it.

Bytes of a payload are read when they were sent, not when it was decided to send them: who gives a slot away before its
bytes are sent sends another block's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

from shoal_core import frame
from shoal_core.errors import NodeGone
from tests.simulation.world import LATE, MS, US, Future, Process, S, World

STUCK_NS = 12 * S
CONNECT_NS = 1 * S
TRICKLE_NS = 1 * MS
"""Of a transfer that takes longer its first byte is an event of its own."""

LOCAL_NS = 20 * US
RACK_NS = 60 * US
ZONE_NS = 120 * US
FAR_NS = 700 * US


class Session(Protocol):
    """The far end of a connection, in a node."""

    def arrived(self, data: bytes) -> None: ...
    def ended(self) -> None: ...


class Door(Protocol):
    """Where a node takes connections."""

    process: Process
    machine: Machine

    def accept(self, connection: Connection, identity: bytes, role: str) -> Session: ...


class Machine:
    """Where processes run."""

    def __init__(self, name: str, zone: str = "", rack: str = "") -> None:
        self.name, self.zone, self.rack = name, zone, rack
        self.up = True
        self.slow = 1.0
        """Its bytes take so many times as long."""


class Reply(Future):
    """What comes back for one request: (header, body, payload), or a NodeGone."""

    __slots__ = ("began",)

    def __init__(self) -> None:
        super().__init__()
        self.began: Callable[[], None] | None = None
        """Called when its first byte is there, before `set`, if that is long before."""


class Odds(NamedTuple):
    """How likely each fault is, for each message."""

    late: float = 0.0
    lost: float = 0.0
    flipped: float = 0.0
    twice: float = 0.0


class Network:
    """All machines and what lies between."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.odds = Odds()
        self.blocked: dict[tuple[str, str], None] = {}
        """Directions that nothing passes, by the names of machines."""
        self.doors: dict[str, Door] = {}
        """By node id: its present process."""
        self.connections: dict[Connection, None] = {}
        self.parked: dict[Connection, None] = {}
        """Those over which something waits for a direction to be healed."""
        self.messages = 0
        self.flipped = 0
        self.opened = 0

    def latency_ns(self, source: Machine, target: Machine) -> int:
        chance = self.world.chance.random()
        if source is target:
            return LOCAL_NS + int(chance * LOCAL_NS)
        near = source.rack == target.rack and bool(source.rack)
        base = FAR_NS if source.zone != target.zone else RACK_NS if near else ZONE_NS
        return base + int(base * chance)

    def block(self, source: str, target: str) -> None:
        self.blocked[source, target] = None

    def heal(self, source: str, target: str) -> None:
        if self.blocked.pop((source, target), 0) is None:
            for connection in list(self.parked):
                connection.unblocked()

    def connect(
        self,
        process: Process,
        machine: Machine,
        node_id: str,
        identity: bytes,
        role: str,
        until_ns: int,
        local: bool = False,
    ) -> Generator[Any, Any, Connection]:
        """A greeted connection. NodeGone when there is none in time."""  # fmt: skip
        world, door = self.world, self.doors.get(node_id)
        end_ns = min(until_ns, world.now_ns + CONNECT_NS)
        if door is None or not door.machine.up or self._is_blocked(machine, door.machine, local):
            yield max(0, end_ns - world.now_ns)
            raise NodeGone(f"{node_id}: no connection")
        connection = Connection(self, process, machine, door, local)
        yield max(0, min(self.latency_ns(machine, door.machine), end_ns - world.now_ns))
        if not door.process.alive or world.now_ns >= end_ns:
            raise NodeGone(f"{node_id}: refused")
        greeted = Future()
        world.soon(door.process, connection.accepted, identity, role, greeted)
        if (yield greeted, end_ns - world.now_ns) is LATE:
            connection.close()
            raise NodeGone(f"{node_id}: it takes no connection")
        if connection.broken:
            raise NodeGone(f"{node_id}: it ended at once")
        self.opened += 1
        return connection

    def _is_blocked(self, source: Machine, target: Machine, local: bool) -> bool:
        if local:
            return False
        pairs = (source.name, target.name), (target.name, source.name)
        return any(pair in self.blocked for pair in pairs) or self.world.chance.random() < self.odds.lost

    def killed(self, process: Process) -> None:
        """A process has ended: the other ends hear of it, if its machine can still tell."""
        for connection in list(self.connections):
            if connection.server is process or connection.client is process:
                connection.lost_end(process)


class Connection:
    """One connection; its client end posts requests, its server end answers them in order."""

    __slots__ = (
        "_last_ns", "_local", "_network", "_parked", "_stalled", "accepted_at", "broken", "client",
        "client_machine", "on_break", "on_push", "posted", "server", "server_ended", "server_machine", "session",
    )  # fmt: skip

    def __init__(self, network: Network, client: Process, machine: Machine, door: Door, local: bool) -> None:
        self._network, self._local = network, local
        self.client, self.client_machine = client, machine
        self.accepted_at: Door = door
        self.server, self.server_machine = door.process, door.machine
        self.session: Session | None = None
        self.posted: deque[Reply] = deque()
        self.on_break: Callable[[], None] | None = None
        self.on_push: Callable[[bytes], None] | None = None
        self.broken = False
        """For the client's end."""
        self.server_ended = False
        self._last_ns = [0, 0]
        self._parked: tuple[list[Any], list[Any]] = ([], [])
        self._stalled = [False, False]
        network.connections[self] = None

    def accepted(self, identity: bytes, role: str, greeted: Future) -> None:
        """In the node: somebody says hello."""
        if self.broken:
            return
        self.session = self.accepted_at.accept(self, identity, role)
        self._network.world.at(
            self._network.latency_ns(self.server_machine, self.client_machine), self.client, greeted.set
        )

    # Client's end

    def post(self, data: bytes, twice: bool = False) -> Reply:
        """Send a request."""
        reply = Reply()
        if self.broken:
            reply.set(NodeGone("the connection has ended"))
            return reply
        self.posted.append(reply)
        self._transmit(0, self._request, data)
        network = self._network
        if twice and network.odds.twice and not self._local and network.world.chance.random() < network.odds.twice:
            ghost = Connection(network, network.world.self, self.client_machine, self.accepted_at, local=True)
            network.world.at(int(network.world.chance.random() * S), self.server, ghost._again, data)
        return reply

    def say(self, data: bytes) -> None:
        """Send what is answered by nothing."""
        if not self.broken:
            self._transmit(0, self._request, data)

    def close(self) -> None:
        """The client needs it no more."""
        if self.broken:
            return
        self._break(None)
        self._tell_server()

    # Server's end

    def answer(self, data: bytes, payload: Sequence[memoryview] = (), done: Callable[[], None] | None = None) -> None:
        """Send a reply; `done` is called when its bytes were sent, or when there is nobody to send them to."""
        world = self._network.world
        size = sum(map(len, payload))
        if not size:
            if done is not None:
                done()
            self._transmit(1, self._reply, data, b"")
            return
        transfer_ns = int(size * self.server_machine.slow) + 2 * US
        if transfer_ns > TRICKLE_NS:
            self._transmit(1, self._began)
        world.at(transfer_ns, self.server, self._sent, data, payload, done)

    def push(self, data: bytes) -> None:
        """The node says something without being asked."""
        self._transmit(1, self._pushed, data)

    def server_close(self) -> None:
        """The node ends it."""
        if not self.server_ended:
            self._end_server()
            self._network.world.at(
                self._network.latency_ns(self.server_machine, self.client_machine), self.client, self._break,
                NodeGone("the node ended the connection"),
            )  # fmt: skip

    # On the way

    def _transmit(self, direction: int, deliver: Callable[..., None], *arguments: Any) -> None:
        network, world = self._network, self._network.world
        network.messages += 1
        source, target = self.client_machine, self.server_machine
        receiver = self.server
        if direction:
            source, target, receiver = target, source, self.client
        delay_ns = network.latency_ns(source, target)
        if not self._local:
            if self._stalled[direction]:
                return
            if (source.name, target.name) in network.blocked or self._parked[direction]:
                self._parked[direction].append((deliver, arguments))
                network.parked[self] = None
                if len(self._parked[direction]) == 1:
                    world.at(STUCK_NS, world.self, self._stuck, direction, deliver, arguments)
                return
            odds = network.odds
            if odds.late and world.chance.random() < odds.late:
                delay_ns += int(world.chance.random() ** 2 * 300 * MS)
            if odds.lost and world.chance.random() < odds.lost:
                if world.chance.random() < 0.3:
                    self._stalled[direction] = True
                    world.at(int((0.5 + 6 * world.chance.random()) * S), world.self, self._reset)
                    return
                delay_ns += 200 * MS + int(world.chance.random() * 800 * MS)
        at_ns = self._last_ns[direction] = max(self._last_ns[direction], world.now_ns + delay_ns)
        world.at(at_ns - world.now_ns, receiver, deliver, *arguments)

    def unblocked(self) -> None:
        """Some direction was healed: what was parked goes on its way."""
        for direction in (0, 1):
            ends = self.client_machine.name, self.server_machine.name
            if self._parked[direction] and (ends if not direction else ends[::-1]) not in self._network.blocked:
                parked, self._parked[direction][:] = list(self._parked[direction]), []
                for deliver, arguments in parked:
                    self._transmit(direction, deliver, *arguments)
        if not any(self._parked):
            self._network.parked.pop(self, None)

    def _stuck(self, direction: int, deliver: object, arguments: object) -> None:
        if self._parked[direction] and self._parked[direction][0] == (deliver, arguments):
            self._reset()

    def _reset(self) -> None:
        """Both ends find out."""
        self._end_server()
        self._break(NodeGone("the connection broke"))

    def _request(self, data: bytes) -> None:
        if not self.server_ended and self.session is not None:
            self.session.arrived(data)

    def _again(self, data: bytes) -> None:
        """The same request once more, from somebody who takes no answer."""
        self.session = self.accepted_at.accept(self, data[:1] * 16, "requests")
        self.posted.append(Reply())
        self.posted[0].then(lambda _: self.close())
        self._request(data)

    def _sent(self, data: bytes, payload: Sequence[memoryview], done: Callable[[], None] | None) -> None:
        network = self._network
        whole = b"".join(payload)
        if done is not None:
            done()
        if network.odds.flipped and not self._local and network.world.chance.random() < network.odds.flipped:
            network.flipped += 1
            place = network.world.chance.randrange(len(whole))
            whole = whole[:place] + bytes([whole[place] ^ 1 << network.world.chance.randrange(8)]) + whole[place + 1 :]
        self._transmit(1, self._reply, data, whole)

    def _began(self) -> None:
        if not self.broken and self.posted and self.posted[0].began is not None:
            self.posted[0].began()

    def _reply(self, data: bytes, payload: bytes) -> None:
        if self.broken or not self.posted:
            return
        header = frame.parse_header(data)
        self.posted.popleft().set((header, data[frame.HEADER_BYTES :], payload))

    def _pushed(self, data: bytes) -> None:
        if not self.broken and self.on_push is not None:
            self.on_push(data)

    # Endings

    def lost_end(self, process: Process) -> None:
        """One of the processes was killed."""
        network = self._network
        if process is self.client:
            self.broken = True
            self._tell_server()
            self._forget()
            return
        self.server_ended = True
        if self.server_machine.up:
            delay_ns = network.latency_ns(self.server_machine, self.client_machine)
            if (self.server_machine.name, self.client_machine.name) in network.blocked:
                delay_ns += STUCK_NS
        else:  # nobody says so: the client finds out when it has sent in vain for long
            delay_ns = STUCK_NS
        network.world.at(delay_ns, self.client, self._break, NodeGone("the node ended"))

    def _tell_server(self) -> None:
        delay_ns = self._network.latency_ns(self.client_machine, self.server_machine)
        if (self.client_machine.name, self.server_machine.name) in self._network.blocked and not self._local:
            delay_ns += STUCK_NS
        self._network.world.at(delay_ns, self.server, self._end_server)

    def _end_server(self) -> None:
        if self.server_ended:
            return
        self.server_ended = True
        if self.session is not None and self.server.alive:
            # Told in its process: it may be stopped.
            self._network.world.soon(self.server, self.session.ended)
        self._forget()

    def _break(self, error: NodeGone | None) -> None:
        if self.broken:
            return
        self.broken = True
        posted, self.posted = self.posted, deque()
        for reply in posted:
            reply.set(error or NodeGone("closed"))
        if error is not None and self.on_break is not None:
            self.on_break()
        self._forget()

    def _forget(self) -> None:
        if self.broken and self.server_ended:
            self._network.connections.pop(self, None)
            self._network.parked.pop(self, None)
