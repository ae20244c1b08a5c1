"""One simulation: machines, nodes, clients and an origin, a load with faults, and then the question what is left.

load      clients read, faults strike, nodes come and go
settle    no more faults; after the longest pause that anybody makes, every read must succeed
quiet     clients end; nothing may be left, and all owners must come to hold their blocks
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal_core import config, keys, limits, placement, view
from shoal_core.config import NodeConfig
from shoal_node.spaces import space_of
from tests.simulation import checkers, membership
from tests.simulation.checkers import Failed, Watch
from tests.simulation.disk import Disk
from tests.simulation.faults import Faults
from tests.simulation.gathering import GatherRun
from tests.simulation.membership import Views
from tests.simulation.network import Machine, Network
from tests.simulation.origin import PLACE, TENANT, Origin, Stored
from tests.simulation.plan import Plan
from tests.simulation.sim_client import SimClient
from tests.simulation.sim_node import Place, SimNode
from tests.simulation.world import START_NS, S, Work, World

_WALL_S = 1_700_000_000
_POLL_NS = 1 * S
_SCRUB_S = 12.0


@dataclass
class Parts:
    """What a simulation is made of; a test breaks one of them on purpose."""

    node: type[SimNode] = SimNode
    client: type[SimClient] = SimClient
    origin: type[Origin] = Origin
    run_of_clients: type[GatherRun] = GatherRun


class Simulation:
    """Of one plan."""

    fill_concurrency = 8

    def __init__(self, plan: Plan, parts: Parts | None = None) -> None:
        self.plan, self.parts = plan, parts or Parts()
        self.world = World(plan.seed)
        self.network = Network(self.world)
        self.origin = self.parts.origin(self.world, plan.block_size_bytes)
        self.placements: dict[int, placement.Placement] = {}
        self.machines: dict[str, Machine] = {}
        self.disks: dict[str, Disk] = {}
        self.nodes: dict[str, SimNode] = {}
        """Those whose process runs, by id."""
        self.clients: list[SimClient] = []
        self.lags: dict[str, int] = {}
        """How old the view is that a node finds."""
        self.replicas = {space.name: space.replicas for space in plan.make_spaces()}
        self.run_of_clients = self.parts.run_of_clients
        self.watch = Watch(self)
        self.faults = Faults(self)
        self.views = Views(self.world)
        self.think_ns = plan.think_ns
        self._configs: dict[str, NodeConfig] = {}
        self._make_objects()
        first = [self.make_machine(number) for number in range(plan.node_count)]
        self.views.publish([self.member(machine) for machine in first], plan.replica_count)
        for machine in first:
            self.start(machine)
        self._make_clients(first)

    # What there is

    def _make_objects(self) -> None:
        chance, plan = self.world.chance, self.plan
        for number in range(plan.object_count):
            space = plan.spaces[number % len(plan.spaces)]
            url = f"{PLACE}/{space}/o{number}" if space != "default" else f"{PLACE}/o{number}"
            size = plan.block_size_bytes * plan.object_blocks - chance.randrange(plan.block_size_bytes)
            self.origin.objects.append(Stored(url, size, 1, space))

    def make_machine(self, number: int) -> Machine:
        plan = self.plan
        machine = Machine(
            f"n{number}", f"z{number % plan.zone_count}", f"r{number // plan.zone_count % plan.rack_count}"
        )
        self.machines[machine.name] = machine
        if plan.disk_slabs:
            self.disks[machine.name] = Disk(self.world, plan.disk_slabs)
        return machine

    def member(self, machine: Machine, status: view.NodeStatus = "ready") -> view.Node:
        """As the view lists it."""
        return view.Node(
            machine.name, (f"tcp:{machine.name}:1",), self.plan.dram_bytes, machine.zone, machine.rack, status
        )

    def _make_clients(self, first: list[Machine]) -> None:
        chance, plan = self.world.chance, self.plan
        for number in range(plan.client_count):
            if chance.random() < plan.home_fraction:
                machine = chance.choice(first)
                self.clients.append(self.parts.client(self, number, machine, machine.name))
            else:
                machine = Machine(f"m{number % 50}", f"z{number % plan.zone_count}")
                machine = self.machines.setdefault(machine.name, machine)
                self.clients.append(self.parts.client(self, number, machine, ""))

    def start(self, machine: Machine) -> SimNode:
        """A process of the node on that machine, on what is on its disk."""
        plan = self.plan
        configured = NodeConfig(
            node_name=machine.name,
            dram=config.Dram(plan.dram_bytes),
            fill=config.Fill(plan.block_size_bytes, self.fill_concurrency, 20.0, 4 * plan.block_size_bytes),
            cluster=config.Cluster("/view", 1.0, 0.25, 64 * limits.MIB, 3.0, _SCRUB_S),
        )
        place = Place(self.world, self.network, self.origin, machine, self.placements)
        spaces = [space_of(TENANT, "default"), *plan.make_spaces()[1:]]
        node = self.parts.node(place, configured, spaces, self.disks.get(machine.name), _WALL_S)
        self.nodes[machine.name] = node
        self.world.note("node starts", machine.name)
        self.world.spawn(node.process, self._following(node))
        return node

    def _following(self, node: SimNode) -> Work:
        while True:
            lag_ns = self.lags.get(node.config.node_name, 0)
            node.peers.adopt(self.views.at(self.world.now_ns - lag_ns))
            yield int(_POLL_NS * (0.5 + self.world.chance.random()))

    def kill(self, node: SimNode) -> None:
        """As kill -9 does."""
        self.world.note("killed", node.config.node_name)
        del self.nodes[node.config.node_name]
        node.process.kill()
        self.network.killed(node.process)

    def start_again(self, node_id: str) -> None:
        """A new process, unless there is one, or the node is wanted no more."""
        if node_id not in self.nodes and self.views.current.position(node_id) is not None:
            self.start(self.machines[node_id])

    def kill_client(self, client: SimClient) -> None:
        self.world.note("client killed", client.name)
        self.clients.remove(client)
        self.watch.client_gone(client)
        client.process.kill()
        self.network.killed(client.process)

    def clients_on(self, machine: Machine) -> list[SimClient]:
        return [client for client in self.clients if client.home is not None and client.machine is machine]

    def placement(self) -> placement.Placement:
        """Of the present view."""
        known = self.views.current
        return self.placements.setdefault(known.epoch, placement.Placement(known, view.REPLICA_COUNT_MAX))

    def keys_of(self, space: str) -> set[bytes]:
        """Of all blocks of all versions in a space."""
        found: set[bytes] = set()
        for stored in self.origin.objects:
            if stored.space == space:
                for version in range(1, stored.version + 1):
                    record = self.origin.record(Stored(stored.url, stored.size, version, space))
                    found.update(keys.block_key(record.fingerprint, block) for block in range(record.block_count))
        return found

    def deadline_ns(self) -> int:
        """Of the next read."""
        chance = self.world.chance
        if self.watch.must_succeed:
            return 10 * S
        return int(chance.choice((0.05, 0.5, 2, 5, 10, 20)) * S * (0.5 + chance.random()))

    def origin_reads_allowed(self, key: bytes) -> int:
        """Of one block by nodes, with faults.

        A copy that is lost costs one, and so may a change of views, about which nodes disagree for a moment. When a
        leader does not answer, each node that looks for its block there notices by itself.
        """
        faults, plan = self.faults, self.plan
        outages = faults.kills + faults.outages + plan.has("lost") + plan.has("slow network")
        return 3 + faults.kills + faults.flipped[key] + len(self.views.history) // 2 + 2 * outages

    # The run

    def run(self) -> None:
        """All of it; Failed, or another error, says what does not hold."""
        world, plan = self.world, self.plan
        self.faults.begin()
        changing = membership.begin(self)
        world.run(START_NS + plan.load_ns)
        self.faults.end()
        self.think_ns = plan.settle_ns // 3
        if changing is not None:
            world.run(world.now_ns + 300 * S, lambda: changing.done)
            checkers.expect(changing.done, "nodes were not replaced in time")
        for node_id in [member.id for member in self.views.current.nodes]:
            self.start_again(node_id)
        if not plan.is_calm:
            self._settle()
        self._quiet()

    def _settle(self) -> None:
        """Wait for the longest pause of anybody; from then on reads must succeed."""
        world, plan = self.world, self.plan
        world.run(world.now_ns + plan.settle_ns)
        self.watch.must_succeed = True
        self.think_ns = plan.think_ns
        world.run(world.now_ns + 2 * plan.think_ns + S)

    def _quiet(self) -> None:
        world = self.world
        over = [client.over() for client in self.clients]
        end_ns = world.now_ns + 70 * S
        world.run(end_ns, lambda: all(future.done for future in over))
        expect_all = [client.name for client, future in zip(self.clients, over, strict=True) if not future.done]
        checkers.expect(not expect_all, f"clients that do not end: {expect_all}")
        end_ns = world.now_ns + self.plan.quiet_ns
        while world.now_ns < end_ns and self._unfinished():
            world.run(world.now_ns + S)
        left = self._unfinished()
        if left:
            raise Failed("; ".join(left[:6]), list(checkers.not_converged(self))[:1])
        for node in self.nodes.values():
            checkers.check_node(node, self.plan)
        checkers.check_origin(self)
        checkers.check_digests(self)
        checkers.check_hedges(self)

    def _unfinished(self) -> list[str]:
        """What must not be there in the end."""
        left = [text for client in self.clients for text in checkers.left_in_client(client)]
        left += [text for node in self.nodes.values() for text in checkers.left_in_node(node)]
        epoch = self.views.current.epoch
        left += [
            f"{node.config.node_name}: view {node.epoch} of {epoch}"
            for node in self.nodes.values()
            if node.epoch != epoch
        ]
        if not left and self.plan.is_roomy:
            left += [f"{key.hex()[:8]}: {text}" for key, text in checkers.not_converged(self).items()]
        return left
