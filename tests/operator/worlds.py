"""Pools, nodes, pods and reports as tests want them, with defaults for what they do not care about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from shoal_core import view
from shoal_operator import desired, documents, facts, moments
from shoal_operator.model import (
    Dataset,
    DatasetReport,
    Manifest,
    Node,
    NodeReport,
    Pod,
    Pool,
    PoolObserved,
    Preload,
    PreloadReport,
    Settings,
    State,
)

NOW_S = 1_764_000_000.0
SETTINGS = Settings("shoal-system", "registry.example/shoal:1", "0.2.0")
GIB = 1 << 30


def pool(name: str = "p", *, status: Any = None, meta: Any = None, nvme: Any = True, **spec: Any) -> Pool:
    disk = {"nvme": [{"path": "/mnt/cache", "capacity": "100Gi"}] if nvme is True else nvme or []}
    return facts.pool(custom(name, {"dram": {"budget": "1Gi"}, **disk, **spec}, status, meta))


def dataset(name: str = "images", *, status: Any = None, meta: Any = None, **spec: Any) -> Dataset:
    whole = {"pool": "p", "source": {"uri": "s3://bucket/images"}, **spec}
    return facts.dataset(custom(name, whole, status, {"namespace": "team-a", **(meta or {})}))


def preload(name: str = "warm", *, status: Any = None, meta: Any = None, **spec: Any) -> Preload:
    whole = {"dataset": "images", **spec}
    return facts.preload(custom(name, whole, status, {"namespace": "team-a", **(meta or {})}))


def custom(name: str, spec: Any, status: Any = None, meta: Any = None) -> Manifest:
    """A resource as the API server gives it."""
    metadata = {
        "name": name,
        "uid": f"uid-{name}",
        "generation": 1,
        "creationTimestamp": moments.shown(NOW_S - 3600),
        **(meta or {}),
    }
    return {"metadata": metadata, "spec": spec, "status": status or {}}


def being_deleted(finalizer: str, ago_s: float = 1.0) -> dict[str, Any]:
    return {"deletionTimestamp": moments.shown(NOW_S - ago_s), "finalizers": [finalizer, "example.org/other"]}


def node(name: str, ready: bool = True, *, since_s: float = NOW_S - 3600, **fields: Any) -> Node:
    return Node(name, ready, since_s, **fields)


def nodes(*names: str) -> dict[str, Node]:
    return {name: node(name) for name in names}


def up(node_name: str, template_hash: str = "new", **fields: Any) -> Pod:
    """A pod that serves."""
    whole: dict[str, Any] = {
        "name": f"shoal-p-{node_name}",
        "uid": f"pod-{node_name}",
        "address": f"10.0.0.{node_name[-1:] or 9}",
        "created_s": NOW_S - 1800,
        "ready_since_s": NOW_S - 1700,
        "running": True,
        "ready": True,
        "template_hash": template_hash,
        **fields,
    }
    return Pod(node=node_name, **whole)


def down(node_name: str, reason: str = "", message: str = "", **fields: Any) -> Pod:
    """A pod whose container does not run."""
    whole: dict[str, Any] = {"running": False, "ready": False, "reason": reason, "message": message, **fields}
    return up(node_name, **whole)


def pods(*every: Pod) -> dict[str, Pod]:
    return {pod.node: pod for pod in every}


def report(node_name: str, at_s: float = NOW_S, **fields: Any) -> NodeReport:
    return NodeReport(node_name, at_s, **fields)


def reports(*every: NodeReport) -> dict[str, NodeReport]:
    return {one.node: one for one in every}


def scanned(manifest: str = "m1", **fields: Any) -> DatasetReport:
    whole: dict[str, Any] = {"objects": 4, "bytes": 1000, "scanned_at_s": NOW_S - 5, **fields}
    return DatasetReport(manifest=manifest, **whole)


def done(owned: int = 500, epoch: int = 1, **fields: Any) -> PreloadReport:
    whole: dict[str, Any] = {
        "objects_scanned": 2,
        "objects_done": 2,
        "bytes_scanned": owned,
        "bytes_done": owned,
        "bytes_verified": owned,
        **fields,
    }
    return PreloadReport("done", epoch=epoch, bytes_owned=owned, **whole)


def view_of(*members: str, epoch: int = 1, status: view.NodeStatus = "ready", replicas: int = 1) -> view.View:
    return view.make(
        epoch, [view.Node(name, (f"tcp:10.0.0.{name[-1]}:7440",), GIB, status=status) for name in members], replicas
    )


def state(
    of: Pool, known: view.View, update: Any = None, datasets: Iterable[Dataset] = (), preloads: Iterable[Preload] = ()
) -> State:
    """The pool state that an operator wrote."""
    written = documents.write(of, SETTINGS, None, known, update, datasets, preloads)
    assert written is not None
    return State("41", written["data"])


def applied(of: Pool) -> dict[tuple[str, str], Manifest]:
    """The pool's objects as the API server has them."""
    assert of.spec is not None
    return {(one["kind"], one["metadata"]["name"]): one for one in desired.objects(of, of.spec, SETTINGS)}


def hash_of(of: Pool) -> str:
    assert of.spec is not None
    return desired.template_hash(of, of.spec, SETTINGS)


def observed(of: Pool, **fields: Any) -> PoolObserved:
    """A pool whose objects are applied."""
    whole: dict[str, Any] = {"now_s": NOW_S, "settings": SETTINGS, "pools": (of,), "objects": applied(of), **fields}
    return PoolObserved(pool=of, **whole)


def condition(status: Any, kind: str) -> Any:
    return next(one for one in status["conditions"] if one["type"] == kind)


def standing(status: Any) -> str:
    """Ready's reason behind the letters of those of R(eady), c (Reconciling), s (Stalled) that are True."""
    letters = (("R", "Ready"), ("c", "Reconciling"), ("s", "Stalled"))
    said = "".join(letter for letter, kind in letters if condition(status, kind)["status"] == "True")
    return f"{said or '-'} {condition(status, 'Ready')['reason']}"


def changed(one: Any, **fields: Any) -> Any:
    """The same with other fields."""
    return msgspec.structs.replace(one, **fields)
