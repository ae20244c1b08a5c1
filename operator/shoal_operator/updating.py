"""The rolling update: which pod is to be replaced now, one node of a pool after the other.

A pod is out of date when its template hash is not the one the pool wants. What happens to its node:
    with NVMe       its pod is deleted; what it held is on the disk when the next pod is there     replacing
    without         it hands its blocks over first, or drainTimeoutSeconds pass                    draining, replacing
    then            until the others follow the view with its new address, and, without NVMe,
                    until its share has come back, or drainTimeoutSeconds passed                   settling
Nothing is begun while another node of the pool is out. A node that Kubernetes calls NotReady is out too, until the
others had drainTimeoutSeconds to take its share over. Nodes that people drain do not count, and are replaced like all.

Pods that serve nobody do not wait for their turn: those whose container does not run hold nothing, so all of them are
replaced at once (a pool with a mistyped image recovers as soon as it is corrected), and one that runs but is not ready
goes first, whoever else is out. A new pod that does not get ready holds the update, and that is the point.

Every step is decided anew from what is there; only which node it is, in which phase, is remembered, in the pool state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from shoal_operator import selecting
from shoal_operator.model import Node, NodeReport, Pod, Update
from shoal_operator.specs import PoolSpec

FOLLOW_S = 15.0
"""How long the others may take to follow the view before the update goes on without them: they poll in less."""
QUIET_S = 15.0
"""A node to which nothing came for so long has got back what it will get."""
ENOUGH = 0.9
"""Of what it held before: then the next node may go. The rest comes while that one hands over."""


class Fleet(msgspec.Struct, frozen=True):
    """What an update step is decided from."""

    spec: PoolSpec
    nodes: Mapping[str, Node]
    pods: Mapping[str, Pod]
    """By node."""
    reports: Mapping[str, NodeReport]
    wishes: frozenset[str]
    """Nodes that people drain."""
    template_hash: str
    epoch: int
    """Of the view that the nodes are to follow."""
    now_s: float

    def outdated(self, pod: Pod) -> bool:
        return pod.template_hash != self.template_hash

    def is_up(self, name: str) -> bool:
        """Its pod serves. One that drains because people want it so answers not ready, and is as it should be."""
        pod = self.pods.get(name)
        if pod is None or pod.terminating:
            return False
        return pod.ready or (name in self.wishes and pod.running)

    def is_member(self, name: str) -> bool:
        """Kubernetes has it, says it is Ready, and the pool is to be on it."""
        node = self.nodes.get(name)
        return node is not None and node.ready and selecting.selects(self.spec, node)

    def is_out(self, name: str) -> bool:
        """Whether the pool misses it now."""
        node = self.nodes[name]
        if not selecting.selects(self.spec, node) or name in self.wishes:
            return False
        if not node.ready:
            return self.now_s - node.ready_since_s < self.spec.drain_timeout_s
        return not self.is_up(name)

    def fresh(self, name: str, since_s: float) -> NodeReport | None:
        """What a node said after some moment."""
        report = self.reports.get(name)
        return report if report is not None and report.at_s > since_s else None


class Step(msgspec.Struct, frozen=True):
    """What is to be done now."""

    update: Update | None = None
    """To be remembered."""
    delete: tuple[Pod, ...] = ()
    waits_for: str = ""
    """Why nothing is begun though something is out of date."""

    @property
    def leaving(self) -> frozenset[str]:
        """Nodes that are to be empty for the update's sake."""
        update = self.update
        drains = update is not None and (update.phase == "draining" or update.hands_over)
        return frozenset({update.node}) if update is not None and drains else frozenset()

    @property
    def spared(self) -> str | None:
        """A node that owns nothing yet and is not to be told to drain: its new pod would never be ready."""
        update = self.update
        return update.node if update is not None and update.phase != "draining" else None


def step(fleet: Fleet, pods: Iterable[Pod], update: Update | None) -> Step:
    """`pods`: all of the pool, also those that are on no node yet."""
    if fleet.spec.update_strategy.type == "OnDelete":
        return Step()
    if update is not None:
        going = _go_on(fleet, update)
        if going is not None:
            return going
    stuck = tuple(pod for pod in pods if _is_stuck(fleet, pod))
    return Step(delete=stuck) if stuck else _begin(fleet)


