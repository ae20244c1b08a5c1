"""From what is observed to what is to be done: one function for each kind, which joins all the decisions.

They are called for every event and every timer alike, and answer with everything that is to be done now. Where nothing
is to be done they answer with an empty plan, so that looking costs nothing but the look.
"""

from __future__ import annotations

import msgspec

from shoal_core import view
from shoal_operator import (
    conditions,
    dataset_status,
    desired,
    documents,
    fallbacks,
    finalizing,
    membership,
    names,
    pool_status,
    preload_status,
    scheduling,
    selecting,
    skew,
    status,
    updating,
)
from shoal_operator.model import (
    Dataset,
    DatasetObserved,
    DatasetPlan,
    NodeReport,
    Order,
    Pod,
    PoolMemory,
    PoolObserved,
    PoolPlan,
    PreloadObserved,
    PreloadPlan,
)
from shoal_operator.pool_status import Situation
from shoal_operator.specs import PoolSpec
from shoal_operator.updating import Fleet, Step

LOOK_AGAIN_S = 2.0
"""While something is under way that no event tells of."""


def pool_of_dataset(dataset: Dataset) -> str:
    """The pool that is to hold it; empty: its spec cannot be read."""
    return dataset.spec.pool if dataset.spec is not None else ""


def pool(seen: PoolObserved) -> PoolPlan:
    """What is to be done for a pool."""
    spec, pods = seen.pool.spec, selecting.pod_by_node(seen.pods)
    is_leaving = seen.pool.deleted_s is not None
    if is_leaving and names.POOL_FINALIZER not in seen.pool.finalizers:
        return PoolPlan(memory=seen.memory)
    if is_leaving and finalizing.pool_may_go(seen, pods.values()):
        return PoolPlan(finalizers=finalizing.removed(seen.pool, names.POOL_FINALIZER), memory=seen.memory)
    if spec is None:
        return _without_spec(seen)
    return _with_spec(seen, spec, pods)


def _without_spec(seen: PoolObserved) -> PoolPlan:
    """What runs goes on as it was told; nothing is changed by what cannot be understood."""
    said = skew.unusable(seen.pool, seen.settings.version)
    after, current = pool_status.without_spec(seen, said)
    patch, wait_s = status.to_patch(seen.pool.status, after, seen.patched_s, seen.now_s)
    events = conditions.changes(seen.pool.status, current, stalled=True) if patch is not None else []
    known = documents.view_of(seen.state)
    return PoolPlan(status=patch, events=tuple(events), memory=seen.memory, view=known, again_in_s=wait_s)


def _with_spec(seen: PoolObserved, spec: PoolSpec, pods: dict[str, Pod]) -> PoolPlan:
    is_leaving = seen.pool.deleted_s is not None
    before = documents.view_of(seen.state)
    reports = _of_these_pods(seen, pods)
    wishes = frozenset(pods) if is_leaving else membership.wishes(spec, seen.nodes)
    wanted_hash = desired.template_hash(seen.pool, spec, seen.settings)
    epoch = before.epoch if before is not None else 0
    fleet = Fleet(spec, seen.nodes, pods, reports, wishes, wanted_hash, epoch, seen.now_s)
    conflict = selecting.path_conflict(seen.pool, seen.pools, seen.nodes)
    under_way = documents.update_of(seen.state)
    stands_still = is_leaving or conflict is not None
    step = Step(under_way) if stands_still else updating.step(fleet, seen.pods, under_way)
    after, absent = membership.next_view(
        spec, seen.nodes, pods, before, wishes | step.leaving, reports.values(), seen.memory.absent_since_s, seen.now_s
    )
    counted, events = fallbacks.watch(reports.values(), pods, seen.memory.fallbacks)
    judged = msgspec.structs.replace(seen, reports=reports)
    at = Situation(judged, spec, fleet, step, after, conflict, selecting.selected(spec, seen.nodes))
    verdict = pool_status.verdict(at)
    values, current = pool_status.status(at, verdict, counted)
    patch, wait_s = status.to_patch(seen.pool.status, values, seen.patched_s, seen.now_s)
    if patch is not None:
        events = [*conditions.changes(seen.pool.status, current, verdict.stalled), *events]
    wanted = () if stands_still else desired.objects(seen.pool, spec, seen.settings)
    drain, stop = _orders(spec, pods, after, reports, None if is_leaving else step.spared)
    return PoolPlan(
        finalizers=finalizing.added(seen.pool, names.POOL_FINALIZER),
        make_key=not seen.has_key and not is_leaving,
        apply=desired.to_apply(wanted, seen.objects),
        write_state=documents.write(
            seen.pool, seen.settings, seen.state, after, step.update, seen.datasets, seen.preloads
        ),
        view=after,
        drain=drain,
        stop_drain=stop,
        delete_pods=tuple((pod.name, pod.uid) for pod in step.delete),
        status=patch,
        events=tuple(events),
        memory=PoolMemory(absent, counted),
        again_in_s=_soonest(
            wait_s, LOOK_AGAIN_S if absent or step.update is not None or step.waits_for or is_leaving else None,
            LOOK_AGAIN_S * 15 if verdict.busy or any(one.rose_s for one in counted.values()) else None,
        ),
    )  # fmt: skip


