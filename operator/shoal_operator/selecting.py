"""Which Kubernetes nodes a pool is to be on: what the DaemonSet controller will decide, from the same facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal_operator.model import Node, Pod, Pool
from shoal_operator.specs import PoolSpec

_ALWAYS = frozenset(
    f"node.kubernetes.io/{name}"
    for name in (
        "not-ready", "unreachable", "disk-pressure", "memory-pressure", "pid-pressure", "unschedulable",
    )
)  # fmt: skip
"""Taints that every DaemonSet pod tolerates."""
_ON_HOST_NETWORK = "node.kubernetes.io/network-unavailable"


def selects(spec: PoolSpec, node: Node) -> bool:
    """Whether the pool is to have a pod there."""
    labels = node.labels
    if any(labels.get(name) != value for name, value in spec.node_selector.items()):
        return False
    return all(_tolerated(spec, taint) for taint in node.taints)


def selected(spec: PoolSpec, nodes: Mapping[str, Node]) -> tuple[str, ...]:
    """Names of the nodes that the pool is to be on, in order."""
    return tuple(sorted(name for name, node in nodes.items() if selects(spec, node)))


def pod_by_node(pods: Iterable[Pod]) -> dict[str, Pod]:
    """The pod that counts on each node: the newest that is to stay, else one that ends."""
    chosen: dict[str, Pod] = {}
    for pod in pods:
        other = chosen.get(pod.node)
        if pod.node and (other is None or _rank(pod) > _rank(other)):
            chosen[pod.node] = pod
    return chosen


def path_conflict(pool: Pool, pools: Iterable[Pool], nodes: Mapping[str, Node]) -> tuple[Pool, str, str] | None:
    """An older pool that wants the same path on a node of both: it, the path, and such a node."""
    spec = pool.spec
    if spec is None:
        return None
    for other in sorted(pools, key=_age):
        if other.spec is None or other.name == pool.name or _age(other) > _age(pool):
            continue
        for path in (nvme.path for nvme in spec.nvme for theirs in other.spec.nvme if _overlap(nvme.path, theirs.path)):
            for name in sorted(nodes):
                if selects(spec, nodes[name]) and selects(other.spec, nodes[name]):
                    return other, path, name
    return None


def _overlap(path: str, other: str) -> bool:
    """Whether they are the same directory, or one lies in the other."""
    one, two = _parts(path), _parts(other)
    shorter = min(len(one), len(two))
    return one[:shorter] == two[:shorter]


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _age(pool: Pool) -> tuple[float, str]:
    return pool.created_s, pool.name


def _rank(pod: Pod) -> tuple[bool, float, str]:
    return not pod.terminating, pod.created_s, pod.uid


def _tolerated(spec: PoolSpec, taint: Mapping[str, str]) -> bool:
    key, effect = taint.get("key", ""), taint.get("effect", "")
    if effect not in ("NoSchedule", "NoExecute") or key in _ALWAYS:
        return True
    if spec.host_network and key == _ON_HOST_NETWORK:
        return True
    return any(_matches(toleration, key, taint.get("value", ""), effect) for toleration in spec.tolerations)


def _matches(toleration: Mapping[str, object], key: str, value: str, effect: str) -> bool:
    if toleration.get("effect") not in (None, "", effect):
        return False
    if toleration.get("key") not in (None, "", key):
        return False
    if toleration.get("operator") == "Exists":
        return True
    return toleration.get("key") == key and (toleration.get("value") or "") == value
