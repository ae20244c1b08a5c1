"""Nodes of one view for benchmarks: processes as `python -m shoal_node` starts them, and the view file they follow.

`add` starts a node; `publish` writes the view of the next epoch with all that were added and not left out, and returns
when every one of them that runs holds it. Nodes may stand on hosts of their own (`hosts`), else all are on loopback.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

import shoal
from shoal_bench import places
from shoal_bench.hosts import Host
from shoal_bench.places import BenchNode
from shoal_core import view
from shoal_core.errors import ShoalError
from shoal_core.limits import GIB

_WAIT_S = 60.0
_LOOK_S = 0.02


class ClusterNodes:
    """Made by `cluster`."""

    def __init__(self, place: Path, stack: contextlib.ExitStack, replica_count: int) -> None:
        self.running: dict[str, BenchNode] = {}
        self.members: dict[str, view.Node] = {}
        """As the view names them, from the next `publish` on."""
        self.replica_count = replica_count
        self.epoch = 0
        self._place = place
        self._stack = stack

    def add(
        self, name: str, budget_bytes: int, *, capacity_bytes: int = GIB, host: Host | None = None, **sections: Any
    ) -> BenchNode:
        """Start one more."""
        place = self._place / name
        place.mkdir()
        doors = {"unix": str(place / "node.sock"), "tcp": f"{host.address if host is not None else '127.0.0.1'}:0"}
        followed = {"view": str(self._place / "view.json"), "poll_s": 0.1, **sections.pop("cluster", {})}
        with host.inside() if host is not None else contextlib.nullcontext():
            node = self._stack.enter_context(
                places.node(place, budget_bytes, node_name=name, doors=doors, cluster=followed, **sections)
            )
        self.running[name] = node
        self.members[name] = view.Node(name, (node.tcp,), capacity_bytes)
        return node

    def publish(self) -> view.View:
        """The view of now; all that run and are named hold it then."""
        self.epoch += 1
        made = view.make(self.epoch, list(self.members.values()), self.replica_count)
        new = self._place / "view.new"
        new.write_bytes(msgspec.json.encode(made))
        os.replace(new, self._place / "view.json")
        until(
            lambda: all(self.stats(name)["view_epoch"] >= self.epoch for name in self.running if name in self.members),
            f"every node follows to epoch {self.epoch}",
        )
        return made

    def kill(self, name: str) -> None:
        """kill -9; the view goes on to name it."""
        os.kill(self.running.pop(name).process_id, 9)

    def stats(self, name: str) -> dict[str, Any]:
        """The node's counters and gauges."""
        with shoal.connect(self.running[name].unix) as client:
            return client.node_stats()

    def total(self, counter: str) -> int:
        """Of one counter or gauge, over all nodes that run."""
        return sum(self.stats(name)[counter] for name in self.running)

    def quiet(self) -> None:
        """Returns when no node has anything to bring or to write, seen twice in a row."""
        seen: list[int] = []

        def is_quiet() -> bool:
            stats = [self.stats(name) for name in self.running]
            busy = any(each["fills_in_flight"] or each["pull_queue"] for each in stats)
            seen.append(-1 if busy else sum(each["pulled_bytes"] for each in stats))
            time.sleep(0.5)
            return len(seen) > 1 and seen[-1] == seen[-2] != -1

        until(is_quiet, "nothing is brought any more")


@contextlib.contextmanager
def cluster(place: Path, *, replica_count: int = 1) -> Iterator[ClusterNodes]:
    """An empty cluster below a directory; what is added ends with the block."""
    with contextlib.ExitStack() as stack:
        yield ClusterNodes(place, stack, replica_count)


def until(holds: Callable[[], bool], what: str, seconds: float = _WAIT_S) -> None:
    """Look at it until it holds."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ShoalError):
            if holds():
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds} s: {what}")
        time.sleep(_LOOK_S)


def cpu_s(process_id: int) -> float:
    """Processor time that a process has used so far, in user and kernel mode."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
