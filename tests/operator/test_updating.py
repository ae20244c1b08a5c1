"""The rolling update: which pod goes now."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_operator import updating
from shoal_operator.model import Node, Pod, Update
from shoal_operator.updating import Fleet, Step
from tests.operator import worlds
from tests.operator.worlds import NOW_S, changed, down, up

LATER_S = NOW_S + 5


def fleet(
    *pods: Pod, nodes: Any = None, nvme: bool = True, reports: Any = (), wishes: Any = (), epoch: int = 3,
    now_s: float = NOW_S, **spec: Any,
) -> Fleet:  # fmt: skip
    known = worlds.pool(nvme=nvme, **spec).spec
    assert known is not None
    there = {node.name: node for node in nodes} if nodes is not None else worlds.nodes(*(pod.node for pod in pods))
    return Fleet(known, there, worlds.pods(*pods), worlds.reports(*reports), frozenset(wishes), "new", epoch, now_s)


def step(of: Fleet, update: Update | None = None, extra: Any = ()) -> Step:
    return updating.step(of, [*of.pods.values(), *extra], update)


def shown(taken: Step) -> str:
    update = taken.update
    words = [] if update is None else [update.node, update.phase]
    words += [f"-{pod.name}" for pod in taken.delete] + [f"leaving:{name}" for name in sorted(taken.leaving)]
    return " ".join(words) + (f" ({taken.waits_for})" if taken.waits_for else "")


def at(phase: Any, *, uid: str = "pod-n1", **fields: Any) -> Update:
    return Update("n1", phase, uid, NOW_S, **fields)


# Where it begins


def test_nothing_is_out_of_date():
    assert step(fleet(up("n1"), up("n2"))) == Step()


def test_with_a_disk_the_pod_goes_at_once_and_without_it_hands_over_first():
    pods = (up("n1"), up("n2", "old"), up("n3", "old"))
    assert shown(step(fleet(*pods))) == "n2 replacing -shoal-p-n2"
    taken = step(fleet(*pods, nvme=False, reports=[worlds.report("n2", used_bytes=7)]))
    assert shown(taken) == "n2 draining leaving:n2"
    assert taken.update == Update("n2", "draining", "pod-n2", NOW_S, 7, hands_over=True)


def test_who_deletes_by_hand_is_left_alone():
    by_hand = {"updateStrategy": {"type": "OnDelete"}}
    assert step(fleet(up("n1", "old"), **by_hand)) == Step()
    assert step(fleet(up("n1", "old"), nvme=False, **by_hand), at("draining", hands_over=True)) == Step()


@pytest.mark.parametrize(
    ("pods", "nodes", "wishes", "then"),
    [
        # Somebody else is out.
        ([up("n1", "old"), down("n2")], None, [], " (n2 is not ready)"),
        ([up("n1", "old"), up("n2", terminating=True)], None, [], " (n2 is not ready)"),
        ([up("n1", "old")], [worlds.node("n1"), worlds.node("n2")], [], " (n2 is not ready)"),
        # A node that Kubernetes lost counts, until the others have had time to take its share over.
        ([up("n1", "old"), up("n2")], [worlds.node("n1"), worlds.node("n2", False, since_s=NOW_S - 10)], [],
         " (n2 is not ready)"),
        ([up("n1", "old"), up("n2")], [worlds.node("n1"), worlds.node("n2", False, since_s=NOW_S - 600)], [],
         "n1 replacing -shoal-p-n1"),
        # A node that is not of the pool, or is drained by people, does not.
        ([up("n1", "old")], [worlds.node("n1"), worlds.node("x", taints=({"key": "k", "effect": "NoSchedule"},))], [],
         "n1 replacing -shoal-p-n1"),
        ([up("n1", "old"), up("n2", ready=False)], None, ["n2"], "n1 replacing -shoal-p-n1"),
        ([up("n1", "old"), down("n2", template_hash="new")], None, ["n2"], "n1 replacing -shoal-p-n1"),
        # A drained one goes first; it owns nothing.
        ([up("n1", "old"), up("n2", "old", ready=False)], None, ["n2"], "n2 replacing -shoal-p-n2"),
        # A pod that runs and is not ready goes first, whoever else is out.
        ([up("n1", "old"), up("n2", "old", ready=False), up("n3", "old", ready=False)], None, [],
         "n2 replacing -shoal-p-n2"),
        # Pods that do not run go all at once.
        ([up("n1", "old"), down("n2", template_hash="old"), down("n3", template_hash="old")], None, [],
         "-shoal-p-n2 -shoal-p-n3"),
        # On a node that is not ready nothing can be done, nor to one that ends already.
        ([down("n1", template_hash="old")], [worlds.node("n1", False)], [], ""),
        ([up("n1", "old", terminating=True)], None, [], ""),
        ([up("n1", "old")], [], [], ""),
    ],
)  # fmt: skip
def test_what_is_begun(pods: list[Pod], nodes: list[Node] | None, wishes: list[str], then: str):
    assert shown(step(fleet(*pods, nodes=nodes, wishes=wishes))) == then


def test_a_pod_that_found_no_node_is_replaced_at_once():
    assert shown(step(fleet(up("n1")), extra=[down("", template_hash="old")])) == "-shoal-p-"
    assert step(fleet(up("n1")), extra=[down("")]) == Step()


def test_one_that_is_broken_need_not_hand_over():
    assert shown(step(fleet(up("n1", "old", ready=False), nvme=False))) == "n1 replacing -shoal-p-n1"


# How it goes on


@pytest.mark.parametrize(
    ("pod", "drained_at_s", "now_s", "then"),
    [
        (up("n1", "old", ready=False), None, LATER_S, "n1 draining leaving:n1"),
        (up("n1", "old"), NOW_S - 1, LATER_S, "n1 draining leaving:n1"),
        (up("n1", "old"), NOW_S + 1, LATER_S, "n1 replacing -shoal-p-n1 leaving:n1"),
        (up("n1", "old"), None, NOW_S + 600, "n1 replacing -shoal-p-n1 leaving:n1"),
        (up("n1", "old", terminating=True), None, LATER_S, "n1 replacing leaving:n1"),
        (up("n1", "old", uid="other"), None, LATER_S, "n1 replacing leaving:n1"),
        (None, None, LATER_S, "n1 replacing leaving:n1"),
        (up("n1", "new", ready=False), None, LATER_S, ""),  # the spec is as it was again
    ],
)
def test_draining(pod: Pod | None, drained_at_s: float | None, now_s: float, then: str):
    said = [] if drained_at_s is None else [worlds.report("n1", drained_at_s, drained=True)]
    of = fleet(*([pod] if pod else []), nodes=[worlds.node("n1")], nvme=False, reports=said, now_s=now_s)
    assert shown(step(of, at("draining", hands_over=True))) == then


@pytest.mark.parametrize(
    ("pod", "then"),
    [
        (None, "n1 replacing"),
        (up("n1", "old"), "n1 replacing -shoal-p-n1"),  # the deletion was lost
        (up("n1", "old", terminating=True), "n1 replacing"),
        (down("n1", uid="next"), "n1 replacing"),
        (up("n1", uid="next", terminating=True), "n1 replacing"),
        (down("n1", uid="next", template_hash="old"), "-shoal-p-n1"),  # changed once more meanwhile
        (up("n1", uid="next"), "n1 settling"),
    ],
)
def test_replacing(pod: Pod | None, then: str):
    of = fleet(*([pod] if pod else []), nodes=[worlds.node("n1")], now_s=LATER_S)
    assert shown(step(of, at("replacing"))) == then


def test_a_drained_node_is_back_when_its_pod_runs():
    drained = up("n1", uid="next", ready=False)
    assert shown(step(fleet(drained, wishes=["n1"]), at("replacing"))) == "n1 settling"
    assert shown(step(fleet(drained), at("replacing"))) == "n1 replacing"


def test_without_a_disk_the_node_owns_nothing_until_the_new_pod_is_ready():
    handing = at("replacing", hands_over=True)
    of = fleet(down("n1", uid="next"), nvme=False)
    assert step(of, handing).leaving == {"n1"}
    then = step(fleet(up("n1", uid="next"), nvme=False), handing)
    assert shown(then) == "n1 settling" and then.update == at("settling")


@pytest.mark.parametrize("phase", ["draining", "replacing", "settling"])
@pytest.mark.parametrize("nodes", [[], [worlds.node("n1", False)]])
def test_a_node_that_is_lost_ends_its_turn(phase: str, nodes: list[Node]):
    assert step(fleet(nodes=nodes), at(phase)).update is None


def settling(nvme: bool, *said: Any, now_s: float = LATER_S, pods: Any = None, **fields: Any) -> Step:
    there = pods if pods is not None else (up("n1", uid="next"), up("n2"))
    of = fleet(*there, nvme=nvme, reports=said, now_s=now_s)
    return step(of, at("settling", **fields))


def test_with_a_disk_it_is_the_next_ones_turn_when_all_follow_the_view():
    here, there = worlds.report("n1", LATER_S, epoch=3), worlds.report("n2", LATER_S, epoch=3)
    assert settling(True, here, there) == Step()
    assert shown(settling(True, here)) == "n1 settling"
    assert shown(settling(True, here, changed(there, epoch=2))) == "n1 settling"
    assert shown(settling(True, here, changed(there, at_s=NOW_S))) == "n1 settling"
    assert settling(True, now_s=NOW_S + 15) == Step()
    then = settling(True, here, there, pods=(up("n1", uid="next"), up("n2", "old")))
    assert shown(then) == "n2 replacing -shoal-p-n2"


@pytest.mark.parametrize(
    "pod",
    [up("n1", uid="next", ready=False), up("n1", uid="next", terminating=True), down("n1", template_hash="old"), None]
)  # fmt: skip
def test_a_new_pod_that_breaks_ends_its_turn(pod: Pod | None):
    there = [pod] if pod is not None else []
    assert step(fleet(*there, nodes=[worlds.node("n1")]), at("settling")).update is None


def test_without_a_disk_it_waits_until_the_share_is_back():
    other = worlds.report("n2", LATER_S, epoch=3)
    here = worlds.report("n1", LATER_S, epoch=3, used_bytes=90)
    assert settling(False, here, other, used_bytes=100) == Step()
    assert settling(False, here, other, used_bytes=0) == Step()
    pulling = settling(False, changed(here, pull_queue=1), other, used_bytes=100, quiet_since_s=NOW_S)
    assert pulling.update == at("settling", used_bytes=100)
    assert settling(False, other, used_bytes=100).update == at("settling", used_bytes=100)
    little = changed(here, used_bytes=10)
    quiet = settling(False, little, other, used_bytes=100)
    assert quiet.update == at("settling", used_bytes=100, quiet_since_s=LATER_S)
    later = changed(little, at_s=LATER_S + 14), changed(other, at_s=LATER_S + 14)
    still = settling(False, *later, now_s=LATER_S + 14, used_bytes=100, quiet_since_s=LATER_S)
    assert still.update == at("settling", used_bytes=100, quiet_since_s=LATER_S)
    over = changed(little, at_s=LATER_S + 15), changed(other, at_s=LATER_S + 15)
    assert settling(False, *over, now_s=LATER_S + 15, used_bytes=None, quiet_since_s=LATER_S) == Step()
    assert settling(False, now_s=NOW_S + 600, used_bytes=100) == Step()


# All together


SPECS = {nvme: worlds.pool(nvme=nvme, drainTimeoutSeconds=30).spec for nvme in (True, False)}


class World:
    """A pool whose pods are played: a deleted pod is followed by another, with the template of then."""

    def __init__(self, seed: int, count: int, nvme: bool) -> None:
        self.chance = random.Random(seed)
        self.nvme = nvme
        self.now_s = NOW_S
        self.wanted = "h1"
        self.nodes = worlds.nodes(*(f"n{number}" for number in range(1, count + 1)))
        self.pods = {name: up(name, "h0") for name in self.nodes}
        self.drained: dict[str, float] = {}
        self.update: Update | None = None
        self.born = 0
        self.taken = 0

    @property
    def is_over(self) -> bool:
        every = self.pods.values()
        return self.update is None and {(pod.template_hash, pod.ready) for pod in every} == {(self.wanted, True)}

    def step(self, hostile: bool) -> None:
        """One look, and what comes of it."""
        chance = self.chance
        self.now_s += chance.choice([0.5, 2.0, 5.0])
        if hostile and chance.random() < 0.05:
            self.wanted = chance.choice(["h0", "h1", "h2"])
        self._live(hostile)
        spec = SPECS[self.nvme]
        assert spec is not None
        reports = {
            name: worlds.report(name, self.now_s, epoch=1, drained=name in self.drained, used_bytes=5)
            for name, pod in self.pods.items()
            if pod.running and chance.random() < 0.7
        }
        of = Fleet(spec, self.nodes, self.pods, reports, frozenset(), self.wanted, 1, self.now_s)
        taken = updating.step(of, self.pods.values(), self.update)
        self._check(of, taken)
        self.update = taken.update
        for name in taken.leaving - {taken.spared}:
            if chance.random() < 0.5 and name in self.pods:
                self.drained[name] = self.now_s
                self.pods[name] = changed(self.pods[name], ready=False)
        for name in self.drained.keys() - taken.leaving:
            del self.drained[name]  # it may stay after all
        for pod in taken.delete:
            if chance.random() < 0.9:  # a call may be lost
                self.taken += 1
                self.pods[pod.node] = changed(pod, terminating=True, ready=False)

    def _live(self, hostile: bool) -> None:
        for name, node in self.nodes.items():
            pod, luck = self.pods.get(name), self.chance.random()
            if hostile and luck < 0.02:
                self.nodes[name] = worlds.node(name, not node.ready, since_s=self.now_s)
            elif not hostile and not node.ready:
                self.nodes[name] = worlds.node(name, since_s=self.now_s)
            if pod is None:
                self.born += 1
                self.drained.pop(name, None)
                self.pods[name] = down(name, uid=f"born-{self.born}", template_hash=self.wanted)
            elif pod.terminating and luck > 0.4:
                del self.pods[name]
            elif not pod.running and luck > 0.3:
                self.pods[name] = changed(pod, running=True, ready=self.chance.random() < 0.8)
            elif hostile and luck > 0.97:
                self.pods[name] = changed(pod, ready=False, running=luck > 0.98)
            elif pod.running and not pod.ready and not pod.terminating and name not in self.drained:
                self.pods[name] = changed(pod, ready=True)

    def _check(self, of: Fleet, taken: Step) -> None:
        serving = [pod.node for pod in taken.delete if of.is_up(pod.node)]
        before = {self.update.node} if self.update is not None else set()
        begins = set(serving) | (set(taken.leaving) - before)
        assert len(begins) <= 1
        for name in begins - before:
            assert not [other for other in self.nodes if other != name and of.is_out(other)]
        assert all(pod.template_hash != self.wanted or pod.node in before for pod in taken.delete)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 6), st.booleans())
def test_never_more_than_one_node_is_taken_out_and_it_ends(seed: int, count: int, nvme: bool):
    world = World(seed, count, nvme)
    for _ in range(world.chance.randrange(60)):
        world.step(hostile=True)
    for _ in range(count * 60 + 200):
        world.step(hostile=False)
        if world.is_over:
            break
    assert world.is_over
    taken = world.taken
    for _ in range(10):
        world.step(hostile=False)
    assert world.taken == taken