def dataset(seen: DatasetObserved) -> DatasetPlan:
    """What is to be done for a Dataset."""
    found = seen.dataset
    if found.deleted_s is not None:
        if names.DATASET_FINALIZER not in found.finalizers:
            return DatasetPlan()
        if finalizing.dataset_may_go(seen):
            return DatasetPlan(finalizers=finalizing.removed(found, names.DATASET_FINALIZER))
    verdict = dataset_status.verdict(seen)
    values, current = dataset_status.status(seen, verdict)
    patch, wait_s = status.to_patch(found.status, values, seen.patched_s, seen.now_s)
    events = conditions.changes(found.status, current, verdict.stalled) if patch is not None else []
    return DatasetPlan(
        finalizers=finalizing.added(found, names.DATASET_FINALIZER),
        status=patch,
        events=tuple(events),
        again_in_s=_soonest(wait_s, LOOK_AGAIN_S if found.deleted_s is not None else None),
    )


def preload(seen: PreloadObserved) -> PreloadPlan:
    """What is to be done for a Preload."""
    found = seen.preload
    if found.deleted_s is not None:
        return PreloadPlan()
    expires_s = scheduling.expires_s(found, found.spec) if found.spec is not None else None
    if expires_s is not None and seen.now_s >= expires_s:
        return PreloadPlan(delete=True)
    said = preload_status.outcome(seen, seen.version)
    values, current, memory = preload_status.status(seen, said, seen.memory)
    patch, wait_s = status.to_patch(found.status, values, seen.patched_s, seen.now_s)
    events = conditions.changes(found.status, current, said.verdict.stalled) if patch is not None else []
    at_s = (expires_s, said.due.next_s, said.due.retry_s)
    return PreloadPlan(
        status=patch,
        events=tuple(events),
        memory=memory,
        again_in_s=_soonest(wait_s, *(None if moment is None else max(moment - seen.now_s, 0.0) for moment in at_s)),
    )


def _of_these_pods(seen: PoolObserved, pods: dict[str, Pod]) -> dict[str, NodeReport]:
    """What was said by the pods that are there now: a process that is gone says nothing of the next."""
    return {
        name: report
        for name, report in seen.reports.items()
        if name in pods and report.at_s >= pods[name].created_s
    }  # fmt: skip


def _orders(
    spec: PoolSpec, pods: dict[str, Pod], after: view.View, reports: dict[str, NodeReport], spared: str | None
) -> tuple[tuple[Order, ...], tuple[Order, ...]]:
    """Who is to drain and does not, and who drains and is to stay."""
    drain: list[Order] = []
    stop: list[Order] = []
    for node in after.nodes:
        pod, report = pods.get(node.id), reports.get(node.id)
        if pod is None or not (pod.running or pod.ready) or pod.terminating or not pod.address:
            continue
        order = Order(node.id, membership.host_port(pod.address, pod.control_port or spec.ports.control))
        does = report is not None and report.draining
        if node.status == "draining" and not does and node.id != spared:
            drain.append(order)
        elif node.status == "ready" and does:
            stop.append(order)
    return tuple(drain), tuple(stop)


def _soonest(*seconds: float | None) -> float | None:
    return min((value for value in seconds if value is not None), default=None)
