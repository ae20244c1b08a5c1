"""What the tests of the running operator share: manifests, and a pool of played nodes that is up."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.cluster.cluster import Cluster
from tests.support.operator_process import Release, free_port
from tests.support.played_nodes import Door, PlayedNodes, doors


def pool(name: str, control_port: int = 7441, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "CachePool",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"pool": name},
            "dram": {"budget": "1Gi"},
            "ports": {"control": control_port},
            "drainTimeoutSeconds": 3,
            **spec,
        },
    }


def dataset(name: str, pool_name: str, **source: Any) -> dict[str, Any]:
    return {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "Dataset",
        "metadata": {"name": name},
        "spec": {"pool": pool_name, "source": {"uri": f"s3://bucket/{name}", **source}},
    }


def preload(name: str, dataset_name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "Preload",
        "metadata": {"name": name},
        "spec": {"dataset": dataset_name, **spec},
    }


def condition(found: dict[str, Any], kind: str) -> dict[str, Any]:
    """Of an object's status; empty where it has none of that type."""
    return next((item for item in found.get("status", {}).get("conditions", []) if item["type"] == kind), {})


def is_true(kind: str, reason: str | None = None, status: str = "True") -> Any:
    def check(found: dict[str, Any]) -> bool:
        item = condition(found, kind)
        return item.get("status") == status and reason in (None, item.get("reason"))

    return check


def status_of_node(**more: Any) -> dict[str, Any]:
    """What /status of a cache node holds, as far as the operator reads it."""
    return {"version": "0.1.0", "view_epoch": 1, "tiers": {"dram": {"used_bytes": 0}}, **more}


@dataclass
class RunningPool:
    """A pool whose nodes answer."""

    cluster: Cluster
    release: Release
    name: str
    nodes: PlayedNodes
    doors: dict[str, Door]
    port: int

    def state(self) -> dict[str, Any]:
        """The pool state's documents, parsed."""
        found = self.cluster.kubectl.get("configmap", f"shoal-{self.name}", self.release.namespace)
        return {key: json.loads(text) for key, text in found["data"].items()}

    def until_state(self, true: Any, seconds: float = 20.0) -> dict[str, Any]:
        def check(found: dict[str, Any]) -> bool:
            return bool(true({key: json.loads(text) for key, text in found["data"].items()}))

        name = f"shoal-{self.name}"
        self.cluster.kubectl.until("configmap", name, check, self.release.namespace, seconds)
        return self.state()

    def view(self) -> dict[str, str]:
        """Status by node."""
        return {node["id"]: node["status"] for node in self.state()["view.json"]["nodes"]}

    def until_view(self, seconds: float = 20.0, **wanted: str) -> None:
        """Nodes are named by their number: `n1="gone"`."""
        by_name = {self.nodes.names[int(key[1:]) - 1]: status for key, status in wanted.items()}

        def check(state: dict[str, Any]) -> bool:
            found = {node["id"]: node["status"] for node in state["view.json"].get("nodes", [])}
            return all(found.get(name, "") == status for name, status in by_name.items())

        self.until_state(check, seconds)


@contextlib.contextmanager
def running_pool(
    cluster: Cluster, release: Release, name: str, net: int, count: int = 3, **spec: Any
) -> Iterator[RunningPool]:
    """A pool with `count` nodes, up; deleted in the end, whatever happened to it."""
    port = free_port()
    with PlayedNodes(cluster, name, count, release.namespace, net) as nodes, doors(nodes, port) as opened:
        for door in opened.values():
            door.status = status_of_node()
        cluster.kubectl.apply(json.dumps(pool(name, port, **spec)))
        try:
            cluster.kubectl.wait("cachepool", name, "condition=Ready", seconds=40)
            yield RunningPool(cluster, release, name, nodes, opened, port)
        finally:
            discard(cluster, "cachepool", name)


def discard(cluster: Cluster, kind: str, name: str, namespace: str = "") -> None:
    """Deletes it even if no operator runs: the documented way out."""
    kubectl = cluster.kubectl
    kubectl.delete(kind, name, namespace, wait=False)
    if kubectl.find(kind, name, namespace) is not None:
        place = ("--namespace", namespace) if namespace else ()
        kubectl.run(*place, "patch", kind, name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}', check=False)
    kubectl.delete(kind, name, namespace)
