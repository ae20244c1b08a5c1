"""What was seen: the operator's copy of the part of the cluster that bears on pools.

Watches, the answers to our own writes, polls and the census all come in here, in any order and more than once; an older
version of an object never replaces a newer one. What is kept is trimmed: facts of nodes and pods, whole objects only of
what the operator itself applies (without the server's book-keeping). Whoever listens is told which keys to look at
when something changed that bears on them; this is `affected`, the one place that knows what depends on what.

No I/O and no clock in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from msgspec.structs import replace

from shoal_core.view import View
from shoal_operator import documents, facts, names, plan, reporting
from shoal_operator.model import (
    Dataset,
    DatasetTotals,
    Manifest,
    Node,
    NodeReport,
    Pod,
    Pool,
    Preload,
    Resource,
    State,
)
from shoal_operator.queueing import Key

K = TypeVar("K")
V = TypeVar("V")

Name = tuple[str, str]
"""Namespace (empty: of the cluster) and name."""


class Version(NamedTuple):
    """Which object, and how new."""

    uid: str
    number: int


@dataclass
class OfPool:
    """What was seen in the release's namespace, and of the nodes, for one pool."""

    pods: dict[str, Pod] = field(default_factory=dict[str, Pod])
    objects: dict[tuple[str, str], Manifest] = field(default_factory=dict[tuple[str, str], Manifest])
    state: State | None = None
    declared: frozenset[str] = frozenset()
    """Data sets in the state, as nodes call them."""
    view: View | None = None
    """In the state."""
    reports: dict[str, NodeReport] = field(default_factory=dict[str, NodeReport])
    totals: dict[str, DatasetTotals] = field(default_factory=dict[str, DatasetTotals])


