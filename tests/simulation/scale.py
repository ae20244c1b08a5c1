"""What grows with the number of nodes: `make sim SCALE=1` prints it for 10, 100, 1,000 and 10,000.

Placement and views are computed for real. Where a number would take minutes, it is that of a sample: the whole
placement table is timed on some of its 65,536 partitions, and moves are counted on them. Traffic is arithmetic on
stated sizes. Nothing is simulated here but the join that `moved_by_a_join` measures in bytes.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import msgspec

from shoal_core import limits, placement, view
from tests.simulation import membership
from tests.simulation.plan import Plan
from tests.simulation.simulation import Simulation
from tests.simulation.world import START_NS, S

NODE_COUNTS = (10, 100, 1_000, 10_000)
REPLICA_COUNT = 2
CAPACITY_BYTES = 1 << 40
"""Of each node, all in use, in blocks of the default size."""
SAMPLED = {10: 65_536, 100: 20_000, 1_000: 6_000, 10_000: 1_500}
"""Partitions looked at, by the number of nodes."""
CHANGING_FRACTION = 100
"""Where there are more nodes than this, one in so many comes or goes at once, and what moves is divided by them: else
nothing would be seen on a sample."""
BLOCKS_READ = 100_000
"""Blocks of one client's data set, for the number of nodes that it talks to."""


@dataclass
class Row:
    """For one number of nodes."""

    nodes: int
    first_lookup_us: float
    """Owners of a partition that is looked up for the first time."""
    lookup_us: float
    """Owners of a key whose partition is known."""
    table_s: float
    """The whole table: all partitions, as by one reader that meets every one."""
    view_json_bytes: int
    view_msgpack_bytes: int
    client_connections: int
    """Nodes that a client of BLOCKS_READ blocks asks."""
    node_connections: int
    """To the others: pings, fills and offers share them."""
    joined_percent: float
    """Of all blocks, moved by one node that comes."""
    left_percent: float
    repair_gib: float
    """Brought by all others together after one node is lost."""
    repair_s: float
    """At each one's default throttle."""


def cluster_of(count: int, zone_count: int = 3, rack_count: int = 16) -> view.View:
    """Equal nodes over equal zones."""
    nodes = [
        view.Node(
            f"cache-{number:05d}", (f"tcp:10.{number >> 16}.{number >> 8 & 255}.{number & 255}:7070",), CAPACITY_BYTES,
            f"zone-{number % zone_count}", f"rack-{number // zone_count % rack_count}",
        )
        for number in range(count)
    ]  # fmt: skip
    return view.make(1, nodes, REPLICA_COUNT)


def moved(before: view.View, after: view.View, partitions: range) -> float:
    """The share of all copies that are on another node than before, in percent."""
    old, new = placement.Placement(before, REPLICA_COUNT), placement.Placement(after, REPLICA_COUNT)
    count = 0
    for partition in partitions:
        had = {before.nodes[place].id for place in old.owners(partition)}
        has = {after.nodes[place].id for place in new.owners(partition)}
        count += len(has - had)
    return 100 * count / (REPLICA_COUNT * len(partitions))