def _is_stuck(fleet: Fleet, pod: Pod) -> bool:
    is_idle = not (pod.running or pod.ready or pod.terminating)
    return is_idle and fleet.outdated(pod) and (not pod.node or fleet.is_member(pod.node))


def _begin(fleet: Fleet) -> Step:
    outdated = [
        name
        for name in sorted(fleet.pods)
        if fleet.is_member(name) and fleet.outdated(fleet.pods[name]) and not fleet.pods[name].terminating
    ]
    if not outdated:
        return Step()
    broken = [name for name in outdated if not fleet.is_up(name)]
    out = sorted(name for name in fleet.nodes if fleet.is_out(name))
    if not broken and out:
        return Step(waits_for=f"{out[0]} is not ready")
    # Those that people drain own nothing, so they cost least.
    name = broken[0] if broken else min(outdated, key=lambda name: (name not in fleet.wishes, name))
    pod, report = fleet.pods[name], fleet.reports.get(name)
    update = Update(name, "draining", pod.uid, fleet.now_s, report.used_bytes if report is not None else None)
    if fleet.spec.nvme or broken:
        return _replace(fleet, update)
    return Step(msgspec.structs.replace(update, hands_over=True))


def _replace(fleet: Fleet, update: Update) -> Step:
    replacing = msgspec.structs.replace(update, phase="replacing", since_s=fleet.now_s)
    pod = fleet.pods.get(update.node)
    return Step(replacing, (pod,) if pod is not None and pod.uid == update.pod_uid and not pod.terminating else ())


def _go_on(fleet: Fleet, update: Update) -> Step | None:
    """None: this node is done, or there is nothing more to do for it."""
    if not fleet.is_member(update.node):
        return None
    match update.phase:
        case "draining":
            return _draining(fleet, update)
        case "replacing":
            return _replacing(fleet, update)
        case _:
            return _settling(fleet, update)


def _draining(fleet: Fleet, update: Update) -> Step | None:
    pod = fleet.pods.get(update.node)
    if pod is None or pod.uid != update.pod_uid or pod.terminating:
        return _replace(fleet, update)
    if not fleet.outdated(pod):
        return None
    report = fleet.fresh(update.node, update.since_s)
    is_late = fleet.now_s - update.since_s >= fleet.spec.drain_timeout_s
    if is_late or (report is not None and report.drained):
        return _replace(fleet, update)
    return Step(update)


def _replacing(fleet: Fleet, update: Update) -> Step | None:
    pod = fleet.pods.get(update.node)
    if pod is None or pod.uid == update.pod_uid:
        return Step(update, (pod,) if pod is not None and not pod.terminating else ())
    if fleet.outdated(pod):
        return None
    if not fleet.is_up(update.node):
        return Step(update)
    return Step(msgspec.structs.replace(update, phase="settling", since_s=fleet.now_s, hands_over=False))


def _settling(fleet: Fleet, update: Update) -> Step | None:
    pod = fleet.pods.get(update.node)
    if pod is None or not fleet.is_up(update.node) or fleet.outdated(pod):
        return None
    lasted_s = fleet.now_s - update.since_s
    if not fleet.spec.nvme and not _is_back(fleet, update):
        if lasted_s >= fleet.spec.drain_timeout_s:
            return None
        return Step(msgspec.structs.replace(update, quiet_since_s=_quiet_since_s(fleet, update)))
    others = (name for name in fleet.pods if fleet.is_up(name) and fleet.is_member(name))
    follow = all(
        (report := fleet.fresh(name, update.since_s)) is not None and report.epoch >= fleet.epoch for name in others
    )
    return None if follow or lasted_s >= FOLLOW_S else Step(update)


def _is_back(fleet: Fleet, update: Update) -> bool:
    """Whether the share of a node without a disk has come back from those that kept it."""
    report = fleet.fresh(update.node, update.since_s)
    if report is None or report.pull_queue:
        return False
    if update.used_bytes is not None and report.used_bytes >= ENOUGH * update.used_bytes:
        return True
    return update.quiet_since_s is not None and report.at_s - update.quiet_since_s >= QUIET_S


def _quiet_since_s(fleet: Fleet, update: Update) -> float | None:
    report = fleet.fresh(update.node, update.since_s)
    if report is None or report.pull_queue:
        return None
    return update.quiet_since_s if update.quiet_since_s is not None else report.at_s
