"""How much moves when an eleventh node joins ten, and how soon is it there?

Ten node processes hold some thousand small blocks, each on one node. An eleventh starts and the view of the next epoch
names it: what it owns now is offered to it and pulled, no faster than the default throttle. Of all bytes at most 12 %
may move (one in eleven would be 9.1 %), and afterwards a read of everything costs the origin nothing.
"""

from __future__ import annotations

import time

import shoal
from shoal_bench import cluster_nodes, counting_origin, places
from shoal_bench.cluster_nodes import ClusterNodes
from shoal_bench.counting_origin import Origin
from shoal_bench.report import Report
from shoal_core import keys, view
from shoal_core.limits import KIB, MIB
from shoal_core.placement import Placement

NODES = 10
BLOCK_BYTES = 64 * KIB
BLOCK_COUNT = 4096
_QUICK_COUNT = 1024
_BUDGET_BYTES = 64 * MIB
_BATCH_BYTES = 16 * MIB


def run(report: Report) -> None:
    """What moved, and the time it took."""
    size = (_QUICK_COUNT if report.quick else BLOCK_COUNT) * BLOCK_BYTES
    with places.directory() as place, counting_origin.running() as origin, cluster_nodes.cluster(place) as nodes:
        for number in range(NODES):
            _add(nodes, number)
        nodes.publish()
        url = origin.url(0, size)
        with shoal.connect(nodes.running["node-00"].tcp) as client:
            _read(client, url, size)
            fingerprint = client.info(url).fingerprint
        nodes.quiet()
        assert _held(nodes) >= size, "not every block is cached"
        _join(report, nodes, origin, url, size, fingerprint)


def _join(report: Report, nodes: ClusterNodes, origin: Origin, url: str, size: int, fingerprint: bytes) -> None:
    _add(nodes, NODES)
    pulled, fetched = nodes.total("pulled_bytes"), origin.counts().gets
    began_s = time.monotonic()
    owned = _owned(nodes.publish(), fingerprint, size // BLOCK_BYTES)
    newcomer = f"node-{NODES:02}"
    cluster_nodes.until(
        lambda: nodes.stats(newcomer)["tiers"]["dram"]["blocks"] >= owned, "the newcomer holds what it owns"
    )
    took_s = time.monotonic() - began_s
    nodes.quiet()
    moved = nodes.total("pulled_bytes") - pulled
    with shoal.connect(nodes.running[newcomer].tcp) as client:
        _read(client, url, size)
    what = f"an 11th node joins 10 with {size // BLOCK_BYTES} blocks of {BLOCK_BYTES // KIB} KiB"
    report.row(f"{what}: bytes moved", 100 * moved / size, None, "%", at_most=12.0)
    report.row(f"{what}: until it holds what it owns", took_s, None, "s")
    report.row(f"{what}: requests to the origin when all is read again", origin.counts().gets - fetched, None,
               "requests", at_most=0.0)  # fmt: skip
    report.note(f"the newcomer owns {100 * owned * BLOCK_BYTES / size:.1f} % of the blocks")


def _add(nodes: ClusterNodes, number: int) -> None:
    nodes.add(f"node-{number:02}", _BUDGET_BYTES, fill={"block_size_bytes": BLOCK_BYTES})


def _read(client: shoal.Client, url: str, size: int) -> None:
    for start in range(0, size, _BATCH_BYTES):
        assert counting_origin.is_right(0, start, client.read(url, start, _BATCH_BYTES))


def _held(nodes: ClusterNodes) -> int:
    return sum(nodes.stats(name)["tiers"]["dram"]["used_bytes"] for name in nodes.running)


def _owned(of: view.View, fingerprint: bytes, count: int) -> int:
    """Blocks of the object that the last node owns."""
    placement = Placement(of)
    last = len(of.nodes) - 1
    return sum(placement.owners_of(keys.block_key(fingerprint, block))[0] == last for block in range(count))
