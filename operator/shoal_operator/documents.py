"""The pool state: what the operator tells the nodes of a pool, as one ConfigMap that each of them watches.

view.json: who is in the pool. datasets.json: what it serves. preloads.json: what is to be brought now. operator.json:
what the operator itself must know after a restart; nodes leave it aside. All four are written together, compared and
swapped on the resourceVersion, so that two operators cannot take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from shoal_core import view
from shoal_core.errors import ConfigError
from shoal_operator import names, scheduling
from shoal_operator.desired import owner
from shoal_operator.model import Dataset, Manifest, Pool, Preload, Settings, State, Update

VIEW, DATASETS, PRELOADS, OPERATOR = "view.json", "datasets.json", "preloads.json", "operator.json"

_ASK_AGAIN_S = {True: 60.0, False: 10.0}


class _Notes(msgspec.Struct, frozen=True):
    """operator.json."""

    update: Update | None = None


def view_of(state: State | None) -> view.View | None:
    """None: there is none, or somebody wrote what is none; then the next begins anew, above what the nodes have."""
    return _view(state.data.get(VIEW, "")) if state is not None else None


def update_of(state: State | None) -> Update | None:
    """The step of the update that is under way."""
    try:
        return msgspec.convert(_json(state, OPERATOR), _Notes).update
    except msgspec.ValidationError:
        return None


def declared(state: State | None) -> frozenset[str]:
    """Names on nodes of the data sets that the nodes are told to serve."""
    return frozenset(_json(state, DATASETS))


def write(
    pool: Pool, settings: Settings, state: State | None, new_view: view.View, update: Update | None,
    datasets: Iterable[Dataset], preloads: Iterable[Preload],
) -> Manifest | None:  # fmt: skip
    """The ConfigMap as it is to be; None: it is so already."""
    datasets = [dataset for dataset in datasets if dataset.spec is not None and dataset.deleted_s is None]
    data = {
        VIEW: _text(msgspec.to_builtins(new_view)),
        DATASETS: _text({dataset.name_on_nodes: _dataset(dataset) for dataset in datasets}),
        PRELOADS: _text(_preloads(datasets, preloads)),
        OPERATOR: _text(msgspec.to_builtins(_Notes(update))),
    }
    if state is not None and dict(state.data) == data:
        return None
    version = {"resourceVersion": state.resource_version} if state is not None else {}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.of_pool(pool.name),
            "namespace": settings.namespace,
            "labels": names.pod_labels(pool.name),
            "ownerReferences": [owner(pool)],
            **version,
        },
        "data": data,
    }


def secret_question(dataset: Dataset, settings: Settings) -> Manifest | None:
    """The SubjectAccessReview that says whether the pool's nodes may read the data set's secret; None: it has none."""
    if dataset.spec is None or dataset.spec.source.secret_ref is None:
        return None
    account = f"system:serviceaccount:{settings.namespace}:{names.of_pool(dataset.spec.pool)}"
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": account,
            "groups": [
                "system:serviceaccounts", f"system:serviceaccounts:{settings.namespace}", "system:authenticated",
            ],
            "resourceAttributes": {
                "namespace": dataset.namespace,
                "verb": "get",
                "resource": "secrets",
                "name": dataset.spec.source.secret_ref.name,
            },
        },
    }  # fmt: skip


def ask_again_s(allowed: bool) -> float:
    """How long an answer holds: a grant is to show soon, one that was taken back is told by the nodes as well."""
    return _ASK_AGAIN_S[allowed]


@lru_cache(maxsize=32)
def _view(text: str) -> view.View | None:
    """Kept, as it is asked for much more often than it changes, and long where a pool is large."""
    try:
        given = msgspec.json.decode(text, type=view.View)
        return view.make(given.epoch, given.nodes, given.replica_count) if given.epoch else None
    except (msgspec.DecodeError, ConfigError):
        return None


def _dataset(dataset: Dataset) -> dict[str, Any]:
    spec = dataset.spec
    assert spec is not None
    secret = spec.source.secret_ref
    told: dict[str, Any] = {
        "url": spec.source.uri,
        "endpoint": spec.source.endpoint,
        "region": spec.source.region,
        "secret": None if secret is None else {"namespace": dataset.namespace, "name": secret.name},
        "eviction": spec.eviction.lower(),
        "quota_bytes": None if spec.quota_bytes is None else int(spec.quota_bytes),
        "ttl_s": spec.ttl_s,
        "replicas": spec.replicas,
        "include": list(spec.source.include),
        "exclude": list(spec.source.exclude),
        "refresh_s": spec.version.refresh_s,
        "generation": dataset.generation,
    }
    return {name: value for name, value in told.items() if value not in (None, "", [])}


def _preloads(datasets: Iterable[Dataset], preloads: Iterable[Preload]) -> dict[str, Any]:
    known = {dataset.name_on_nodes for dataset in datasets}
    tasks: dict[str, Any] = {}
    for preload in preloads:
        spec, run = preload.spec, scheduling.running(preload)
        if spec is None or run is None:
            continue
        name = names.on_nodes(preload.namespace, spec.dataset)
        if name in known:
            tasks[scheduling.task_id(preload, run)] = {
                "dataset": name,
                "paths": list(spec.paths),
                "bytes_per_s": None if spec.bytes_per_s is None else int(spec.bytes_per_s),
                "verify": spec.verify,
            }
    return tasks


def _json(state: State | None, name: str) -> Mapping[str, Any]:
    """One of the documents; empty where there is none, or where it is no JSON."""
    try:
        value = msgspec.json.decode((state.data if state is not None else {}).get(name, "{}"))
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()
