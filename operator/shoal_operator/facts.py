"""From what the API server and the nodes say, as plain data, to the facts that decisions are made from.

Called when something was heard, not when something is decided: a pool of a thousand nodes is decided on often.
Nothing here raises because of what is in the data. What is missing or of another type than expected counts as not
said: a node may be of an older or newer version than the operator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import msgspec

from shoal_core.errors import ConfigError
from shoal_core.names import is_label
from shoal_operator import moments, names, specs
from shoal_operator.model import (
    Dataset,
    DatasetReport,
    Manifest,
    Node,
    NodeReport,
    Pod,
    Pool,
    Preload,
    PreloadReport,
    Resource,
    State,
)

R = TypeVar("R", bound=Resource)

ERRORS_MAX = 5
"""Messages of one preload on one node; more says no more."""


def pool(resource: Manifest) -> Pool:
    return _resource(Pool, specs.PoolSpec, resource)


def dataset(resource: Manifest) -> Dataset:
    return _resource(Dataset, specs.DatasetSpec, resource)


def preload(resource: Manifest) -> Preload:
    return _resource(Preload, specs.PreloadSpec, resource)


def pool_of(namespaced: Manifest) -> str | None:
    """The pool that an object of the operator's belongs to."""
    return _text(_table(_table(namespaced, "metadata"), "labels"), names.POOL_LABEL) or None


def state(config_map: Manifest) -> State:
    metadata = _table(config_map, "metadata")
    return State(_text(metadata, "resourceVersion"), _texts(_table(config_map, "data")))


def node(found: Manifest) -> Node:
    metadata, spec = _table(found, "metadata"), _table(found, "spec")
    ready = _condition(found, "Ready")
    return Node(
        name=_text(metadata, "name"),
        ready=_text(ready, "status") == "True",
        ready_since_s=moments.parse(ready.get("lastTransitionTime")) or 0.0,
        unschedulable=spec.get("unschedulable") is True,
        labels=_texts(_table(metadata, "labels")),
        taints=tuple(_texts(taint) for taint in _tables(spec, "taints")),
    )


def pod(found: Manifest) -> Pod:
    metadata, status = _table(found, "metadata"), _table(found, "status")
    ready = _condition(found, "Ready")
    containers = _tables(status, "containerStatuses")
    running = bool(containers) and all(_table(container, "state").get("running") for container in containers)
    reason, message = _why_not(found, containers)
    specified = _tables(_table(found, "spec"), "containers")
    images = [_text(container, "image") for container in specified]
    ports = {
        _text(port, "name"): _count(port, "containerPort") for each in specified for port in _tables(each, "ports")
    }
    annotations = _table(metadata, "annotations")
    capacity = _text(annotations, names.CAPACITY)
    created_s = moments.parse(metadata.get("creationTimestamp")) or 0.0
    return Pod(
        name=_text(metadata, "name"),
        uid=_text(metadata, "uid"),
        node=_text(_table(found, "spec"), "nodeName"),
        address=_text(status, "podIP"),
        created_s=created_s,
        running=running,
        ready=_text(ready, "status") == "True",
        ready_since_s=moments.parse(ready.get("lastTransitionTime")) or created_s,
        terminating=bool(metadata.get("deletionTimestamp")),
        reason=reason,
        message=message,
        template_hash=_text(annotations, names.TEMPLATE_HASH),
        image=images[0] if images else "",
        capacity_bytes=int(capacity) if capacity.isascii() and capacity.isdecimal() else None,
        data_port=ports.get(names.DATA_PORT_NAME),
        control_port=ports.get(names.CONTROL_PORT_NAME),
    )


def report(node_name: str, status: Mapping[str, Any], drain: Mapping[str, Any] | None, at_s: float) -> NodeReport:
    """From the JSON of /status, and that of /drain where the node says that it drains."""
    tiers = [_table(_table(status, "tiers"), tier) for tier in ("dram", "disk")]
    cluster = _table(status, "cluster")
    hits, misses = _reads(status)
    return NodeReport(
        node=node_name,
        at_s=at_s,
        version=_text(status, "version"),
        epoch=_count(status, "view_epoch"),
        view_error=_text(cluster, "view_error"),
        draining=status.get("draining") is True,
        drained=drain is not None and _drained(drain),
        clients=_count(status, "clients"),
        leases=_count(status, "leases"),
        used_bytes=max(_count(tier, "used_bytes") for tier in tiers),
        hits=hits,
        misses=misses,
        pull_queue=_count(status, "pull_queue"),
        fallbacks={kind: _count(_table(status, "fallbacks"), kind) for kind in _table(status, "fallbacks")},
        datasets={name: _dataset_report(value) for name, value in _inner_tables(status, "datasets")},
        preloads={name: _preload_report(value) for name, value in _inner_tables(status, "preloads")},
    )


