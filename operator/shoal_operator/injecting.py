"""What the webhook adds to a pod that is labelled `shoal.dev/inject: [NAMESPACE.]DATASET`: pure.

The CSI volume `shoal`, mounted read-only at /run/shoal in every container, and a preference (never a demand) for nodes
that hold the data set. All of it only where it is not there yet, so that a pod that was treated once stays as it is;
the preference, which may come out differently a minute later, is marked by an annotation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from shoal_operator.model import NodeReport
from shoal_operator.observing import Store

LABEL = "shoal.dev/inject"
ANNOTATION = "shoal.dev/injected"
DRIVER = "csi.shoal.dev"
VOLUME = "shoal"
MOUNT_PATH = "/run/shoal"
WEIGHT = 50
NODES_MAX = 64
"""A pod that names a thousand nodes helps no scheduler."""

_HOSTNAME = "kubernetes.io/hostname"
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

Pod = Mapping[str, Any]
Operation = dict[str, Any]


class Wanted(NamedTuple):
    """The data set that a pod asks for."""

    namespace: str
    name: str


def wanted(pod: Pod, namespace: str) -> Wanted | None:
    """From the pod's label; None where there is none. ValueError says what is wrong with it."""
    text = (pod.get("metadata", {}).get("labels") or {}).get(LABEL)
    if text is None:
        return None
    first, dot, second = str(text).partition(".")
    asked = Wanted(first, second) if dot else Wanted(namespace, first)
    if not all(_DNS_LABEL.fullmatch(part) for part in asked):
        raise ValueError(f"label {LABEL}: {text!r} is neither DATASET nor NAMESPACE.DATASET")
    return asked


def holders(store: Store, asked: Wanted) -> list[str]:
    """Host names of nodes that hold the data set, at most NODES_MAX: those with most of it; before anybody was asked
    (and on the replica that does not lead), nodes of its pool, of which every one holds its share."""
    dataset = store.datasets.get(asked)
    if dataset is None or dataset.spec is None or dataset.spec.pool not in store.pools:
        return []
    known = store.of_pool(dataset.spec.pool)
    if known.view is None:
        return []
    ready = [node.id for node in known.view.nodes if node.status == "ready"]
    held = {node: _cached_bytes(known.reports.get(node), dataset.name_on_nodes) for node in ready}
    if any(held.values()):
        ready = [node for node in ready if held[node]]
    spread = f"{dataset.uid}/".encode()
    ready.sort(key=lambda node: (-held[node], hashlib.sha256(spread + node.encode()).digest()))
    labels = (store.nodes[node].labels for node in ready[:NODES_MAX] if node in store.nodes)
    return sorted(name for found in labels if (name := found.get(_HOSTNAME)))


def operations(pod: Pod, asked: Wanted, nodes: Iterable[str]) -> tuple[list[Operation], list[str]]:
    """A JSON patch (empty: nothing to add), and warnings for whoever creates the pod."""
    spec = pod.get("spec", {})
    warnings: list[str] = []
    patch: list[Operation] = []
    volumes = spec.get("volumes") or []
    there = next((volume for volume in volumes if volume.get("name") == VOLUME), None)
    if there is not None and (there.get("csi") or {}).get("driver") != DRIVER:
        return [], [f"shoal: the pod has a volume {VOLUME!r} of another kind; nothing was added"]
    if there is None:
        attributes = {"dataset": f"{asked.namespace}/{asked.name}"}
        volume = {"name": VOLUME, "csi": {"driver": DRIVER, "readOnly": True, "volumeAttributes": attributes}}
        patch += _append("/spec/volumes", spec.get("volumes"), volume)
    for kind in ("initContainers", "containers"):
        for place, container in enumerate(spec.get(kind) or []):
            mounts = container.get("volumeMounts")
            if any(mount.get("name") == VOLUME for mount in mounts or []):
                continue
            if any(str(mount.get("mountPath")).rstrip("/") == MOUNT_PATH for mount in mounts or []):
                warnings.append(f"shoal: container {container.get('name')} has something else at {MOUNT_PATH}")
                continue
            mount = {"name": VOLUME, "mountPath": MOUNT_PATH, "readOnly": True}
            patch += _append(f"/spec/{kind}/{place}/volumeMounts", mounts, mount)
    annotations = pod.get("metadata", {}).get("annotations") or {}
    if ANNOTATION not in annotations:
        patch += _preference(spec.get("affinity"), list(nodes))
        patch += _annotation(annotations, f"{asked.namespace}.{asked.name}")
    return patch, warnings


def _preference(affinity: Mapping[str, Any] | None, nodes: list[str]) -> list[Operation]:
    if not nodes:
        return []
    term = {
        "weight": WEIGHT,
        "preference": {"matchExpressions": [{"key": _HOSTNAME, "operator": "In", "values": nodes}]},
    }
    patch: list[Operation] = []
    if affinity is None:
        patch.append({"op": "add", "path": "/spec/affinity", "value": {}})
    node_affinity = (affinity or {}).get("nodeAffinity")
    if node_affinity is None:
        patch.append({"op": "add", "path": "/spec/affinity/nodeAffinity", "value": {}})
    preferred = "preferredDuringSchedulingIgnoredDuringExecution"
    return patch + _append(f"/spec/affinity/nodeAffinity/{preferred}", (node_affinity or {}).get(preferred), term)


def _annotation(annotations: Mapping[str, Any], value: str) -> list[Operation]:
    if not annotations:
        return [{"op": "add", "path": "/metadata/annotations", "value": {ANNOTATION: value}}]
    return [{"op": "add", "path": f"/metadata/annotations/{ANNOTATION.replace('/', '~1')}", "value": value}]


def _append(path: str, existing: object, value: object) -> list[Operation]:
    if not existing:
        return [{"op": "add", "path": path, "value": [value]}]
    return [{"op": "add", "path": f"{path}/-", "value": value}]


def _cached_bytes(report: NodeReport | None, dataset: str) -> int:
    found = report.datasets.get(dataset) if report else None
    return found.cached_bytes if found else 0
