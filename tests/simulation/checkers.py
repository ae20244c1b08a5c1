"""What must hold: while the simulation runs, and when everything is over.

Bytes read are the bytes written, of one version; every request ends within its deadline; an error has a reason; no
lease, slot or task is left; the origin is asked as rarely and by as few at once as was promised; a quota is never
exceeded; and in the end all owners of a block hold it. `Failed` names the blocks concerned, for the story.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shoal_core import index, limits
from shoal_core.errors import DeadlineExceeded, ObjectChanged, OriginError
from shoal_core.router import HEDGES_MAX, HEDGES_PER_REQUEST
from tests.simulation.world import MS

if TYPE_CHECKING:
    from tests.simulation.plan import Plan
    from tests.simulation.sim_client import Piece, SimClient
    from tests.simulation.sim_node import SimNode
    from tests.simulation.simulation import Simulation

GRACE_NS = 1 * MS
"""After its deadline a read ends at once."""


class Failed(AssertionError):
    """Something that must hold does not."""

    def __init__(self, text: str, keys: list[bytes] | None = None) -> None:
        super().__init__(text)
        self.keys = keys or []


def expect(holds: object, text: str, keys: list[bytes] | None = None) -> None:
    if not holds:
        raise Failed(text, keys)


class Watch:
    """Told of each read; looks at the nodes' states in turns."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._world = simulation.world
        self._running: dict[SimClient, tuple[int, bool]] = {}
        """Until when each read may take, and whether it must succeed."""
        self.sources: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.reads = 0
        self.must_succeed = simulation.plan.is_calm
        self._turn = 0
        self._steps = 0
        self._world.after_step.append(self._step)

    # Reads

    def read_began(self, client: SimClient, pieces: list[Piece], until_ns: int) -> None:
        self._running[client] = until_ns, self.must_succeed
        for piece in pieces:
            self._world.note("read", client.name, piece.key, piece.stored.url)

    def read_ended(self, client: SimClient, pieces: list[Piece], until_ns: int) -> None:
        _, must_succeed = self._running.pop(client)
        self.reads += 1
        keys = [piece.key for piece in pieces]
        expect(self._world.now_ns <= until_ns + GRACE_NS, f"{client.name}: a read ended after its deadline", keys)
        for piece in pieces:
            self._ended(client, piece, must_succeed)

    def _ended(self, client: SimClient, piece: Piece, must_succeed: bool) -> None:
        if piece.data is not None:
            self._same(client, piece, piece.data)
            self.sources[piece.source.rpartition(" ")[2] if " " in piece.source else self._kind(piece)] += 1
            calm_origin = self._simulation.plan.is_calm and piece.source == "origin"
            expect(not calm_origin, f"{client.name}: it read around the nodes, and nothing was wrong", [piece.key])
            return
        error = piece.error
        self._world.note("error", client.name, piece.key, f"{type(error).__name__}: {error}")
        self.errors[type(error).__name__] += 1
        plan = self._simulation.plan
        if isinstance(error, ObjectChanged):
            expect(piece.stored.etag != piece.record.etag, f"{client.name}: it did not change: {error}", [piece.key])
            return
        reasons = [DeadlineExceeded, *([OriginError] if plan.has("refusing origin") else [])]
        expect(type(error) in reasons, f"{client.name}: {type(error).__name__}: {error}", [piece.key])
        expect(not must_succeed, f"{client.name}: nothing is wrong, but: {error!r}", [piece.key])

    @staticmethod
    def _kind(piece: Piece) -> str:
        return "origin" if piece.source == "origin" else "routed"

    def _same(self, client: SimClient, piece: Piece, data: bytes) -> None:
        size = piece.record.block_bytes(piece.block)
        whole = self._simulation.origin.content(piece.key, size)
        text = f"{client.name}: other bytes than were written came from {piece.source}"
        expect(data == whole[piece.offset : piece.offset + piece.length], text, [piece.key])

    def view_ended(self, client: SimClient, piece: Piece, data: bytes) -> None:
        """Somebody looked at a block for a while."""
        self._same(client, piece, data)

    def client_gone(self, client: SimClient) -> None:
        """Nobody waits for its read any more."""
        self._running.pop(client, None)

    # Nodes, in turns

    def _step(self) -> None:
        self._steps += 1
        if self._steps % self._simulation.plan.check_every:
            return
        late = [
            client.name for client, (until_ns, _) in self._running.items() if until_ns + GRACE_NS < self._world.now_ns
        ]
        expect(not late, f"reads that did not end within their deadline: {late}")
        nodes = list(self._simulation.nodes.values())
        if nodes:
            self._turn += 1
            check_node(nodes[self._turn % len(nodes)], self._simulation.plan)


def check_node(node: SimNode, plan: Plan) -> None:
    """What must hold between any two steps."""
    state, name = node.state, node.config.node_name
    try:
        state.check()
        node.peers.near.check()
    except AssertionError as error:
        raise Failed(f"{name}: {error!r}") from error
    declared = state.spaces if plan.has("quota") else plan.make_spaces()
    for tier in state.tiers:
        for number, space in enumerate(declared):
            if space.quota_bytes is not None and number not in state.over_quota:
                used_bytes = tier.slabs.space_used_bytes(number)
                expect(used_bytes <= space.quota_bytes, f"{name}: space {space.name} is over its quota")