def _resource(kind: type[R], spec_kind: type[msgspec.Struct], found: Manifest) -> R:
    metadata = _table(found, "metadata")
    raw = found.get("spec")
    spec, error = None, ""
    try:
        spec = specs.build(spec_kind, raw)
    except ConfigError as wrong:
        error = str(wrong)
    if kind is not Preload and not is_label(_text(metadata, "name")):
        spec, error = None, "metadata.name: a name is a DNS label: a-z, 0-9 and inner -, at most 63 characters"
    fields: dict[str, Any] = {
        "name": _text(metadata, "name"),
        "namespace": _text(metadata, "namespace"),
        "uid": _text(metadata, "uid"),
        "generation": _count(metadata, "generation"),
        "created_s": moments.parse(metadata.get("creationTimestamp")) or 0.0,
        "deleted_s": moments.parse(metadata.get("deletionTimestamp")),
        "finalizers": tuple(str(name) for name in _list(metadata, "finalizers")),
        "status": _table(found, "status"),
        "error": error,
        "unknown": specs.unknown(spec_kind, raw),
        "spec": spec,
    }
    return kind(**fields)


def _condition(found: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    conditions = _tables(_table(found, "status"), "conditions")
    return next((condition for condition in conditions if condition.get("type") == kind), {})


def _why_not(found: Mapping[str, Any], containers: list[Mapping[str, Any]]) -> tuple[str, str]:
    """Why a pod does not run: its container's word, else the scheduler's, else that of its last end."""
    status = _table(found, "status")
    for container in containers:
        waiting = _table(_table(container, "state"), "waiting")
        ended = _table(_table(container, "lastState"), "terminated") or _table(_table(container, "state"), "terminated")
        if waiting or ended:
            reason = _text(waiting, "reason") or _text(ended, "reason")
            # What the program said last tells more than that it is restarted once more.
            return reason, _text(ended, "message") or _text(waiting, "message") or _exit(ended)
    scheduled = _condition(found, "PodScheduled")
    if scheduled.get("status") == "False":
        return _text(scheduled, "reason"), _text(scheduled, "message")
    return _text(status, "reason"), _text(status, "message")


def _exit(ended: Mapping[str, Any]) -> str:
    return f"it ended with exit code {ended['exitCode']}" if "exitCode" in ended else ""


def _drained(progress: Mapping[str, Any]) -> bool:
    handed = _table(progress, "handover")
    return progress.get("refusing") is True and (handed.get("draining") is not True or handed.get("done") is True)


def _reads(status: Mapping[str, Any]) -> tuple[int, int]:
    """Hits and misses: of the data sets where the node counts them, and what it counts as a whole otherwise."""
    hits = _count(status, "granted_hits")
    misses = 0
    for _, sources in _inner_tables(status, "reads"):
        hits += _count(sources, "dram") + _count(sources, "disk")
        misses += _count(sources, "origin")
    return hits, misses


def _dataset_report(said: Mapping[str, Any]) -> DatasetReport:
    error = _table(said, "error")
    return DatasetReport(
        manifest=_text(said, "manifest"),
        generation=_count(said, "generation"),
        objects=_count(said, "objects"),
        bytes=_count(said, "bytes"),
        scanned_at_s=_number(said, "scanned_at_s"),
        error_code=_text(error, "code"),
        error_message=_text(error, "message"),
        cached_bytes=_count(said, "cached_bytes"),
        hits=_count(said, "hits"),
        misses=_count(said, "misses"),
    )


def _preload_report(said: Mapping[str, Any]) -> PreloadReport:
    numbers = {name: _count(said, name) for name in PreloadReport.__struct_fields__ if name not in ("state", "errors")}
    errors = tuple(_line(error) for error in _list(said, "errors")[:ERRORS_MAX])
    return PreloadReport(state=_text(said, "state") or "listing", errors=errors, **numbers)


def _line(error: object) -> str:
    """An error of a node: text, or a table with a code and a message."""
    if isinstance(error, Mapping):
        said = cast("Mapping[str, Any]", error)
        return ": ".join(part for part in (_text(said, "code"), _text(said, "message")) if part)
    return str(error)


# What plain data holds, whatever it holds


def _table(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _list(data: Mapping[str, Any], name: str) -> list[Any]:
    value = data.get(name)
    return cast("list[Any]", value) if isinstance(value, list) else []


def _tables(data: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return [cast("Mapping[str, Any]", value) for value in _list(data, name) if isinstance(value, Mapping)]


def _inner_tables(data: Mapping[str, Any], name: str) -> list[tuple[str, Mapping[str, Any]]]:
    table = _table(data, name)
    return [(key, _table(table, key)) for key in table]


def _texts(data: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in data.items() if isinstance(value, str)}


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    return value if isinstance(value, str) else ""


def _number(data: Mapping[str, Any], name: str) -> float:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return float(value)


def _count(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else int(_number(data, name))
