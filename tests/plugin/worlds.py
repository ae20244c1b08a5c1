"""What the plugin is shown: a pool, its pods, data sets, and the operator's words on them, written by the test.

There is no operator and no kubelet here: the test writes the statuses that they would write. Everything has names of
the test's own, because one API server serves all tests.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from tests.cluster.cluster import Cluster
from tests.crds.statuses import STATUSES

NOW = "2026-01-02T03:04:05Z"


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {
        "type": kind, "status": status, "reason": reason, "message": message, "observedGeneration": 1,
        "lastTransitionTime": NOW,
    }  # fmt: skip


class World:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.kubectl = cluster.kubectl
        self.pool = f"pool-{secrets.token_hex(3)}"
        self.system = self.kubectl.namespace("system")
        self.team = self.kubectl.namespace("team")

    def apply(self, *found: dict[str, Any]) -> None:
        self.kubectl.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(found)}))

    def make_pool(self, *conditions: dict[str, Any], **spec: Any) -> None:
        self.apply(_object("CachePool", self.pool, "", {"dram": {"budget": "1Gi"}, **spec}))
        self.say("CachePool", self.pool, *(conditions or (condition("Ready", "True", "Ready"),)))

    def make_dataset(self, name: str, *conditions: dict[str, Any], **source: Any) -> None:
        spec = {"pool": self.pool, "source": {"uri": "s3://bucket/images", **source}}
        self.apply(_object("Dataset", name, self.team, spec))
        if conditions:
            self.say("Dataset", name, *conditions)

    def say(self, kind: str, name: str, *conditions: dict[str, Any], **status: Any) -> None:
        """As the operator would."""
        full = {**STATUSES[kind], "conditions": list(conditions), **status}
        namespace = "" if kind == "CachePool" else self.team
        self.kubectl.patch(kind, name, {"status": full}, namespace, "status")

    def make_nodes(self, *nodes: str, status: str = "ready") -> None:
        """Pods that nobody runs, and the view that names them."""
        view: dict[str, Any] = {"epoch": 7, "replica_count": 1, "nodes": []}
        for number, node in enumerate(nodes, 1):
            address = f"10.1.2.{number}"
            labels = {
                "app.kubernetes.io/name": "shoal", "app.kubernetes.io/component": "node", "shoal.dev/pool": self.pool,
            }  # fmt: skip
            name = f"shoal-{self.pool}-{node}"
            spec = {
                "nodeName": node, "automountServiceAccountToken": False,
                "containers": [{"name": "node", "image": "example.com/shoal:0.1.0"}],
                "tolerations": [{"operator": "Exists"}],
            }  # fmt: skip
            meta = {"name": name, "namespace": self.system, "labels": labels}
            self.apply(
                {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}},
                {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec},
            )
            ready = {"type": "Ready", "status": "True", "lastTransitionTime": NOW}
            state = {"name": "node", "ready": True, "restartCount": 2, "image": "x", "imageID": "x"}
            told = {"phase": "Running", "podIP": address, "conditions": [ready], "containerStatuses": [state]}
            self.kubectl.patch("pod", name, {"status": told}, self.system, "status")
            view["nodes"].append({"id": node, "addresses": [f"tcp:{address}:7440"], "capacity_bytes": 1, "zone": "a",
                                  "rack": "", "status": status})  # fmt: skip
        meta = {"name": f"shoal-{self.pool}", "namespace": self.system}
        state_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}
        self.apply({**state_map, "data": {"view.json": json.dumps(view)}})


def _object(kind: str, name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    place = {"namespace": namespace} if namespace else {}
    return {"apiVersion": "shoal.dev/v1alpha1", "kind": kind, "metadata": {"name": name, **place}, "spec": spec}
