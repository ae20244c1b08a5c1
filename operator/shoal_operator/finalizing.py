"""When something that is being deleted may go.

A pool: when nobody reads from its nodes any more, or drainTimeoutSeconds after the wish. A data set: when its nodes
have dropped it, or a minute after the wish: a node that cannot be asked drops it once it sees the pool state again.
"""

from __future__ import annotations

from collections.abc import Iterable

from shoal_operator.model import DatasetObserved, Pod, PoolObserved, Resource

DATASET_WAITS_S = 60.0
DRAIN_TIMEOUT_S = 600.0
"""Of a pool whose spec cannot be read."""


def added(resource: Resource, finalizer: str) -> tuple[str, ...] | None:
    """The finalizers of something that is to stay; None: as they are."""
    if resource.deleted_s is not None or finalizer in resource.finalizers:
        return None
    return (*resource.finalizers, finalizer)


def removed(resource: Resource, finalizer: str) -> tuple[str, ...]:
    """The finalizers of something that may go."""
    return tuple(name for name in resource.finalizers if name != finalizer)


def pool_may_go(seen: PoolObserved, pods: Iterable[Pod]) -> bool:
    """Whether there is nothing more to wait for."""
    deleted_s, spec = seen.pool.deleted_s, seen.pool.spec
    timeout_s = spec.drain_timeout_s if spec is not None else DRAIN_TIMEOUT_S
    if deleted_s is None or seen.now_s - deleted_s >= timeout_s:
        return True
    return all(_is_quiet(seen, pod, deleted_s) for pod in pods if pod.running and not pod.terminating)


def dataset_may_go(seen: DatasetObserved) -> bool:
    """Whether there is nothing more to wait for."""
    deleted_s = seen.dataset.deleted_s
    if seen.pool is None or deleted_s is None or seen.now_s - deleted_s >= DATASET_WAITS_S:
        return True
    return not seen.declared and not seen.totals.nodes


def _is_quiet(seen: PoolObserved, pod: Pod, since_s: float) -> bool:
    """Nobody reads from it, and nobody can begin to."""
    node = seen.nodes.get(pod.node)
    if node is None or not node.ready:
        return True
    report = seen.reports.get(pod.node)
    return report is not None and report.at_s > since_s and report.drained and not report.leases