def measure(count: int) -> Row:
    of = cluster_of(count)
    partitions = range(SAMPLED[count])
    placed = placement.Placement(of, REPLICA_COUNT)
    began = time.perf_counter()
    for partition in partitions:
        placed.owners(partition)
    first_s = (time.perf_counter() - began) / len(partitions)
    chance = random.Random(1)
    known = [key for key in (chance.randbytes(16) for _ in range(50_000)) if placement.partition(key) in partitions]
    began = time.perf_counter()
    for key in known:
        placed.owners_of(key)
    again_s = (time.perf_counter() - began) / max(1, len(known))
    changing = max(1, count // CHANGING_FRACTION)
    new = [msgspec.structs.replace(of.nodes[number], id=f"new-{number}") for number in range(changing)]
    joined_percent = moved(of, view.make(2, [*of.nodes, *new], REPLICA_COUNT), partitions) / changing
    left_percent = moved(of, view.make(2, of.nodes[changing:], REPLICA_COUNT), partitions) / changing
    lost_bytes = CAPACITY_BYTES * left_percent / 100 * count
    throttle_bytes = 256 * limits.MIB * (count - 1)
    return Row(
        nodes=count,
        first_lookup_us=first_s * 1e6,
        lookup_us=again_s * 1e6,
        table_s=first_s * placement.PARTITION_COUNT,
        view_json_bytes=len(msgspec.json.encode(of)),
        view_msgpack_bytes=len(msgspec.msgpack.encode(of)),
        client_connections=round(count * (1 - (1 - 1 / count) ** BLOCKS_READ)),
        node_connections=count - 1,
        joined_percent=joined_percent,
        left_percent=left_percent,
        repair_gib=lost_bytes / limits.GIB,
        repair_s=lost_bytes / throttle_bytes,
    )


def moved_by_a_join(seed: int = 11) -> tuple[float, float]:
    """One node joins ten equal ones, simulated: bytes pulled by all nodes, in percent of all copies; the ideal."""
    plan = Plan(
        seed=seed, node_count=10, client_count=12, object_count=24, object_blocks=60, load_ns=8 * S, think_ns=S // 20,
        home_fraction=0.0, block_size_bytes=1024, dram_bytes=8 * limits.MIB,
    )  # fmt: skip
    simulation = Simulation(plan)
    world = simulation.world
    world.run(START_NS + plan.load_ns)
    for client in simulation.clients:
        client.over()
    world.run(world.now_ns + 5 * S)
    held = sum(node.state.index.size[e] for node in simulation.nodes.values() for e in node.state.index.linked())
    before = {node_id: node.peers.pulling.pulled_bytes for node_id, node in simulation.nodes.items()}
    membership.join(simulation)
    world.run(world.now_ns + 20 * S)
    pulled = sum(
        node.peers.pulling.pulled_bytes - before.get(node_id, 0) for node_id, node in simulation.nodes.items()
    )  # fmt: skip
    return 100 * pulled / held, 100 / 11


def print_table() -> None:
    rows = [measure(count) for count in NODE_COUNTS]
    lines = [
        ("nodes", [f"{row.nodes:,}" for row in rows]),
        ("owners of a partition, first time, us", [f"{row.first_lookup_us:,.0f}" for row in rows]),
        ("owners of a key, partition known, us", [f"{row.lookup_us:.2f}" for row in rows]),
        ("whole placement table, s *", [f"{row.table_s:,.1f}" for row in rows]),
        ("view, JSON bytes", [f"{row.view_json_bytes:,}" for row in rows]),
        ("view, msgpack bytes", [f"{row.view_msgpack_bytes:,}" for row in rows]),
        ("connections of a client", [f"{row.client_connections:,}" for row in rows]),
        ("connections of a node to others", [f"{row.node_connections:,}" for row in rows]),
        ("copies moved by a join, % *", [f"{row.joined_percent:.3f}" for row in rows]),
        ("  ideal", [f"{100 / (row.nodes + 1):.3f}" for row in rows]),
        ("copies moved by a leave, % *", [f"{row.left_percent:.3f}" for row in rows]),
        ("  ideal", [f"{100 / row.nodes:.3f}" for row in rows]),
        ("repair after a loss of 1 TiB, GiB *", [f"{row.repair_gib:,.0f}" for row in rows]),
        ("  at 256 MiB/s for each node, s", [f"{row.repair_s:,.0f}" for row in rows]),
    ]
    for name, values in lines:
        print(f"{name:42}", *(f"{value:>12}" for value in values))
    sampled = ", ".join(f"{count:,}" for count in SAMPLED.values())
    percent, ideal = moved_by_a_join()
    print(f"* taken from {sampled} of 65,536 partitions; {REPLICA_COUNT} copies of each block, three zones")
    print(f"a client's connections: to the owners of {BLOCKS_READ:,} blocks, as far as it needs them")
    print(f"a simulated join as the 11th node: bytes pulled {percent:.1f} % of all that is held (ideal {ideal:.1f} %)")
