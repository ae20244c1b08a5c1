"""How close does a remote read come to bare sockets, when the reader knows the cluster and chooses whom to ask?

Reader and nodes stand on two hosts with a cable between them (network namespaces and a veth pair; needs root). The view
has two nodes, of which one owns every block and holds it in DRAM, so the reader goes the whole way: view, placement,
router, gather. The reference is a bare loop between the same hosts, send from a mapped memfd to recv_into, with the
check of every 64 KiB page that ours always makes. For information: batches of 256 blocks of 64 KiB, beside the same
loop and beside a client that knows no view and asks its one node.
"""

from __future__ import annotations

import contextlib
import mmap
import random
from collections.abc import Callable
from pathlib import Path

import xxhash

import shoal
from shoal_bench import cluster_nodes, hosts, pairs, places
from shoal_bench.bare_reader import BareReader
from shoal_bench.cluster_nodes import ClusterNodes
from shoal_bench.hosts import Host
from shoal_bench.places import BenchNode
from shoal_bench.report import Report
from shoal_core.limits import GIB, KIB, MIB

OBJECT_BYTES = 256 * MIB
SMALL_BYTES = 64 * KIB
BATCH = 256
_BATCHES = 4
_BUDGET_BYTES = GIB


def run(report: Report) -> None:
    """One row with a target, two without."""
    try:
        with hosts.pair() as (near, far):
            _large(report, near, far)
            _small(report, near, far)
    except hosts.Unavailable as error:
        report.skip("TCP between two hosts", str(error))


def _large(report: Report, near: Host, far: Host) -> None:
    with places.directory() as place, cluster_nodes.cluster(place) as nodes, contextlib.ExitStack() as stack:
        owner = _start(nodes, far, 4 * MIB)
        url = places.write_object(place / "objects" / "large", OBJECT_BYTES)
        with far.inside():
            port = int(stack.enter_context(places.peer("send", str(OBJECT_BYTES), far.address)))
        stack.enter_context(near.inside())
        client = stack.enter_context(shoal.connect(owner.tcp))
        bare = BareReader(port, far.address)
        target, beside = memoryview(mmap.mmap(-1, OBJECT_BYTES)), memoryview(mmap.mmap(-1, OBJECT_BYTES))
        client.read_into(url, target)
        assert xxhash.xxh3_64_digest(target) == xxhash.xxh3_64_digest(Path(url.removeprefix("file://")).read_bytes())
        pair = pairs.compare(
            pairs.timed(lambda: client.read_into(url, target)),
            pairs.timed(lambda: bare.read(beside, 0, check=True)),
            report.rounds(20),
        )
        assert not client.stats().fallbacks
        bare.close()
    gigabytes = OBJECT_BYTES / 1e9
    report.row(
        "TCP between two hosts, view of two nodes: read_into of 4 MiB blocks",
        gigabytes / pair.ours_s, gigabytes / pair.reference_s, "GB/s",
        ratio=pair.speed, reference_name="a bare loop with digests", at_least=0.95,
    )  # fmt: skip


def _small(report: Report, near: Host, far: Host) -> None:
    """Batches of random blocks; the bare loop reads as many bytes in one piece."""
    with places.directory() as place, cluster_nodes.cluster(place) as nodes, contextlib.ExitStack() as stack:
        owner = _start(nodes, far, SMALL_BYTES)
        url = places.write_object(place / "objects" / "large", OBJECT_BYTES)
        (place / "alone").mkdir()
        doors = {"unix": str(place / "alone" / "node.sock"), "tcp": f"{far.address}:0"}
        with far.inside():
            port = int(stack.enter_context(places.peer("send", str(OBJECT_BYTES), far.address)))
            fill = {"block_size_bytes": SMALL_BYTES}
            alone = stack.enter_context(places.node(place / "alone", _BUDGET_BYTES, doors=doors, fill=fill))
        stack.enter_context(near.inside())
        routed, direct = (stack.enter_context(shoal.connect(address)) for address in (owner.tcp, alone.tcp))
        bare = BareReader(port, far.address, SMALL_BYTES)
        target = memoryview(bytearray(BATCH * SMALL_BYTES))
        chance = random.Random(3)
        batches = [
            [
                (url, block * SMALL_BYTES, SMALL_BYTES)
                for block in chance.sample(range(OBJECT_BYTES // SMALL_BYTES), BATCH)
            ]
            for _ in range(_BATCHES)
        ]
        assert [routed.read_many(batch) for batch in batches] == [direct.read_many(batch) for batch in batches]
        (mine,), theirs = pairs.alternate(
            [_side(lambda number: routed.read_many(batches[number]))],
            [
                _side(lambda number: bare.read(target, number * len(target), check=True)),
                _side(lambda number: direct.read_many(batches[number])),
            ],
            report.rounds(40), 1,
        )  # fmt: skip
        bare.close()
    for seconds, name in zip(theirs, ("a bare loop with digests", "a client without a view"), strict=True):
        pair = pairs.of(mine, seconds)
        report.row(
            f"TCP between two hosts, view of two nodes: read_many of {BATCH} blocks of 64 KiB",
            pair.ours_s * 1e6, pair.reference_s * 1e6, "us", ratio=pair.speed, reference_name=name,
        )  # fmt: skip


def _side(read: Callable[[int], object]) -> pairs.Side:
    """Seconds per block."""

    def work() -> None:
        for number in range(_BATCHES):
            read(number)

    return pairs.timed(work, _BATCHES * BATCH)


def _start(nodes: ClusterNodes, host: Host, block_bytes: int) -> BenchNode:
    """Two nodes of one view; the first owns everything."""
    fill = {"block_size_bytes": block_bytes}
    owner = nodes.add("owner", _BUDGET_BYTES, host=host, fill=fill)
    nodes.add("other", 256 * MIB, capacity_bytes=0, host=host, fill=fill)
    nodes.publish()
    return owner
