"""The run: three node processes, an origin that counts, 64 readers in four processes, and what must hold in the end.

The data set is larger than all DRAM tiers together and each block has two owners, so blocks are evicted, come back from
disk, from other nodes and from the origin all the time. Half of the readers share a host with a node (Unix sockets,
views without a copy), half are elsewhere (TCP). `run` returns when the time is up, with every problem it found: errors
and wrong bytes, tiers that were not used, memory or descriptors that grew.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from shoal_bench import cluster_nodes, counting_origin, places
from shoal_bench.cluster_nodes import ClusterNodes
from shoal_core.limits import KIB, MIB
from tests.soak.growth import Growth
from tests.soak.latencies import Latencies

NODES = 3
READERS = 64
PROCESSES = 4
BLOCK_BYTES = 64 * KIB
OBJECT_COUNT = 32
OBJECT_BYTES = 8 * MIB - 12_345
DRAM_BYTES = 64 * MIB
DISK_BYTES = 160 * MIB
DEADLINE_S = 60.0
_START_S, _END_S = 60.0, 120.0
_REPOSITORY = Path(__file__).resolve().parents[2]


class Result:
    """What a run found."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.latencies: dict[str, Latencies] = {}
        self.sums: Counter[str] = Counter()
        """Of all readers: bytes, errors, fallbacks, corrupt pages, and block ranges by where they came from."""
        self.nodes: dict[str, dict[str, Any]] = {}
        self.growth = Growth({})
        self.origin_bytes = 0
        self.seconds = 0.0

    def add(self, answer: dict[str, Any]) -> None:
        """One process's answer."""
        for name in ("bytes", "error_count", "fallbacks", "corrupt_pages"):
            self.sums[name] += answer[name]
        self.sums.update({f"from {name}": count for name, count in answer["hits"].items()})
        self.problems += answer["errors"]
        for kind, counts in answer["latencies"].items():
            self.latencies.setdefault(kind, Latencies()).merge(Latencies(counts))

    def total(self, *path: str) -> int:
        """A counter of the nodes, added up."""
        found = 0
        for stats in self.nodes.values():
            value: Any = stats
            for name in path:
                value = value[name]
            found += value
        return found


def run(seconds: float, place: Path) -> Result:
    """Soak for so long; everything lies below `place`."""
    result = Result()
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(counting_origin.running())
        nodes = stack.enter_context(cluster_nodes.cluster(place, replica_count=2))
        for number in range(NODES):
            _add(nodes, place, f"node-{number}")
        nodes.publish()
        job = {
            "origin": origin.url(0, 0).removesuffix("/0/0"), "objects": OBJECT_COUNT, "size": OBJECT_BYTES,
            "block_bytes": BLOCK_BYTES, "deadline_s": DEADLINE_S, "until_s": time.monotonic() + seconds,
        }  # fmt: skip
        began_s = time.monotonic()
        processes = [stack.enter_context(_readers(nodes, job, number)) for number in range(PROCESSES)]
        result.growth = Growth(
            {name: node.process_id for name, node in nodes.running.items()}
            | {f"readers {number}": process.pid for number, process in enumerate(processes)}
        )
        result.growth.start()
        for number, process in enumerate(processes):
            assert process.stdout is not None
            line = process.stdout.readline()
            if line:
                result.add(json.loads(line))
            else:
                result.problems.append(f"readers {number} ended with {process.wait(_END_S)}")
        result.growth.stop()
        result.seconds = time.monotonic() - began_s
        result.origin_bytes = origin.counts().bytes
        for name in nodes.running:
            result.nodes[name] = nodes.stats(name)
    result.problems += _unused(result) + result.growth.problems()
    return result


def _unused(result: Result) -> list[str]:
    """What should have happened and did not: then the run says little; and what never should."""
    never = {
        "reads that failed": result.sums["error_count"],
        "pages that did not match their digests": result.sums["corrupt_pages"],
        "corrupt pages in DRAM": result.total("corrupt_pages", "dram"),
        "corrupt pages on disk": result.total("corrupt_pages", "disk"),
        "failed disk reads": result.total("disk_errors", "read"),
    }
    always = {
        "evictions from DRAM": result.total("evictions", "dram"),
        "bytes from node to node": result.total("peer_bytes"),
        "ranges from disk": result.sums["from disk"],
        "ranges from another node": result.sums["from peer"],
        "views and reads without a copy": result.sums["from shared memory"],
        "ranges over TCP": result.sums["from tcp"],
    }
    return [f"{name}: {count}" for name, count in never.items() if count] + [
        f"{name}: none" for name, count in always.items() if not count
    ]


def _add(nodes: ClusterNodes, place: Path, name: str) -> None:
    nodes.add(
        name, DRAM_BYTES, nvme=[{"directory": str(place / f"disk-{name}"), "budget_bytes": DISK_BYTES}],
        fill={"block_size_bytes": BLOCK_BYTES}, cluster={"scrub_s": 30.0},
    )  # fmt: skip


@contextlib.contextmanager
def _readers(nodes: ClusterNodes, job: dict[str, Any], number: int) -> Any:
    """One process of readers, connected; every node has some on its host and some elsewhere."""
    count = READERS // PROCESSES
    started = list(nodes.running.values())
    addresses = [
        node.unix if place % 2 else node.tcp
        for place in range(count)
        for node in [started[(number * count + place) // 2 % len(started)]]
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.soak.readers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=_REPOSITORY,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(job | {"addresses": addresses, "seed": number * count}) + "\n")
        process.stdin.flush()
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"readers {number} did not start")
        yield process
    finally:
        process.stdin.close()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def directory() -> contextlib.AbstractContextManager[Path]:
    """Where the run may write: short enough for a socket's path."""
    return places.directory()
