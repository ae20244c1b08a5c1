"""What a cluster takes of this machine's memory, by part: proportional set sizes, so that shared pages count once."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from pathlib import Path

from tests.cluster import cgroups
from tests.cluster.cluster import Cluster

_OF_A_NODE = re.compile(r"(kubelet|proxy|containerd|node)-\d+")
_NAMED = ("kubelet", "kube-proxy", "containerd")


def by_part(cluster: Cluster) -> Counter[str]:
    """Bytes."""
    found: Counter[str] = Counter()
    for name in cluster.processes.names():
        if not _OF_A_NODE.fullmatch(name):
            found[name] += _bytes(cluster.processes.pid(name))
    for node in cluster.layout.nodes:
        init = cluster.nodes.init_pid(node)
        found[f"node-{node} pods"] = sum(map(_bytes, cgroups.pids(f"{cluster.layout.name}-{node}")))
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # Pods have mount and pid namespaces of their own.
                if all(
                    os.readlink(process / f"ns/{kind}") == os.readlink(f"/proc/{init}/ns/{kind}") for kind in _KINDS
                ):
                    program = (process / "comm").read_text().strip()
                    part = program if program in _NAMED else "shims and pid 1"
                    found[f"node-{node} {part}"] += _bytes(int(process.name))
    return found


_KINDS = ("mnt", "pid")


def print_table(cluster: Cluster) -> None:
    parts = by_part(cluster)
    for name, size in sorted(parts.items()):
        print(f"{size / 2**20:8.1f} MiB  {name}")
    print(f"{parts.total() / 2**20:8.1f} MiB  in all")


def _bytes(pid: int | None) -> int:
    if pid is None:
        return 0
    with contextlib.suppress(OSError):
        match = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        if match:
            return int(match[1]) << 10
    return 0
