"""A few nodes of one cluster in this process, for tests that look inside: each with doors, and a view file for all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import waiting
from tests.support.running_node import InProcessNode, MakeInProcess, in_process_node, merged

__all__ = ["Nodes", "in_process_node", "nodes"]

GIB = 1 << 30


class Nodes:
    """Made by the fixture `nodes`; `nodes.start(3)` starts three and returns when all of them hold the view."""

    def __init__(self, make: MakeInProcess, directory: Path) -> None:
        self._make = make
        self.view_file = directory / "view.json"
        self.running: dict[str, InProcessNode] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.epoch = 0
        self.replica_count = 1

    def __getitem__(self, number: int) -> InProcessNode:
        return self.running[f"node-{number}"]

    def start(
        self, count: int, *, replica_count: int = 1, zones: int = 1, overrides: Mapping[str, Any] | None = None
    ) -> Nodes:
        self.replica_count = replica_count
        for number in range(1, count + 1):
            self.add(number, zone=f"zone-{number % zones}", overrides=overrides)
        self.publish()
        return self

    def add(self, number: int, *, zone: str = "zone-0", overrides: Mapping[str, Any] | None = None) -> InProcessNode:
        """One more, which is in the view from the next `publish` on."""
        name = f"node-{number}"
        own = {"node_name": name, "cluster": {"view": str(self.view_file), "poll_s": 0.05}}
        node = self.running[name] = self._make(merged(own, overrides or {}))
        self.rows[name] = {
            "id": name, "addresses": [node.tcp_address], "capacity_bytes": GIB, "zone": zone, "rack": "",
            "status": "ready",
        }  # fmt: skip
        return node

    def publish(self) -> None:
        """Write the view of the next epoch; returns when all nodes that still run hold it."""
        self.publish_for({name: node for name, node in self.running.items() if name in self.rows})

    def publish_for(self, known: Mapping[str, InProcessNode]) -> None:
        """The same, and wait for these only."""
        self.epoch += 1
        view = {"epoch": self.epoch, "replica_count": self.replica_count, "nodes": list(self.rows.values())}
        new = self.view_file.with_suffix(".new")
        new.write_text(json.dumps(view))
        os.replace(new, self.view_file)
        waiting.until(
            lambda: all(node.node.epoch == self.epoch for node in known.values()), "every node holds the view"
        )

    def stop(self, number: int) -> None:
        """End it; the view still names it."""
        node = self[number]
        node.stop()
        del self.running[f"node-{number}"]

    def total(self, counter: str) -> int:
        """Of one plain counter, over all nodes that run."""
        return sum(getattr(node.node.counters, counter) for node in self.running.values())


@pytest.fixture
def nodes(in_process_node: MakeInProcess, tmp_path: Path) -> Nodes:
    return Nodes(in_process_node, tmp_path)
