"""The control groups of nodes: each kubelet gets a root of its own, because it ends what it does not know below it.

Written for both versions of control groups, tried on version 1.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = (
    *("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"),
    *("systemd", "hugetlb", "perf_event", "net_cls"),
)


def _trees() -> list[Path]:
    if (_ROOT / "cgroup.controllers").exists():
        return [_ROOT]
    return [_ROOT / name for name in _CONTROLLERS if (_ROOT / name).is_dir()]


def make(name: str) -> None:
    for tree in _trees():
        group = tree / name
        group.mkdir(exist_ok=True)
        for file in "cpuset.cpus", "cpuset.mems":  # version 1: empty, and unusable, until copied
            if tree.name == "cpuset":
                (group / file).write_text((tree / file).read_text())
        if tree == _ROOT:
            for controller in (tree / "cgroup.controllers").read_text().split():
                with contextlib.suppress(OSError):
                    (tree / "cgroup.subtree_control").write_text(f"+{controller}")


def pids(name: str) -> set[int]:
    """Of everything that runs below, in the machine's numbers."""
    found: set[int] = set()
    for tree in _trees():
        for file in (tree / name).rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found.update(int(pid) for pid in file.read_text().split())
    return found


def remove(prefix: str) -> None:
    """All groups `prefix`-NUMBER, whatever is below them. Groups must be empty of processes."""
    for tree in [*_trees(), _ROOT / "unified"]:  # runc makes them in a mixed machine's second tree too
        for top in tree.glob(f"{prefix}-[0-9]*"):
            below = [path for path in top.rglob("*") if path.is_dir()]
            for group in sorted([top, *below], key=lambda path: -len(path.parts)):
                with contextlib.suppress(OSError):
                    group.rmdir()
