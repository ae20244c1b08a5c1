"""Who is in the cluster: the view as it is published, and nodes that come, go, and are replaced one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal_core import view
from tests.simulation.world import MS, Future, S, Work, World

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

_DRAIN_NS_MAX = 20 * S
"""Where there is not room for everything a drain does not end."""


class Views:
    """All views there were, and when."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.history: list[tuple[int, view.View]] = []

    @property
    def current(self) -> view.View:
        return self.history[-1][1]

    def publish(self, nodes: list[view.Node], replica_count: int | None = None) -> None:
        epoch = len(self.history) + 1
        count = self.current.replica_count if replica_count is None else replica_count
        self.history.append((self._world.now_ns, view.make(epoch, nodes, count)))
        self._world.note("published", "view", None, [f"{node.id} {node.status}" for node in self.current.nodes])

    def at(self, time_ns: int) -> view.View:
        """The one that was published then."""
        for since_ns, known in reversed(self.history):
            if since_ns <= time_ns:
                return known
        return self.history[0][1]


def begin(simulation: Simulation) -> Future | None:
    """What the plan wants of it; known when it is over."""
    plan, world = simulation.plan, simulation.world
    if plan.has("rolling"):
        return world.spawn(world.self, _rolling(simulation)).ended
    if plan.has("join"):
        return world.spawn(world.self, _coming_and_going(simulation)).ended
    return None


def join(simulation: Simulation) -> str:
    """One more node."""
    machine = simulation.make_machine(sum(name.startswith("n") for name in simulation.machines))
    members = [*simulation.views.current.nodes, simulation.member(machine)]
    simulation.start(machine)
    simulation.views.publish(members)
    return machine.name


def leave(simulation: Simulation, node_id: str) -> None:
    """It is in the view no more, and its process ends."""
    simulation.views.publish([node for node in simulation.views.current.nodes if node.id != node_id])
    if (node := simulation.nodes.get(node_id)) is not None:
        simulation.kill(node)


def _coming_and_going(simulation: Simulation) -> Work:
    chance = simulation.world.chance
    while not simulation.faults.over:
        yield int((0.3 + 2 * chance.random()) * S)
        nodes = simulation.views.current.nodes
        if simulation.faults.over:
            return
        if len(nodes) < 2 or chance.random() < 0.6:
            join(simulation)
        elif chance.random() < 0.5:
            leave(simulation, chance.choice(nodes).id)
        else:
            yield from drain(simulation, chance.choice(nodes).id)


def _rolling(simulation: Simulation) -> Work:
    """Every node is replaced by a new one."""
    for node in simulation.views.current.nodes:
        join(simulation)
        yield int((0.1 + simulation.world.chance.random()) * S)
        yield from drain(simulation, node.id)


def drain(simulation: Simulation, node_id: str) -> Work:
    """It hands its blocks over and goes."""
    world = simulation.world
    if world.chance.random() < 0.5:
        simulation.views.publish(
            [
                view.Node(
                    node.id, node.addresses, node.capacity_bytes, node.zone, node.rack,
                    "draining" if node.id == node_id else node.status,
                )
                for node in simulation.views.current.nodes
            ]
        )  # fmt: skip
    end_ns = world.now_ns + _DRAIN_NS_MAX
    started = None
    while world.now_ns < end_ns:
        node = simulation.nodes.get(node_id)
        if node is not None and not node.process.stopped:
            if started is not node:
                node.start_drain()
                started = node
            if node.refusing:
                break
        yield 50 * MS
    leave(simulation, node_id)
