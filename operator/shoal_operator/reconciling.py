"""One look at one object: what is known of it, what is decided about that, and the carrying out.

Nothing is decided here. `plan` is asked, and its answer carried out step by step, in its order. A step that fails ends
the look: the queue comes back to it, and everything is planned anew from what is then known. When somebody else was
faster (a conflict) the object is read again first. What the API server answers goes into the store at once, so that the
next look does not decide on what this one has changed.

What is remembered between looks (when a status was last patched, the plans' memory) is lost with the process, and that
does no harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shoal_operator import applying, names, plan
from shoal_operator.api import Api, ApiError
from shoal_operator.events import Recorder
from shoal_operator.kinds import KINDS
from shoal_operator.metrics import Metrics
from shoal_operator.model import (
    Dataset,
    DatasetObserved,
    DatasetTotals,
    Event,
    Manifest,
    Pool,
    PoolMemory,
    PoolObserved,
    PoolPlan,
    PreloadMemory,
    PreloadObserved,
    Resource,
    Settings,
)
from shoal_operator.observing import Store
from shoal_operator.polling import Doors
from shoal_operator.pool_keys import Keys
from shoal_operator.queueing import Key
from shoal_operator.secret_access import SecretAccess

_CONFLICT_AGAIN_S = 0.1
_UNANSWERED_AGAIN_S = 5.0


@dataclass
class _Remembered:
    """Of what was reconciled, by its key."""

    patched_s: dict[Key, float] = field(default_factory=dict[Key, float])
    pools: dict[str, PoolMemory] = field(default_factory=dict[str, PoolMemory])
    preloads: dict[Key, PreloadMemory] = field(default_factory=dict[Key, PreloadMemory])


@dataclass
class Reconciler:
    """Everything a look needs."""

    api: Api
    settings: Settings
    store: Store
    keys: Keys
    access: SecretAccess
    doors: Doors
    recorder: Recorder
    metrics: Metrics
    wall_s: Callable[[], float] = time.time
    _remembered: _Remembered = field(default_factory=_Remembered)

    async def reconcile(self, key: Key) -> float | None:
        """Look at `key`; answers in how many seconds to look again if nothing happens."""
        try:
            match key.kind:
                case "CachePool":
                    return await self._pool(key)
                case "Dataset":
                    return await self._dataset(key)
                case "Preload":
                    return await self._preload(key)
                case _:
                    raise AssertionError(f"nobody puts {key} into the queue")
        except ApiError as error:
            self.metrics.api_errors.labels(error.reason or str(error.status)).inc()
            raise

    async def _pool(self, key: Key) -> float | None:
        pool = self.store.pools.get(key.name)
        if pool is None:
            self._forget(key)
            return None
        known = self.store.of_pool(pool.name)
        decided = plan.pool(
            PoolObserved(
                now_s=self.wall_s(),
                settings=self.settings,
                pool=pool,
                pools=tuple(self.store.pools.values()),
                nodes=self.store.nodes,
                pods=tuple(known.pods.values()),
                objects=known.objects,
                has_key=await self.keys.get(pool.name) is not None,
                state=known.state,
                datasets=self.store.datasets_of(pool.name),
                preloads=self.store.preloads_of(pool.name),
                reports=known.reports,
                patched_s=self._remembered.patched_s.get(key),
                memory=self._remembered.pools.get(pool.name, PoolMemory()),
            )
        )
        if not await self._finalizers(key, pool, decided.finalizers):
            return _CONFLICT_AGAIN_S
        if not await self._objects(key, pool, decided):
            return _CONFLICT_AGAIN_S
        self.doors.order(pool.name, decided.drain, decided.stop_drain)
        for name, uid in decided.delete_pods:
            await applying.delete(self.api, "Pod", self.settings.namespace, name, uid)
        await self._say(key, pool, decided.status, decided.events)
        self._remembered.pools[pool.name] = decided.memory
        self.metrics.of_pool(pool.name, decided.view, known.reports.values())
        return decided.again_in_s

    async def _objects(self, key: Key, pool: Pool, decided: PoolPlan) -> bool:
        """The pool's key, its objects and its state; False where the state was written by somebody else meanwhile."""
        if decided.make_key:
            await self.keys.make(pool)
        for manifest in decided.apply:
            try:
                self.store.see(manifest["kind"], await applying.apply(self.api, manifest))
            except ApiError as error:
                if 400 <= error.status < 500:  # not a matter of time: a right, a quota or a policy is in the way
                    what = f"{manifest['kind']} {manifest['metadata']['name']}"
                    self.recorder.record(key.kind, pool, Event("Warning", "ApplyFailed", f"{what}: {error.message}"))
                raise
        if decided.write_state is None:
            return True
        try:
            self.store.see("ConfigMap", await applying.write_state(self.api, decided.write_state))
        except ApiError as error:
            if not error.conflict:
                raise
            await self._read_again("ConfigMap", self.settings.namespace, names.of_pool(pool.name))
            return False
        return True

    async def _dataset(self, key: Key) -> float | None:
        dataset = self.store.datasets.get((key.namespace, key.name))
        if dataset is None:
            self._forget(key)
            return None
        allowed, ask_again_s = await self._secret_allowed(dataset)
        pool_name = plan.pool_of_dataset(dataset)
        known = self.store.of_pool(pool_name) if pool_name in self.store.pools else None
        decided = plan.dataset(
            DatasetObserved(
                now_s=self.wall_s(),
                settings=self.settings,
                dataset=dataset,
                pool=self.store.pools.get(pool_name),
                declared=known is not None and dataset.name_on_nodes in known.declared,
                totals=known.totals.get(dataset.name_on_nodes, DatasetTotals()) if known else DatasetTotals(),
                secret_allowed=allowed,
                patched_s=self._remembered.patched_s.get(key),
            )
        )
        if not await self._finalizers(key, dataset, decided.finalizers):
            return _CONFLICT_AGAIN_S
        await self._say(key, dataset, decided.status, decided.events)
        return _soonest(decided.again_in_s, ask_again_s)

    async def _secret_allowed(self, dataset: Dataset) -> tuple[bool | None, float | None]:
        """And in how many seconds to ask, where nobody answered: the rest of the status is said all the same."""
        try:
            return await self.access.allowed(dataset), None
        except ApiError:
            return None, _UNANSWERED_AGAIN_S

    async def _preload(self, key: Key) -> float | None:
        preload = self.store.preloads.get((key.namespace, key.name))
        if preload is None:
            self._forget(key)
            return None
        pool_name = self.store.pool_of_preload(preload)
        known = self.store.of_pool(pool_name) if pool_name in self.store.pools else None
        decided = plan.preload(
            PreloadObserved(
                now_s=self.wall_s(),
                preload=preload,
                dataset=self.store.dataset_of(preload),
                pool=self.store.pools.get(pool_name),
                view=known.view if known else None,
                reports=known.reports if known else {},
                patched_s=self._remembered.patched_s.get(key),
                memory=self._remembered.preloads.get(key, PreloadMemory()),
                version=self.settings.version,
            )
        )
        if decided.delete:
            await applying.delete(self.api, key.kind, key.namespace, key.name, preload.uid)
        else:
            await self._say(key, preload, decided.status, decided.events)
        self._remembered.preloads[key] = decided.memory
        return decided.again_in_s

    async def _finalizers(self, key: Key, about: Resource, wanted: tuple[str, ...] | None) -> bool:
        """False where the object changed meanwhile."""
        if wanted is None:
            return True
        version = self.store.versions(key.kind)[key.namespace, key.name]
        try:
            answer = await applying.set_finalizers(
                self.api, key.kind, key.namespace, about.name, wanted, str(version.number)
            )
        except ApiError as error:
            if not error.conflict:
                raise
            await self._read_again(key.kind, key.namespace, about.name)
            return False
        if answer is not None and (wanted or about.deleted_s is None):  # else it is gone now
            self.store.see(key.kind, answer)
        return True

    async def _say(self, key: Key, about: Resource, status: Manifest | None, events: Iterable[Event]) -> None:
        if status is not None:
            answer = await applying.apply_status(self.api, key.kind, key.namespace, key.name, status)
            self._remembered.patched_s[key] = self.wall_s()
            self.metrics.status_patches.labels(key.kind).inc()
            if answer is not None:
                self.store.see(key.kind, answer)
        for event in events:
            self.recorder.record(key.kind, about, event)

    async def _read_again(self, kind: str, namespace: str, name: str) -> None:
        try:
            self.store.see(kind, await self.api.json("GET", KINDS[kind].path(namespace, name)))
        except ApiError as error:
            if not error.not_found:
                raise

    def _forget(self, key: Key) -> None:
        self._remembered.patched_s.pop(key, None)
        self._remembered.preloads.pop(key, None)
        if key.kind == "CachePool":
            self._remembered.pools.pop(key.name, None)
            self.keys.forget(key.name)
            self.metrics.forget_pool(key.name)
        elif key.kind == "Dataset":
            self.access.forget(key)


def _soonest(*seconds: float | None) -> float | None:
    return min((value for value in seconds if value is not None), default=None)
