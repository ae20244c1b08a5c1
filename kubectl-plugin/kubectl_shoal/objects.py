"""Shoal's objects in the cluster as plain data, and where to find them. Nothing here prints.

Names agree with the operator's (`shoal-POOL` and its like): they are part of what the installation promises.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from kubectl_shoal.kubectl import Kubectl, Refused
from shoal_core import units
from shoal_core.errors import BadRequest, NotFound

API = "/apis/shoal.dev/v1alpha1"
NODE_LABELS = "app.kubernetes.io/name=shoal,app.kubernetes.io/component=node"
POOL_LABEL = "shoal.dev/pool"
SYSTEM_NAMESPACE = "shoal-system"
CONTAINER = "node"

Object = dict[str, Any]


class NodePod(NamedTuple):
    """A pod of a pool."""

    pool: str
    node: str
    """The Kubernetes node, which is also the node's id in the view."""
    namespace: str
    name: str
    ready: bool
    phase: str
    restarts: int
    address: str
    image: str
    created: str

    @property
    def socket(self) -> str:
        """The node's own door, with access to all that it has."""
        return f"unix:/run/shoal.dev/{self.pool}/node.sock"


def pools(kubectl: Kubectl) -> list[Object]:
    return kubectl.get(f"{API}/cachepools")["items"]


def pool(kubectl: Kubectl, name: str) -> Object:
    found = kubectl.find(f"{API}/cachepools/{name}")
    if found is None:
        raise NotFound(f"CachePool {name}: there is none; there are: {_names(pools(kubectl))}")
    return found


def datasets(kubectl: Kubectl, namespace: str | None) -> list[Object]:
    """Of one namespace; None: of all."""
    place = f"namespaces/{namespace}/" if namespace is not None else ""
    return kubectl.get(f"{API}/{place}datasets")["items"]


def dataset(kubectl: Kubectl, namespace: str, name: str) -> Object:
    found = kubectl.find(f"{API}/namespaces/{namespace}/datasets/{name}")
    if found is None:
        there = _names(datasets(kubectl, namespace))
        raise NotFound(f"Dataset {namespace}/{name}: there is none; in this namespace there are: {there}")
    return found


def preloads(kubectl: Kubectl, namespace: str | None) -> list[Object]:
    place = f"namespaces/{namespace}/" if namespace is not None else ""
    return kubectl.get(f"{API}/{place}preloads")["items"]


def node_pods(kubectl: Kubectl, system_namespace: str | None) -> list[NodePod]:
    """Of all pools, by pool and node. Who may not list pods everywhere is shown those of one namespace."""
    if system_namespace is None:
        try:
            found = kubectl.get("/api/v1/pods", labelSelector=NODE_LABELS)
        except Refused as refused:
            if refused.reason != "Forbidden":
                raise
            return node_pods(kubectl, SYSTEM_NAMESPACE)
    else:
        found = kubectl.get(f"/api/v1/namespaces/{system_namespace}/pods", labelSelector=NODE_LABELS)
    return sorted(map(_node_pod, found["items"]), key=lambda pod: (pod.pool, pod.node, pod.created))


def visible_pods(kubectl: Kubectl) -> list[NodePod]:
    """Those that this user may see: none, for most."""
    try:
        return node_pods(kubectl, None)
    except Refused as refused:
        if refused.reason != "Forbidden":
            raise
        return []


def view(kubectl: Kubectl, namespace: str, pool_name: str) -> dict[str, Object]:
    """What the operator tells a pool's nodes of each other, by node; empty where there is nothing yet."""
    state = kubectl.find(f"/api/v1/namespaces/{namespace}/configmaps/shoal-{pool_name}")
    told = json.loads((state or {}).get("data", {}).get("view.json", "{}"))
    return {node["id"]: node for node in told.get("nodes", [])}


def choose_pod(arguments: argparse.Namespace, kubectl: Kubectl, pool_name: str) -> NodePod:
    """A pod to run a command in: that of --node, else the first that is ready."""
    wanted: str | None = getattr(arguments, "node", None)
    pods = [pod for pod in node_pods(kubectl, arguments.system_namespace) if pod.pool == pool_name]
    if not pods:
        raise NotFound(f"CachePool {pool_name}: it has no pods; kubectl shoal status {pool_name} says why")
    if wanted is not None:
        pods = [pod for pod in pods if pod.node == wanted]
        if not pods:
            raise BadRequest(f"--node {wanted}: pool {pool_name} has no pod there")
    ready = [pod for pod in pods if pod.ready]
    if not ready:
        where = f" on {wanted}" if wanted is not None else ""
        raise NotFound(f"CachePool {pool_name}: no pod{where} is ready; kubectl shoal status {pool_name} says why")
    return ready[0]


def only_pool(arguments: argparse.Namespace, kubectl: Kubectl) -> str:
    """The pool of --pool, else the only one there is."""
    if arguments.pool is not None:
        return arguments.pool
    names = [found["metadata"]["name"] for found in pools(kubectl)]
    if len(names) != 1:
        raise BadRequest(f"--pool: which one? There are {', '.join(names) or 'none'}")
    return names[0]


def title(found: Object) -> str:
    """How an object is called on a line: Dataset team-a/images."""
    meta = found["metadata"]
    place = f"{meta['namespace']}/" if meta.get("namespace") else ""
    return f"{found.get('kind', '')} {place}{meta['name']}".strip()


def _names(found: Iterable[Object]) -> str:
    return ", ".join(each["metadata"]["name"] for each in found) or "none"


def _node_pod(found: Object) -> NodePod:
    meta, spec, status = found["metadata"], found["spec"], found.get("status", {})
    containers = status.get("containerStatuses", [])
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", []))
    return NodePod(
        pool=meta["labels"].get(POOL_LABEL, ""),
        node=spec.get("nodeName", ""),
        namespace=meta["namespace"],
        name=meta["name"],
        ready=ready and "deletionTimestamp" not in meta,
        phase="Terminating" if "deletionTimestamp" in meta else _waiting(containers) or status.get("phase", ""),
        restarts=sum(each.get("restartCount", 0) for each in containers),
        address=status.get("podIP", ""),
        image=spec["containers"][0].get("image", ""),
        created=meta["creationTimestamp"],
    )


def _waiting(containers: list[Object]) -> str:
    """Why a container does not run: CrashLoopBackOff says more than Running."""
    for each in containers:
        for state in ("waiting", "terminated"):
            if reason := each.get("state", {}).get(state, {}).get("reason"):
                return str(reason)
    return ""


def age(since: str, now_s: float) -> str:
    """Of what began at a time as the API server writes it; '-' for no time."""
    return units.age(now_s - dt.datetime.fromisoformat(since).timestamp()) if since else "-"
