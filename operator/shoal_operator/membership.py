"""The next view of a pool: who is in it, with which status.

A node enters when its pod is ready for the first time. From then on:
    Kubernetes says NotReady                     gone, at once; back when node and pod are ready
    it is to leave (cordoned, named in drainNodes, handed over for an update, the pool is deleted)
                                                 draining, as long as its pod lives, ready or not: a node that drains
                                                 answers not ready by itself
    its pod is not ready, or there is none       as it was, with its last address, for GRACE_S: most come back, and
                                                 what they hold is not to be moved for that; then gone.
                                                 Counted from when this operator saw it: clocks differ
    the Kubernetes node was deleted, or is not
    selected any more and its pod is gone        left out
    else                                         ready

The epoch rises with each change of anything else, and above every epoch that a node says it follows: a node that kept
a view of a pool of this name, or of a cluster that was restored from a backup, would not follow a lower one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal_core import view
from shoal_operator import selecting
from shoal_operator.model import Node, NodeReport, Pod
from shoal_operator.specs import PoolSpec

GRACE_S = 60.0

_EPOCH_MAX = 1 << 53
"""A node that says more is not believed: JSON numbers end there for many readers."""


def wishes(spec: PoolSpec, nodes: Mapping[str, Node]) -> frozenset[str]:
    """Nodes that people want to be empty."""
    cordoned = {name for name, node in nodes.items() if node.unschedulable}
    return frozenset(cordoned | set(spec.drain_nodes))


def next_view(
    spec: PoolSpec, nodes: Mapping[str, Node], pods: Mapping[str, Pod], before: view.View | None,
    leaving: frozenset[str], reports: Iterable[NodeReport], absent_since_s: Mapping[str, float], now_s: float,
) -> tuple[view.View, dict[str, float]]:  # fmt: skip
    """The view as it is to be, `before` itself if nothing changed, and since when which nodes are absent."""
    known = {node.id: node for node in before.nodes} if before is not None else {}
    absent: dict[str, float] = {}
    members: list[view.Node] = []
    for name in sorted(known.keys() | pods.keys()):
        node, pod, was = nodes.get(name), pods.get(name), known.get(name)
        if node is None or not (_stays(pod) or selecting.selects(spec, node)):
            continue
        if not node.ready:
            entry = _gone(was)
        elif pod is not None and pod.ready and not pod.terminating and pod.address:
            entry = _fresh(spec, node, pod, name in leaving)
        elif was is None or was.status == "gone":
            entry = was
        elif name in leaving and pod is not None and pod.running and not pod.terminating:
            entry = view.Node(was.id, was.addresses, was.capacity_bytes, was.zone, was.rack, "draining")
        else:
            absent[name] = absent_since_s.get(name, now_s)
            entry = _awaited(was, name in leaving) if now_s - absent[name] < GRACE_S else _gone(was)
        if entry is not None:
            members.append(entry)
    return _numbered(before, members, spec.replicas, reports), absent


def _numbered(
    before: view.View | None, members: list[view.Node], replicas: int, reports: Iterable[NodeReport]
) -> view.View:
    epoch = before.epoch if before is not None else 0
    followed = max((report.epoch for report in reports if report.epoch < _EPOCH_MAX), default=0)
    if before is not None and followed <= epoch and view.make(epoch, members, replicas) == before:
        return before
    return view.make(max(epoch, followed) + 1, members, replicas)


def _stays(pod: Pod | None) -> bool:
    return pod is not None and not pod.terminating


def _fresh(spec: PoolSpec, node: Node, pod: Pod, is_leaving: bool) -> view.Node:
    return view.Node(
        id=node.name,
        addresses=(f"tcp:{host_port(pod.address, pod.data_port or spec.ports.data)}",),
        capacity_bytes=spec.capacity_bytes if pod.capacity_bytes is None else pod.capacity_bytes,
        zone=node.labels.get(spec.topology.zone_key, ""),
        rack=node.labels.get(spec.topology.rack_key, ""),
        status="draining" if is_leaving or not selecting.selects(spec, node) else "ready",
    )


def host_port(address: str, port: int) -> str:
    """IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _awaited(was: view.Node, is_leaving: bool) -> view.Node:
    status: view.NodeStatus = "draining" if is_leaving else "ready"
    return view.Node(was.id, was.addresses, was.capacity_bytes, was.zone, was.rack, status)


def _gone(was: view.Node | None) -> view.Node | None:
    if was is None:
        return None
    return view.Node(was.id, was.addresses, was.capacity_bytes, was.zone, was.rack, "gone")
