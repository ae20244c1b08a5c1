"""What does one object cost the origin when 32 readers on three nodes want it at once?

The readers are processes of their own and begin together on a cold cluster; each reads the object from end to end and
compares every byte. The origin is an HTTP server in a process of its own that counts the bytes it sends: at most 1.05
times the object, however many read it. Once over the Unix sockets of their nodes, where each node brings what others
own, and once as readers elsewhere, who ask the owners over TCP. The throughput of all readers together informs.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal_bench import cluster_nodes, cluster_readers, counting_origin, places
from shoal_bench.cluster_nodes import ClusterNodes
from shoal_bench.counting_origin import Origin
from shoal_bench.report import Report
from shoal_core.limits import GIB, MIB

READERS = 32
NODES = 3
OBJECT_BYTES = GIB
_QUICK_BYTES = 128 * MIB


def run(report: Report) -> None:
    """Two rows for each way to read."""
    size = _QUICK_BYTES if report.quick else OBJECT_BYTES
    with places.directory() as place, counting_origin.running() as origin, cluster_nodes.cluster(place) as nodes:
        started = [nodes.add(f"node-{number}", 2 * size) for number in range(NODES)]
        nodes.publish()
        for number, (door, addresses) in enumerate(
            (("Unix sockets", [node.unix for node in started]), ("TCP, elsewhere", [node.tcp for node in started]))
        ):
            _rows(report, nodes, origin, number, size, door, addresses)


def _rows(
    report: Report, nodes: ClusterNodes, origin: Origin, number: int, size: int, door: str, addresses: Sequence[str]
) -> None:
    """Object `number`, which nobody has yet."""
    with cluster_readers.readers([addresses[n % NODES] for n in range(READERS)]) as readers:
        before, peers_before = origin.counts(), nodes.total("peer_bytes")
        answers = readers.together({"job": "once", "number": number, "size": size, "url": origin.url(number, size)})
        sent = origin.counts().bytes - before.bytes
    assert all(answer["right"] for answer in answers), "a reader had wrong bytes"
    fallbacks = sum(answer["stats"]["fallbacks"] for answer in answers)
    what = f"one object of {size // MIB} MiB, {READERS} readers on {NODES} nodes at once, {door}"
    report.row(f"{what}: bytes from the origin", sent / size, None, "x the object", at_most=1.05)
    slowest_s = max(answer["seconds"] for answer in answers)
    report.row(f"{what}: all readers together", READERS * size / 1e9 / slowest_s, None, "GB/s")
    report.note(
        f"{door}: {nodes.total('peer_bytes') - peers_before >> 20} MiB from node to node, {fallbacks} ranges read "
        f"around the nodes, slowest reader {slowest_s:.1f} s"
    )