class Store:
    """All that is known now. `listener` is told each key that is to be looked at because of a change."""

    def __init__(self, listener: Callable[[Key], None]) -> None:
        self._listener = listener
        self._versions: dict[str, dict[Name, Version]] = {}
        self.pools: dict[str, Pool] = {}
        self.datasets: dict[Name, Dataset] = {}
        self.preloads: dict[Name, Preload] = {}
        self.nodes: dict[str, Node] = {}
        self.pods_changes = 0
        """Rises whenever a pod or a pool changed: whoever made a list of them makes it anew then."""
        self._of_pool: dict[str, OfPool] = {}
        self._gone: dict[tuple[str, Name], int] = {}
        """The last versions of what went: the answer to a write of ours may come after the news that it is gone."""
        self._pool_of: dict[tuple[str, Name], str] = {}
        """Of what is in `_of_pool`: a deletion may come without labels."""

    def of_pool(self, pool: str) -> OfPool:
        return self._of_pool.setdefault(pool, OfPool())

    def versions(self, kind: str) -> Mapping[Name, Version]:
        return self._versions.get(kind, {})

    def datasets_of(self, pool: str) -> tuple[Dataset, ...]:
        return tuple(item for item in self.datasets.values() if plan.pool_of_dataset(item) == pool)

    def preloads_of(self, pool: str) -> tuple[Preload, ...]:
        return tuple(item for item in self.preloads.values() if self.pool_of_preload(item) == pool)

    def dataset_of(self, preload: Preload) -> Dataset | None:
        return self.datasets.get((preload.namespace, preload.spec.dataset)) if preload.spec else None

    def pool_of_preload(self, preload: Preload) -> str:
        dataset = self.dataset_of(preload)
        return plan.pool_of_dataset(dataset) if dataset else ""

    def see(self, kind: str, manifest: Manifest) -> None:
        """An object as it is, or was a moment ago."""
        metadata = manifest["metadata"]
        name = (str(metadata.get("namespace") or ""), str(metadata["name"]))
        version = Version(str(metadata.get("uid", "")), number_of(metadata))
        known = self._versions.setdefault(kind, {}).get(name)
        newest = max(known.number if known else 0, self._gone.get((kind, name), 0))
        if version.number and version.number <= newest:
            return
        self._versions[kind][name] = version
        self._put(kind, name, manifest)

    def gone(self, kind: str, name: Name, uid: str, number: int = 0) -> None:
        """The object `uid` of that name is no more. One of the same name that came after it stays."""
        known = self._versions.get(kind, {}).get(name)
        if known is None or known.uid != uid:
            return
        del self._versions[kind][name]
        self._gone[kind, name] = max(number, known.number)
        while len(self._gone) > _GONE_MAX:
            del self._gone[next(iter(self._gone))]
        self._put(kind, name, None)

    def report(self, pool: str, reports: Iterable[NodeReport]) -> None:
        """What nodes said of themselves in one round of polls."""
        known = self.of_pool(pool)
        changed = False
        for item in reports:
            before = known.reports.get(item.node)
            known.reports[item.node] = item
            changed |= before is None or replace(before, at_s=item.at_s) != item
        if changed:
            self._reports_changed(pool)

    def _put(self, kind: str, name: Name, manifest: Manifest | None) -> None:
        """Converts, keeps, and tells. None: it is gone."""
        match kind:
            case "CachePool":
                self._put_pool(name[1], facts.pool(manifest) if manifest else None)
            case "Dataset":
                before = self.datasets.get(name)
                after = _keep(self.datasets, name, facts.dataset(manifest) if manifest else None)
                self._tell(self._affected_by_dataset(name, before, after))
            case "Preload":
                before = self.preloads.get(name)
                after = _keep(self.preloads, name, facts.preload(manifest) if manifest else None)
                self._tell(self._affected_by_preload(name, before, after))
            case "Node":
                before = self.nodes.get(name[1])
                after = _keep(self.nodes, name[1], facts.node(manifest) if manifest else None)
                if before != after:
                    self._tell(Key("CachePool", "", pool) for pool in self.pools)
            case _:
                self._put_object(kind, name, manifest)

    def _put_pool(self, name: str, after: Pool | None) -> None:
        before = self.pools.get(name)
        _keep(self.pools, name, after)
        self.pods_changes += before != after
        self._sweep(name)
        if _same_but_status(before, after):
            return
        # Another pool may want the same path, so all of them look again; its data sets wait for it or lost it.
        self._tell(Key("CachePool", "", pool) for pool in {name, *self.pools})
        self._tell(Key("Dataset", item.namespace, item.name) for item in self.datasets_of(name))

    def _put_object(self, kind: str, name: Name, manifest: Manifest | None) -> None:
        before = self._pool_of.get((kind, name))
        after = facts.pool_of(manifest) if manifest else None
        for pool in {before, after} - {None, ""}:
            assert pool is not None
            self._put_of_pool(pool, kind, name[1], manifest if pool == after else None)
        if after:
            self._pool_of[kind, name] = after
        else:
            self._pool_of.pop((kind, name), None)

    def _put_of_pool(self, pool: str, kind: str, name: str, manifest: Manifest | None) -> None:
        known = self.of_pool(pool)
        if kind == "Pod":
            before = known.pods.get(name)
            after = _keep(known.pods, name, facts.pod(manifest) if manifest else None)
            if before is not None and (after is None or after.uid != before.uid):
                known.reports.pop(before.node, None)
            changed = before != after
            self.pods_changes += changed
        elif kind == "ConfigMap" and name == names.of_pool(pool):
            before_state, known.state = known.state, facts.state(manifest) if manifest else None
            before_declared, known.declared = known.declared, documents.declared(known.state)
            known.view = documents.view_of(known.state)
            self._tell(Key("Dataset", *item.split(".", 1)) for item in before_declared ^ known.declared)
            self._tell(self._preloads_affected_by_state(pool, before_state, known.state))
            changed = True
        else:
            key = (kind, name)
            trimmed = _trimmed(manifest) if manifest else None
            changed = known.objects.get(key) != trimmed
            _keep(known.objects, key, trimmed)
        self._sweep(pool)
        if changed:
            self._tell([Key("CachePool", "", pool)])

    def _sweep(self, pool: str) -> None:
        """Nothing is kept of a pool that is gone with all that was made for it."""
        known = self._of_pool.get(pool)
        if known is not None and pool not in self.pools and not (known.pods or known.objects or known.state):
            del self._of_pool[pool]

    def _affected_by_dataset(self, name: Name, before: Dataset | None, after: Dataset | None) -> Iterator[Key]:
        if not _same_but_status(before, after):
            yield Key("Dataset", *name)
            for item in (before, after):
                if item is not None and (pool := plan.pool_of_dataset(item)) in self.pools:
                    yield Key("CachePool", "", pool)
        if before != after:
            for preload in self.preloads.values():
                if preload.namespace == name[0] and preload.spec and preload.spec.dataset == name[1]:
                    yield Key("Preload", preload.namespace, preload.name)

    def _affected_by_preload(self, name: Name, before: Preload | None, after: Preload | None) -> Iterator[Key]:
        if not _same_but_status(before, after):
            yield Key("Preload", *name)
        elif _run(before) == _run(after):
            return
        for item in (before, after):
            if item is not None and (pool := self.pool_of_preload(item)) in self.pools:
                yield Key("CachePool", "", pool)

    def _preloads_affected_by_state(self, pool: str, before: State | None, after: State | None) -> Iterator[Key]:
        if not (before and after and all(before.data.get(key) == after.data.get(key) for key in _FOR_PRELOADS)):
            for preload in self.preloads_of(pool):
                yield Key("Preload", preload.namespace, preload.name)

    def _reports_changed(self, pool: str) -> None:
        known = self.of_pool(pool)
        before, known.totals = known.totals, reporting.dataset_totals(known.reports.values())
        self._tell([Key("CachePool", "", pool)])
        for dataset in self.datasets_of(pool):
            on_nodes = dataset.name_on_nodes
            if before.get(on_nodes) != known.totals.get(on_nodes):
                self._tell([Key("Dataset", dataset.namespace, dataset.name)])
        for preload in self.preloads_of(pool):
            self._tell([Key("Preload", preload.namespace, preload.name)])

    def _tell(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._listener(key)


_GONE_MAX = 512

_BOOK_KEEPING = ("managedFields", "resourceVersion", "generation")

_FOR_PRELOADS = ("view.json", "preloads.json")


def number_of(metadata: Mapping[str, Any]) -> int:
    """Resource versions are numbers that rise, which Kubernetes promises; 0 where a server writes something else."""
    text = str(metadata.get("resourceVersion") or "")
    return int(text) if text.isdecimal() else 0


def _keep(where: dict[K, V], key: K, value: V | None) -> V | None:
    if value is None:
        where.pop(key, None)
    else:
        where[key] = value
    return value


def _same_but_status(before: Resource | None, after: Resource | None) -> bool:
    """Statuses are our own words; hearing them again is no news."""
    if before is None or after is None:
        return before is after
    return replace(before, status={}) == replace(after, status={})


def _run(preload: Preload | None) -> tuple[object, object]:
    return (preload.status.get("run"), preload.status.get("phase")) if preload else (None, None)


def _trimmed(manifest: Manifest) -> Manifest:
    """Without what the server adds for itself: managedFields alone doubles an object, and a version or status of an
    object that is otherwise the same is no news."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key not in _BOOK_KEEPING}
    return {**{key: value for key, value in manifest.items() if key != "status"}, "metadata": metadata}
