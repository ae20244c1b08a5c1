"""How fast does a node bring blocks that another node holds, beside a bare loop that moves as many bytes?

Two nodes on two hosts with a cable between them (network namespaces, needs root); one owns every block and has them in
DRAM. The other is told to drop its copies and is then asked, over its Unix socket, for a view of the whole object: the
blocks come over TCP straight into the slots that they are lent from (`receiving` is given memoryviews of the segment,
so no byte is copied in Python), each page checked as it arrives. The reference is the bare loop of `tcp` between the
same hosts: send from a mapped memfd to recv_into, with digests, over one connection. The processor time of both ends is
set beside that of the bare loop's ends: a copy more would be about 0.1 s per GiB.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Sequence

import shoal
from shoal_bench import cluster_nodes, hosts, pairs, places
from shoal_bench.bare_reader import BareReader
from shoal_bench.hosts import Host
from shoal_bench.report import Report
from shoal_core.limits import GIB, MIB
from shoal_core.verbs import evict

OBJECT_BYTES = 256 * MIB
_OWNER_BYTES = GIB
_NEAR_BYTES = 2 * GIB
"""A quarter of it is for near copies, which these are."""


def run(report: Report) -> None:
    """One row of speed, one of processor time."""
    try:
        with hosts.pair() as (near, far):
            _rows(report, near, far)
    except hosts.Unavailable as error:
        report.skip("peer fill between two hosts", str(error))


def _rows(report: Report, near: Host, far: Host) -> None:
    with places.directory() as place, cluster_nodes.cluster(place) as nodes, contextlib.ExitStack() as stack:
        owner = nodes.add("owner", _OWNER_BYTES, host=far)
        asker = nodes.add("asker", _NEAR_BYTES, capacity_bytes=0, host=near)
        nodes.publish()
        url = places.write_object(place / "objects" / "large", OBJECT_BYTES)
        with far.inside():
            port, sender = stack.enter_context(places.peer_process("send", str(OBJECT_BYTES), far.address))
        stack.enter_context(near.inside())
        with shoal.connect(asker.unix) as client:
            client.read(url)
        bare = BareReader(int(port), far.address)
        beside = memoryview(mmap.mmap(-1, OBJECT_BYTES))
        fetched, brought = nodes.stats("owner")["fill_bytes"], nodes.stats("asker")["peer_bytes"]
        mine, theirs = _Clock([owner.process_id, asker.process_id]), _Clock([sender, os.getpid()])

        def ours() -> float:
            _drop(asker.unix, url)
            with shoal.connect(asker.unix) as client:  # one that holds no grants
                client.info(url)
                return mine.time(lambda: _fill(client, url))

        rounds = report.rounds(20)
        pair = pairs.compare(ours, lambda: theirs.time(lambda: bare.read(beside, 0, check=True)), rounds)
        bare.close()
        assert nodes.stats("owner")["fill_bytes"] == fetched, "a block was fetched from the origin again"
        assert nodes.stats("asker")["peer_bytes"] - brought == (rounds + 1) * OBJECT_BYTES
    gigabytes = OBJECT_BYTES / 1e9
    report.row(
        "peer fill between two hosts, 4 MiB blocks", gigabytes / pair.ours_s, gigabytes / pair.reference_s, "GB/s",
        ratio=pair.speed, reference_name="a bare loop with digests",
    )  # fmt: skip
    gibibytes = (rounds + 1) * OBJECT_BYTES / GIB
    report.row(
        "peer fill between two hosts: processor time of both nodes per GiB", mine.cpu_s / gibibytes,
        theirs.cpu_s / gibibytes, "s", reference_name="both ends of a bare loop",
    )  # fmt: skip


class _Clock:
    """Seconds on the wall, and what some processes used meanwhile."""

    def __init__(self, process_ids: Sequence[int]) -> None:
        self.cpu_s = 0.0
        self._process_ids = process_ids

    def time(self, work: Callable[[], object]) -> float:
        used_s = sum(map(cluster_nodes.cpu_s, self._process_ids))
        began_s = time.perf_counter()
        work()
        took_s = time.perf_counter() - began_s
        self.cpu_s += sum(map(cluster_nodes.cpu_s, self._process_ids)) - used_s
        return took_s


def _fill(client: shoal.Client, url: str) -> None:
    with client.view(url) as view:
        assert len(view) == OBJECT_BYTES


def _drop(address: str, url: str) -> None:
    """At one node only: `Client.evict` would drop the owner's copies as well."""
    with shoal.connect(address) as client:
        info = client.info(url)
        reply = client.session.call(evict.KIND, evict.Request([info.fingerprint]), time.monotonic() + 10.0)
        assert reply.blocks * info.block_size_bytes == OBJECT_BYTES
