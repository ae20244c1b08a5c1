"""What a seed draws: how large everything is, and which faults there are.

Each seed has some of the faults and not the others, because a fault that is always there hides what only shows without
it. Calm seeds have none, and must do without a single error; roomy ones have memory for everything, so that nothing is
evicted and what every owner holds can be told exactly.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from shoal_core import limits
from shoal_node.spaces import Space, space_of
from tests.simulation.origin import PLACE, TENANT
from tests.simulation.world import S

FAULTS = (
    "late", "lost", "flipped", "twice", "partition", "pause", "kill", "power", "clock", "stale", "slow disk",
    "disk errors", "disk flips", "memory flips", "refusing origin", "changes", "slow network", "join", "rolling",
    "quota", "client gone",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """All that is drawn before anything happens."""

    seed: int
    node_count: int = 3
    client_count: int = 6
    zone_count: int = 1
    rack_count: int = 1
    replica_count: int = 1
    block_size_bytes: int = 2048
    object_count: int = 8
    object_blocks: int = 12
    dram_bytes: int = 4 * limits.MIB
    disk_slabs: int = 0
    is_roomy: bool = True
    home_fraction: float = 0.4
    """Of the clients, those on the host of a node."""
    load_ns: int = 6 * S
    think_ns: int = S // 5
    read_blocks_max: int = 8
    faults: tuple[str, ...] = ()
    settle_ns: int = 15 * S
    """After the last fault, until reads must work again. A circuit is open about as long as its node was away; a
    connection over which nothing passes ends after 12 s."""
    quiet_ns: int = 60 * S
    check_every: int = 400
    """Steps between two looks at the whole state of a node."""
    spaces: tuple[str, ...] = field(default=("default",))

    @property
    def is_calm(self) -> bool:
        return not self.faults

    def has(self, fault: str) -> bool:
        return fault in self.faults

    def make_spaces(self) -> list[Space]:
        """As a node's configuration declares them."""
        settings: dict[str, dict[str, object]] = {
            "default": {},
            "small": {"quota_bytes": 96 << 10, "url": f"{PLACE}/small"},
            "brief": {"ttl_s": 5, "url": f"{PLACE}/brief"},
            "twice": {"replicas": 2, "url": f"{PLACE}/twice"},
            "over": {"eviction": "epoch", "url": f"{PLACE}/over"},
        }
        return [space_of(TENANT, name, **settings[name]) for name in self.spaces]


def draw(seed: int) -> Plan:
    """The plan of one of many seeds."""
    chance = random.Random(f"plan {seed}")
    faults = () if chance.random() < 0.12 else tuple(fault for fault in FAULTS if chance.random() < 0.22)
    is_large = chance.random() < 0.04
    if is_large:
        faults = tuple(fault for fault in faults if fault != "rolling")  # it would take minutes
    node_count = chance.randrange(20, 60) if is_large else chance.choice((1, 2, 3, 3, 4, 5, 5, 6, 8, 10))
    client_count = chance.randrange(40, 100) if is_large else chance.randrange(4, 24)
    is_roomy = chance.random() < 0.6 or not faults
    spaces = ["default", *(name for name in ("brief", "twice", "over") if chance.random() < 0.3)]
    if not is_roomy and chance.random() < 0.6:
        spaces.append("small")
    load_ns = int((2.0 if is_large else chance.choice((3, 5, 8))) * S)
    reads = chance.choice((100, 300, 800))
    is_hot = chance.random() < 0.05  # a block or two that everybody reads
    block_size = chance.choice((512, 1024, 2048, 4096))
    return Plan(
        seed=seed,
        node_count=node_count,
        client_count=client_count,
        zone_count=chance.choice((1, 1, 2, 3)),
        rack_count=chance.choice((1, 2)),
        replica_count=chance.choice((1, 1, 2, 2, 3)),
        block_size_bytes=block_size,
        object_count=1 if is_hot else chance.randrange(3, 12),
        object_blocks=2 if is_hot else chance.choice((4, 10, 20)),
        dram_bytes=4 * limits.MIB if is_roomy else 512 * limits.KIB + chance.randrange(2, 8) * 64 * limits.KIB,
        disk_slabs=chance.choice((0, 8, 24)),
        is_roomy=is_roomy,
        home_fraction=0.0 if is_hot else chance.choice((0.0, 0.3, 0.6, 1.0)),
        load_ns=load_ns,
        think_ns=load_ns * client_count // (1500 if is_hot else reads),
        read_blocks_max=chance.choice((1, 4, 8)),
        faults=faults,
        spaces=tuple(spaces),
    )


def long() -> Plan:
    """The large one: 100 nodes, 1,000 clients."""
    return Plan(
        seed=1, node_count=100, client_count=1000, zone_count=3, rack_count=4, replica_count=2, object_count=60,
        object_blocks=20, load_ns=6 * S, think_ns=S, home_fraction=0.3, disk_slabs=8, check_every=4000,
        settle_ns=10 * S, faults=("late", "lost", "partition", "pause", "kill", "stale", "join", "flipped"),
        read_blocks_max=6,
    )  # fmt: skip
