"""Where a CachePool stands: the chain of checks that its Ready condition is, and the numbers people see.

A pool is Ready when every node that it selects serves, but for those that people drain and the one that an update
replaces. What holds a pod up is told in kubelet's words and the node's last ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from shoal_core import view
from shoal_operator import conditions, desired, fallbacks, quantities, skew
from shoal_operator.conditions import Condition, Verdict
from shoal_operator.model import Manifest, NodeReport, Pod, Pool, PoolObserved, Seen
from shoal_operator.specs import PoolSpec
from shoal_operator.updating import Fleet, Step

_PROBLEMS_NAMED = 3
_LINE_CHARACTERS_MAX = 300
CREATING_S = 20.0
"""A container that is still being created after so long waits for a volume."""

_BLOCKING = frozenset({
    "CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName", "Unschedulable",
    "CreateContainerConfigError", "CreateContainerError", "RunContainerError",
})  # fmt: skip
"""kubelet and scheduler try again, but hardly with another result."""


class Situation(msgspec.Struct, frozen=True):
    """What a pool with a usable spec is judged by."""

    seen: PoolObserved
    spec: PoolSpec
    fleet: Fleet
    step: Step
    view: view.View
    conflict: tuple[Pool, str, str] | None = None
    selected: tuple[str, ...] = ()
    """Nodes that the pool is to be on."""

    @property
    def replaced(self) -> str | None:
        """The node that an update has taken out."""
        return self.step.update.node if self.step.update is not None else None

    @property
    def excused(self) -> frozenset[str]:
        """Nodes that do not serve, and are not to."""
        return self.fleet.wishes | self.step.leaving | ({self.replaced} if self.replaced is not None else frozenset())


class _Problem(msgspec.Struct, frozen=True):
    """Why a node does not serve."""

    text: str
    reason: str = ""
    is_blocking: bool = False


def verdict(at: Situation) -> Verdict:
    """The first check that has something to say."""
    checks: tuple[Callable[[Situation], Verdict | None], ...] = (
        _deletion, _conflict, _no_nodes, _not_ready, _under_update, _drained,
    )  # fmt: skip
    found = next((said for check in checks if (said := check(at)) is not None), None)
    count = len(at.selected)
    all_serve = Verdict("Ready", f"{_nodes(count)} {'serves' if count == 1 else 'serve'}", ready=True)
    return skew.partly(at.seen.pool, at.seen.settings.version, found or all_serve)


def status(at: Situation, said: Verdict, counted: Mapping[tuple[str, str], Seen]) -> tuple[Manifest, list[Condition]]:
    """The whole status, and its conditions before they are dated."""
    pool = at.seen.pool
    current = [*conditions.standing(said), _degraded(at, counted)]
    values: Manifest = {
        **_numbers(at),
        "observedGeneration": pool.generation,
        "conditions": conditions.dated(current, pool.status, pool.generation, at.seen.now_s),
    }
    return values, current


def without_spec(seen: PoolObserved, said: Verdict) -> tuple[Manifest, list[Condition]]:
    """Of a pool whose spec cannot be used: what was known stays."""
    current = conditions.standing(said)
    dated = conditions.dated(current, seen.pool.status, seen.pool.generation, seen.now_s)
    return {**seen.pool.status, "observedGeneration": seen.pool.generation, "conditions": dated}, current


# Checks


def _deletion(at: Situation) -> Verdict | None:
    if at.seen.pool.deleted_s is None:
        return None
    return Verdict("Deleting", "its nodes end what they do before they go", busy=True)


def _conflict(at: Situation) -> Verdict | None:
    if at.conflict is None:
        return None
    other, path, node = at.conflict
    message = (
        f"spec.nvme[0].path {path} is used by the older pool {other.name} as well, for instance on node {node}; "
        "choose another path, or nodes that only one of them selects"
    )
    return Verdict("PathConflict", message, stalled=True)


def _no_nodes(at: Situation) -> Verdict | None:
    if at.selected:
        return None
    selector = ", ".join(f"{name}={value}" for name, value in sorted(at.spec.node_selector.items()))
    wanted = f"has the labels {selector} and" if selector else "has"
    return Verdict("NoMatchingNodes", f"no node {wanted} only taints that spec.tolerations puts up with", stalled=True)


def _not_ready(at: Situation) -> Verdict | None:
    problems = [problem for name in at.selected if (problem := _problem(at, name)) is not None]
    problems += [_unscheduled(pod) for pod in at.seen.pods if not pod.node and not pod.terminating]
    if not problems:
        return None
    blocking = next((problem for problem in problems if problem.is_blocking), None)
    ordered = sorted(problems, key=lambda problem: not problem.is_blocking)
    texts = "; ".join(problem.text for problem in ordered[:_PROBLEMS_NAMED])
    more = f"; and {len(problems) - _PROBLEMS_NAMED} more" if len(problems) > _PROBLEMS_NAMED else ""
    waits = "; the update waits for that" if at.step.waits_for else ""
    message = f"{_ready_count(at)} of {_nodes(len(at.selected))} ready: {texts}{more}{waits}"
    if blocking is not None:
        return Verdict(blocking.reason, message, stalled=True)
    reasons = {problem.reason for problem in problems}
    return Verdict("NodesNotReady" if reasons == {"NotReady"} else "PodsNotReady", message, busy=True)


def _under_update(at: Situation) -> Verdict | None:
    if not _outdated(at) and at.step.update is None:
        return None
    done = f"{_updated(at)} of {_nodes(len(at.selected))} up to date"
    is_by_hand = at.spec.update_strategy.type == "OnDelete"
    if is_by_hand:
        return Verdict("UpdateWaits", f"{done}; spec.updateStrategy is OnDelete: delete the others' pods", ready=True)
    update = at.step.update
    if update is None:
        return Verdict("Updating", done, ready=_serves(at), busy=True)
    doing = {"draining": "hands its blocks over", "replacing": "is replaced", "settling": "gets its share back"}
    message = f"{done}; {update.node} {doing[update.phase]}"
    pod = at.fleet.pods.get(update.node)
    if update.phase == "replacing" and pod is not None and pod.uid != update.pod_uid:
        problem = _pod_problem(at, pod)
        if problem.is_blocking:
            return Verdict(problem.reason, f"{message}; {problem.text}", stalled=True)
    return Verdict("Updating", message, ready=_serves(at), busy=True)


def _drained(at: Situation) -> Verdict | None:
    drained = [name for name in at.selected if name in at.fleet.wishes]
    if not drained:
        return None
    message = f"{_ready_count(at)} of {_nodes(len(at.selected))} ready; empty or being emptied: "
    return Verdict("Draining", message + fallbacks.listed(drained), ready=_serves(at))


# Parts


def _degraded(at: Situation, counted: Mapping[tuple[str, str], Seen]) -> Condition:
    said = fallbacks.complaints(counted, at.seen.now_s)
    blind = [f"{name} does not see the view: {report.view_error}" for name, report in _reports(at) if report.view_error]
    if blind:
        return Condition("Degraded", True, "ViewNotFollowed", "; ".join([*blind[:_PROBLEMS_NAMED], *said]))
    if said:
        return Condition("Degraded", True, "Fallbacks", "; ".join(said))
    return Condition("Degraded", False, "AsExpected")


def _problem(at: Situation, name: str) -> _Problem | None:
    if name in at.excused:
        return None
    node, pod = at.seen.nodes[name], at.fleet.pods.get(name)
    if not node.ready:
        return _Problem(f"{name}: Kubernetes calls the node NotReady", "NotReady")
    if pod is None:
        return _Problem(f"{name}: has no pod yet")
    return None if at.fleet.is_up(name) else _pod_problem(at, pod)


def _pod_problem(at: Situation, pod: Pod) -> _Problem:
    if pod.terminating:
        return _Problem(f"{pod.node}: pod {pod.name} ends")
    lines = [line.strip() for line in pod.message.splitlines() if line.strip()]
    last = conditions.cut(lines[-1], _LINE_CHARACTERS_MAX) if lines else ""
    if pod.reason == "ContainerCreating" and not last and at.seen.now_s - pod.created_s > CREATING_S:
        path = f": is {at.spec.nvme[0].path} a directory there?" if at.spec.nvme else ""
        last = f"a volume is missing{path}"
    said = ": ".join(part for part in (pod.reason, last) if part) or "its pod is not ready"
    return _Problem(f"{pod.node}: {said}", pod.reason, pod.reason in _BLOCKING)


def _unscheduled(pod: Pod) -> _Problem:
    said = ": ".join(part for part in (pod.reason, pod.message) if part) or "waits for the scheduler"
    return _Problem(f"pod {pod.name}: {said}", pod.reason, pod.reason in _BLOCKING)


def _reports(at: Situation) -> Iterable[tuple[str, NodeReport]]:
    """Of the nodes that are in the view and there."""
    reports = at.seen.reports
    return [(node.id, reports[node.id]) for node in at.view.nodes if node.status != "gone" and node.id in reports]


def _ready_nodes(at: Situation) -> list[view.Node]:
    pods = at.fleet.pods
    return [node for node in at.view.nodes if node.status == "ready" and node.id in pods and pods[node.id].ready]


def _ready_count(at: Situation) -> int:
    selected = set(at.selected)
    return sum(node.id in selected for node in _ready_nodes(at))


def _serves(at: Situation) -> bool:
    """Somebody does, while some are out on purpose."""
    return _ready_count(at) > 0


def _outdated(at: Situation) -> list[str]:
    return [name for name, pod in at.fleet.pods.items() if at.fleet.outdated(pod) and at.fleet.is_member(name)]


def _updated(at: Situation) -> int:
    pods, selected = at.fleet.pods, at.selected
    return sum(name in pods and not at.fleet.outdated(pods[name]) and at.fleet.is_up(name) for name in selected)


def _numbers(at: Situation) -> Manifest:
    total, ready = len(at.selected), _ready_count(at)
    capacity_bytes = sum(node.capacity_bytes for node in at.view.nodes if node.status == "ready")
    return {
        "nodesReady": ready,
        "nodesTotal": total,
        "nodes": f"{ready}/{total}",
        "updatedNodes": _updated(at),
        "capacityBytes": capacity_bytes,
        "capacity": quantities.shown(capacity_bytes),
        "viewEpoch": at.view.epoch,
        "image": desired.image(at.spec, at.seen.settings),
        **_said(at),
    }


def _said(at: Situation) -> Mapping[str, Any]:
    """What only nodes know. Until the first has answered a new operator, what was known before stays."""
    reports = [report for _, report in _reports(at)]
    if not reports:
        before = at.seen.pool.status
        keys = ("usedBytes", "used", "hitRatio", "version")
        return {key: before[key] for key in keys if key in before} or {"usedBytes": 0, "used": "0"}
    used_bytes = sum(report.used_bytes for report in reports)
    hits = sum(report.hits for report in reports)
    ratio = quantities.percent(hits, hits + sum(report.misses for report in reports), 1)
    version = ", ".join(sorted({report.version for report in reports if report.version}))
    told = {"hitRatio": ratio, "version": version}
    return {
        "usedBytes": used_bytes,
        "used": quantities.shown(used_bytes),
        **{key: value for key, value in told.items() if value},
    }


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
