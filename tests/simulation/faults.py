"""What goes wrong, each in a task of its own, until the load ends; then everything is put right.

Every fault is one that a cache must survive: what is lost is a miss. Whether a fault is there at all is the plan's to
say, when it strikes is chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal_core import index
from tests.simulation.network import Odds
from tests.simulation.world import MS, S, Work

if TYPE_CHECKING:
    from tests.simulation.sim_node import SimNode
    from tests.simulation.simulation import Simulation


class Faults:
    """Those of one plan."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._world, self._network = simulation.world, simulation.network
        self._chance = simulation.world.chance
        self.over = False
        self.kills = 0
        self.outages = 0
        """Times that a node answered nobody, or not everybody, for a while."""
        self.flipped: Counter[bytes] = Counter()
        """Bits in the memory of nodes, by block."""
        self._works: dict[str, Callable[[], Work]] = {
            "partition": self._partitions,
            "pause": self._pauses,
            "kill": self._kills,
            "power": self._powers,
            "clock": self._clocks,
            "stale": self._stale,
            "slow disk": self._slow_disks,
            "disk errors": self._disk_errors,
            "disk flips": self._disk_flips,
            "memory flips": self._memory_flips,
            "refusing origin": self._refusals,
            "changes": self._changes,
            "slow network": self._slow_networks,
            "client gone": self._clients_gone,
            "quota": self._quotas,
        }

    def begin(self) -> None:
        plan = self._simulation.plan
        if any(map(plan.has, ("late", "lost", "flipped", "twice"))):
            self._world.spawn(self._world.self, self._messages())
        for fault in plan.faults:
            if fault in self._works:
                self._world.spawn(self._world.self, self._works[fault]())

    def end(self) -> None:
        """No more faults, and none that lasts."""
        simulation = self._simulation
        self.over = True
        self._network.odds = Odds()
        for source, target in list(self._network.blocked):
            self._network.heal(source, target)
        simulation.origin.refusing = False
        for disk in simulation.disks.values():
            disk.slow, disk.failing = 1.0, 0.0
        for machine in simulation.machines.values():
            machine.slow = 1.0
        for node in simulation.nodes.values():
            simulation.lags[node.config.node_name] = 0
            if node.process.stopped:
                self._world.go_on(node.process)
        for client in simulation.clients:
            client.stale_until_ns = 0

    def _some(self, most_s: float) -> int:
        """A while."""
        return int((0.05 + 0.95 * self._chance.random()) * most_s * S)

    def _node(self) -> SimNode | None:
        able = [node for node in self._simulation.nodes.values() if not node.process.stopped]
        return self._chance.choice(able) if able else None

    def _messages(self) -> Work:
        plan, chance = self._simulation.plan, self._chance
        while not self.over:
            self._network.odds = Odds(
                0.2 * chance.random() if plan.has("late") else 0.0,
                0.02 * chance.random() if plan.has("lost") else 0.0,
                0.05 * chance.random() if plan.has("flipped") else 0.0,
                0.2 * chance.random() if plan.has("twice") else 0.0,
            )
            yield self._some(2)
            self._network.odds = Odds()
            yield self._some(0.5)

    def _partitions(self) -> Work:
        while not self.over:
            yield self._some(2)
            names = list(self._simulation.machines)
            some = self._chance.choice(names)
            others = [self._chance.choice(names)] if self._chance.random() < 0.6 else names
            pairs = [(some, other) for other in others if other != some]
            if self._chance.random() < 0.5:
                pairs = [(other, some) for some, other in pairs]
            if self._chance.random() < 0.3:
                pairs += [(target, source) for source, target in pairs]
            if self.over:
                return
            self.outages += 1
            self._world.note("partition", some, None, len(pairs))
            for pair in pairs:
                self._network.block(*pair)
            yield self._some(4)
            for pair in pairs:
                self._network.heal(*pair)
            self._world.note("healed", some)

    def _pauses(self) -> Work:
        while not self.over:
            yield self._some(2)
            node = self._node()
            if node is None or self.over:
                continue
            self.outages += 1
            self._world.note("stopped", node.config.node_name)
            self._world.stop(node.process)
            yield self._some(3)
            if node.process.stopped:
                self._world.note("goes on", node.config.node_name)
                self._world.go_on(node.process)

    def _kills(self) -> Work:
        while not self.over:
            yield self._some(3)
            node = self._node()
            if node is not None and not self.over:
                self.kills += 1
                self._simulation.kill(node)
                yield self._some(3)
                self._simulation.start_again(node.config.node_name)

    def _powers(self) -> Work:
        while not self.over:
            yield self._some(4)
            node = self._node()
            if node is None or self.over or self._simulation.clients_on(node.machine):
                continue
            self.kills += 1
            node.machine.up = False
            self._simulation.kill(node)
            if node.nvme is not None:
                node.nvme.lose_power()  # type: ignore[attr-defined]
            yield self._some(5)
            node.machine.up = True
            self._simulation.start_again(node.config.node_name)

    def _clocks(self) -> Work:
        while not self.over:
            yield self._some(2)
            if (node := self._node()) is not None:
                node.clock_ns += int((self._chance.random() - 0.5) * 7200 * S)
                self._world.note("clock jumps", node.config.node_name)

    def _stale(self) -> Work:
        simulation = self._simulation
        while not self.over:
            if (node := self._node()) is not None:
                simulation.lags[node.config.node_name] = self._some(8)
            client = self._chance.choice(simulation.clients)
            client.stale_until_ns = self._world.now_ns + self._some(8)
            yield self._some(1)

    def _slow_disks(self) -> Work:
        while not self.over:
            yield self._some(1)
            for disk in self._simulation.disks.values():
                disk.slow = 10.0 ** (self._chance.random() * 3.5) if self._chance.random() < 0.5 else 1.0

    def _disk_errors(self) -> Work:
        while not self.over:
            yield self._some(1)
            for disk in self._simulation.disks.values():
                disk.failing = self._chance.random() / 2 if self._chance.random() < 0.3 else 0.0

    def _disk_flips(self) -> Work:
        while not self.over:
            yield self._some(0.5)
            for disk in self._simulation.disks.values():
                disk.flip()

    def _memory_flips(self) -> Work:
        """Only where nobody reads the memory in place: there no digest is between."""
        while not self.over:
            yield self._some(0.3)
            node = self._node()
            if node is None or self._simulation.clients_on(node.machine):
                continue
            state = node.state
            able = [entry for entry in state.index.linked() if state.index.dram_slot[entry] != index.NO_SLOT]
            if able:
                entry = self._chance.choice(able)
                self._world.note("memory flips", node.config.node_name, state.index.key(entry))
                node.entry_memory(entry)[self._chance.randrange(state.index.size[entry])] ^= 16
                self.flipped[state.index.key(entry)] += 1

    def _refusals(self) -> Work:
        origin = self._simulation.origin
        while not self.over:
            yield self._some(2)
            origin.refusing = not self.over
            yield self._some(1)
            origin.refusing = False

    def _changes(self) -> Work:
        origin = self._simulation.origin
        while not self.over:
            yield self._some(2)
            stored = self._chance.choice(origin.objects)
            origin.change(stored)
            self._world.note("changed", "origin", None, f"{stored.url} {stored.etag}")

    def _slow_networks(self) -> Work:
        while not self.over:
            yield self._some(2)
            machine = self._chance.choice(list(self._simulation.machines.values()))
            machine.slow = 10.0 ** (self._chance.random() * 4)
            yield self._some(2)
            machine.slow = 1.0

    def _clients_gone(self) -> Work:
        simulation = self._simulation
        while not self.over:
            yield self._some(2)
            if len(simulation.clients) > 2 and not self.over:
                simulation.kill_client(self._chance.choice(simulation.clients))

    def _quotas(self) -> Work:
        """A data set is declared anew, with another quota."""
        while not self.over:
            yield self._some(2)
            quota_bytes = int(16 * 1024 * (2 + 6 * self._chance.random()))
            for node in self._simulation.nodes.values():
                for space in self._simulation.plan.make_spaces():
                    if space.name == "small":
                        space.quota_bytes = quota_bytes
                        with node.step() as state:
                            state.add_space(space, node.now_s())
            yield 100 * MS
