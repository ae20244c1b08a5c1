"""What do readers notice when one of three nodes is killed?

Three nodes with two replicas of each block; readers elsewhere go through the object in random order, again and again,
in batches. In the middle one node is ended by kill -9; the view goes on to name it. How soon is the throughput of all
readers together what two nodes can give, and how long did the slowest batch take? What two nodes can give is measured
in the same run, afterwards: the same readers with the same load, on the two that are left, when the view names no
others and both hold everything.

Where the machine has network namespaces, readers and nodes are hosts of their own and each node's cable has a rate, so
that nodes are bound by their network as real ones are; else all share loopback and these cores. The throughput of each
second is printed below the table.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence

import shoal
from shoal_bench import cluster_nodes, cluster_readers, hosts, places
from shoal_bench.cluster_nodes import ClusterNodes
from shoal_bench.cluster_readers import Readers
from shoal_bench.hosts import Host
from shoal_bench.report import Report
from shoal_core.limits import KIB, MIB

READERS = 8
BLOCK_BYTES = 256 * KIB
BATCH = 8
OBJECT_BYTES = 256 * MIB
CABLE_BYTES_PER_S = 40e6
"""Of each node: two of them together leave half of a small machine idle."""
_NODES = ("node-0", "node-1", "node-2")
_BUDGET_BYTES = 768 * MIB
_BEFORE_S = 8.0
_AFTER_S = 16.0
_WINDOW_S = 1.0
_STEP_S = 0.1
_BACK = 0.95

Batches = list[tuple[float, float, int]]
"""When it ended, how long it took, bytes."""


def run(report: Report) -> None:
    """Seconds until it is as before, and the longest wait."""
    shorter = 0.5 if report.quick else 1.0
    with contextlib.ExitStack() as stack:
        far, near = stack.enter_context(_hosts(report))
        place = stack.enter_context(places.directory())
        nodes = stack.enter_context(cluster_nodes.cluster(place, replica_count=2))
        for name, host in zip(_NODES, far, strict=True):
            nodes.add(name, _BUDGET_BYTES, host=host, fill={"block_size_bytes": BLOCK_BYTES})
        nodes.publish()
        url = places.write_object(place / "objects" / "large", OBJECT_BYTES)
        addresses = [nodes.running[_NODES[number % 2]].tcp for number in range(READERS)]
        with near.inside() if near is not None else contextlib.nullcontext(), shoal.connect(addresses[0]) as client:
            client.read(url)
        cluster_nodes.until(lambda: _copies(nodes) == 2 * OBJECT_BYTES // BLOCK_BYTES, "two copies of each block")
        for host in far:
            if host is not None:
                host.limit(CABLE_BYTES_PER_S)
        readers = stack.enter_context(cluster_readers.readers(addresses, near))
        _measure(report, nodes, readers, url, shorter)


def _measure(report: Report, nodes: ClusterNodes, readers: Readers, url: str, shorter: float) -> None:
    _load(readers, url, time.monotonic() + 2.0)
    ends_s = time.monotonic() + (_BEFORE_S + _AFTER_S) * shorter
    readers.begin(_job(url, ends_s))
    time.sleep(_BEFORE_S * shorter)
    killed_s = time.monotonic()
    nodes.kill(_NODES[2])
    batches, fallbacks = _batches(readers)
    del nodes.members[_NODES[2]]
    nodes.publish()
    nodes.quiet()
    began_s = time.monotonic()
    two, _ = _load(readers, url, began_s + _BEFORE_S * shorter)
    capacity = statistics.median(_per_second(two, began_s + 1.0, began_s + _BEFORE_S * shorter))
    before = statistics.median(_per_second(batches, killed_s - _BEFORE_S * shorter + 1.0, killed_s))
    _rows(report, batches, killed_s, ends_s, capacity, before)
    report.note(f"ranges that readers took from the origin meanwhile: {fallbacks}")


def _copies(nodes: ClusterNodes) -> int:
    return sum(nodes.stats(name)["tiers"]["dram"]["blocks"] for name in nodes.running)


def _rows(report: Report, batches: Batches, killed_s: float, ends_s: float, capacity: float, before: float) -> None:
    back_s = _back_after_s(batches, killed_s, ends_s, _BACK * capacity)
    report.row(
        f"one of three nodes killed, {READERS} readers: until 95 % of what two nodes give", back_s, None, "s",
        at_most=5.0,
    )  # fmt: skip
    waits = [took_s for ended_s, took_s, _ in batches if ended_s > killed_s]
    usual = [took_s for ended_s, took_s, _ in batches if ended_s <= killed_s]
    report.row("one of three nodes killed: the longest a batch took", max(waits) * 1e3, max(usual) * 1e3, "ms",
               reference_name="the longest before")  # fmt: skip
    report.row("three nodes before", before / 1e6, capacity / 1e6, "MB/s", reference_name="two nodes afterwards")
    seconds = range(-4, int(ends_s - killed_s))
    rates = [_bytes(batches, killed_s + second, killed_s + second + 1.0) / 1e6 for second in seconds]
    report.note("second after the kill: MB/s of all readers together")
    report.note("  " + "  ".join(f"{second}: {rate:.0f}" for second, rate in zip(seconds, rates, strict=True)))


def _back_after_s(batches: Batches, killed_s: float, ends_s: float, enough: float) -> float:
    """The first moment from which a whole window has enough; the rest of the run where there is none."""
    start_s = killed_s
    while start_s + _WINDOW_S <= ends_s:
        if _bytes(batches, start_s, start_s + _WINDOW_S) / _WINDOW_S >= enough:
            return start_s - killed_s
        start_s += _STEP_S
    return ends_s - killed_s


def _per_second(batches: Batches, start_s: float, end_s: float) -> list[float]:
    return [_bytes(batches, start_s + number, start_s + number + 1.0) for number in range(int(end_s - start_s))]


def _bytes(batches: Batches, start_s: float, end_s: float) -> float:
    """What came within these seconds; of a batch the share of its time that lies in them."""
    found = 0.0
    for ended_s, took_s, size in batches:
        inside_s = min(ended_s, end_s) - max(ended_s - took_s, start_s)
        if inside_s > 0:
            found += size * inside_s / took_s
    return found


def _load(readers: Readers, url: str, until_s: float) -> tuple[Batches, int]:
    readers.begin(_job(url, until_s))
    return _batches(readers)


def _job(url: str, until_s: float) -> dict[str, object]:
    return {
        "job": "loop", "url": url, "size": OBJECT_BYTES, "block_bytes": BLOCK_BYTES, "batch": BATCH, "until_s": until_s,
    }  # fmt: skip


def _batches(readers: Readers) -> tuple[Batches, int]:
    answers = readers.answers()
    batches = [(ended_s, took_s, size) for answer in answers for ended_s, took_s, size in answer["batches"]]
    return batches, sum(answer["stats"]["fallbacks"] for answer in answers)


@contextlib.contextmanager
def _hosts(report: Report) -> Iterator[tuple[Sequence[Host | None], Host | None]]:
    """Three for nodes and one for readers; None is this one."""
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(hosts.network([*_NODES, "readers"]))
            *far, near = found.values()
        except hosts.Unavailable as error:
            report.note(f"nodes share loopback and are bound by the cores, not by cables of their own: {error}")
            yield [None] * 3, None
            return
        report.note(f"each node's cable: {CABLE_BYTES_PER_S / 1e6:.0f} MB/s")
        yield far, near