def left_in_node(node: SimNode) -> Iterator[str]:
    """What must not be there when nobody asks for anything any more."""
    state, name = node.state, node.config.node_name
    filler: Any = node.filler
    counts = {
        "flights": node.arrivals.flight_count,
        "requests that wait": len(node.batches),
        "fills": filler.running,
        "turns": filler.turns_taken + node.peers.turns_taken,
        "origin reads": filler.gate.running,
        "leases": state.leases.count,
        "holds": sum(state.index.leases),
        "slots reserved": state._unpublished,
        "gathers": len(node.peers.reader.running),
        "requests at peers": sum(peer.in_flight for peer in node.peers.cluster.router.peers.values()),
        "disk writes": 0 if node.writer is None else int(not node.writer.idle),  # type: ignore[attr-defined]
        "clients with leases": sum(bool(client.entries) for client in state.leases.clients.values()),
    }
    yield from (f"{name}: {count} {what} left" for what, count in counts.items() if count)
    listed = sum(
        state.dram.slabs.slot_bytes(state.index.dram_slot[entry])
        for entry in state.index.linked()
        if state.index.dram_slot[entry] != index.NO_SLOT
    )
    if state.dram.slabs.used_bytes != listed + state.quarantined_bytes:
        yield f"{name}: {state.dram.slabs.used_bytes} bytes of slots used, {listed} listed"


def left_in_client(client: SimClient) -> Iterator[str]:
    counts = {
        "reads at the origin": client.gate.running,
        "requests": sum(peer.in_flight for peer in client.router.peers.values()),
        "gathers": len(client.reader.running),
        "views": 0 if client.home is None else client.home.views,
        "tasks": len(client.process.tasks),
    }
    yield from (f"{client.name}: {count} {what} left" for what, count in counts.items() if count)


def not_converged(simulation: Simulation) -> dict[bytes, str]:
    """Blocks that somebody is to hold and does not, though another has them; by key what is missing where."""
    held: dict[bytes, dict[str, bool]] = {}
    spaces: dict[bytes, int] = {}
    nodes = simulation.nodes
    for node in nodes.values():
        state = node.state
        for entry in state.index.linked():
            key = state.index.key(entry)
            held.setdefault(key, {})[node.config.node_name] = entry in node.peers.near
            spaces[key] = state.index.space[entry]
    known = simulation.views.current
    placed = simulation.placement()
    missing: dict[bytes, str] = {}
    declared = simulation.plan.make_spaces()
    for key, holders in held.items():
        space = declared[spaces[key]]
        if all(holders.values()) or space.ttl_s is not None or space.quota_bytes is not None:
            continue  # near copies alone; what goes by itself
        count = space.replicas or known.replica_count
        owners = [known.nodes[place].id for place in placed.owners_of(key)[:count]]
        lacking = [owner for owner in owners if owner in nodes and owner not in holders]
        if lacking:
            missing[key] = f"{', '.join(lacking)} lack what {', '.join(holders)} have"
    return missing


def check_origin(simulation: Simulation) -> None:
    """How often, and by how many at once, the origin was asked."""
    origin, plan = simulation.origin, simulation.plan
    for name, most in origin.most_at_once.items():
        allowed = limits.DIRECT_READS_MAX if name.startswith("c") else simulation.fill_concurrency
        expect(most <= allowed, f"{name}: {most} reads at the origin at once, {allowed} are allowed")
    if plan.is_roomy:
        brief = simulation.keys_of("brief")
        for key, count in origin.given.items():
            allowed = 1 if plan.is_calm else simulation.origin_reads_allowed(key)
            if key not in brief:
                expect(count <= allowed, f"nodes read a block {count} times at the origin, {allowed} is allowed", [key])


def check_digests(simulation: Simulation) -> None:
    """Bytes that do not match come of bits that flipped, and of nothing else."""
    if any(map(simulation.plan.has, ("flipped", "memory flips"))):
        return
    readers = [client.reader for client in simulation.clients]
    readers += [node.peers.reader for node in simulation.nodes.values()]
    wrong = {reader.process.name: reader.corrupt for reader in readers if reader.corrupt}
    expect(not wrong, f"no bit flipped, and yet bytes did not match their digests: {wrong}")
    expect(not any(node.state.quarantined_bytes for node in simulation.nodes.values()), "memory is in quarantine")


def check_hedges(simulation: Simulation) -> None:
    """Of all requests one in ten may be asked of another node as well."""
    for client in simulation.clients:
        allowed = HEDGES_MAX + HEDGES_PER_REQUEST * client.reader.asked + 1
        hedges = client.router.hedges
        expect(hedges <= allowed, f"{client.name}: {hedges} hedges for {client.reader.asked} requests")
