"""The next view, from pods, nodes and the view before."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core import view
from shoal_operator import membership
from shoal_operator.model import Node, NodeReport, Pod
from tests.operator import worlds
from tests.operator.worlds import GIB, NOW_S

SPEC = worlds.pool(topology={"rackKey": "rack"}).spec
assert SPEC is not None
ADDRESS = "tcp:10.0.0.1:7440"


def decide(
    nodes: dict[str, Node], pods: list[Pod], before: view.View | None, leaving: Any = (), *,
    reports: list[NodeReport] | None = None, absent: Any = None, now_s: float = NOW_S,
) -> tuple[view.View, dict[str, float]]:  # fmt: skip
    assert SPEC is not None
    by_node = worlds.pods(*pods)
    return membership.next_view(SPEC, nodes, by_node, before, frozenset(leaving), reports or [], absent or {}, now_s)


def shown(known: view.View) -> str:
    return f"{known.epoch}: " + " ".join(f"{node.id}={node.status}" for node in known.nodes)


def test_a_pool_begins_with_an_empty_view_and_nodes_enter_when_they_are_ready():
    nodes = worlds.nodes("n1", "n2")
    first, absent = decide(nodes, [], None)
    assert first == view.make(1, []) and absent == {}
    starting, absent = decide(nodes, [worlds.down("n1"), worlds.up("n2", ready=False)], first)
    assert starting is first and absent == {}
    entered, _ = decide(nodes, [worlds.up("n1"), worlds.up("n2", address="")], first)
    assert entered == view.make(2, [view.Node("n1", (ADDRESS,), 100 * GIB)])


def test_where_a_node_stands_and_what_it_holds():
    nodes = {"n1": worlds.node("n1", labels={"topology.kubernetes.io/zone": "a", "rack": "7"})}
    told = {"address": "fd00::1", "capacity_bytes": 5, "data_port": 7000}
    known, _ = decide(nodes, [worlds.up("n1", **told)], None)
    assert known.nodes == (view.Node("n1", ("tcp:[fd00::1]:7000",), 5, "a", "7"),)


@pytest.mark.parametrize(
    ("nodes", "pods", "was", "leaving", "then"),
    [
        # Nothing happens.
        ([worlds.node("n1")], [worlds.up("n1")], "ready", [], "4: n1=ready"),
        # A node that does not report is gone at once, whatever its pod says.
        ([worlds.node("n1", False)], [worlds.up("n1")], "ready", [], "5: n1=gone"),
        ([worlds.node("n1", False)], [worlds.up("n1")], "ready", ["n1"], "5: n1=gone"),
        ([worlds.node("n1", False)], [], "gone", [], "4: n1=gone"),
        ([worlds.node("n1")], [worlds.up("n1")], "gone", [], "5: n1=ready"),
        ([worlds.node("n1")], [worlds.up("n1", ready=False)], "gone", [], "4: n1=gone"),
        # A node that was deleted, or is not selected any more, is left out.
        ([], [worlds.up("n1")], "ready", [], "5: "),
        ([worlds.node("n1", taints=({"key": "k", "effect": "NoSchedule"},))], [worlds.up("n1")], "ready", [],
         "5: n1=draining"),
        ([worlds.node("n1", taints=({"key": "k", "effect": "NoSchedule"},))], [], "ready", [], "5: "),
        ([worlds.node("n1", taints=({"key": "k", "effect": "NoSchedule"},))], [worlds.up("n1", terminating=True)],
         "ready", [], "5: "),
        # One that is to leave drains, ready or not, and comes back when it may stay.
        ([worlds.node("n1")], [worlds.up("n1")], "ready", ["n1"], "5: n1=draining"),
        ([worlds.node("n1")], [worlds.up("n1", ready=False)], "draining", ["n1"], "4: n1=draining"),
        ([worlds.node("n1")], [worlds.up("n1", ready=False)], "ready", ["n1"], "5: n1=draining"),
        ([worlds.node("n1")], [worlds.down("n1", ready_since_s=NOW_S)], "ready", ["n1"], "5: n1=draining"),
        ([worlds.node("n1")], [worlds.up("n1", ready=False, ready_since_s=NOW_S)], "draining", [], "5: n1=ready"),
        ([worlds.node("n1")], [worlds.up("n1")], "draining", [], "5: n1=ready"),
        # One whose pod is being replaced stays.
        ([worlds.node("n1")], [worlds.up("n1", terminating=True, ready_since_s=NOW_S)], "ready", [], "4: n1=ready"),
        ([worlds.node("n1")], [], "ready", [], "4: n1=ready"),
        ([worlds.node("n1")], [worlds.down("n1", ready_since_s=NOW_S - 70)], "ready", [], "4: n1=ready"),
    ],
)  # fmt: skip
def test_status(nodes: list[Node], pods: list[Pod], was: view.NodeStatus, leaving: list[str], then: str):
    before = view.make(4, [view.Node("n1", (ADDRESS,), 100 * GIB, status=was)])
    known, _ = decide({node.name: node for node in nodes}, pods, before, leaving)
    assert shown(known) == then
    assert (known is before) is (known.epoch == 4)


def test_a_node_that_comes_back_in_time_is_never_missed():
    nodes, before = worlds.nodes("n1"), view.make(4, [view.Node("n1", (ADDRESS,), 100 * GIB)])
    known, absent = decide(nodes, [], before)
    assert known is before and absent == {"n1": NOW_S}
    started = worlds.down("n1", ready_since_s=NOW_S + 2, uid="next")
    known, absent = decide(nodes, [started], before, absent=absent, now_s=NOW_S + 59)
    assert known is before and absent == {"n1": NOW_S}
    late, absent = decide(nodes, [started], before, absent=absent, now_s=NOW_S + 60)
    assert shown(late) == "5: n1=gone" and late.nodes[0].addresses == (ADDRESS,) and absent == {"n1": NOW_S}
    assert shown(decide(nodes, [started], before, ["n1"], absent=absent, now_s=NOW_S + 61)[0]) == "5: n1=gone"
    back, absent = decide(nodes, [worlds.up("n1", address="10.0.0.8")], late, absent=absent, now_s=NOW_S + 90)
    assert back.nodes[0].addresses == ("tcp:10.0.0.8:7440",) and shown(back) == "6: n1=ready" and absent == {}


def test_the_epoch_is_above_all_that_nodes_follow():
    nodes, pods = worlds.nodes("n1"), [worlds.up("n1")]
    known, _ = decide(nodes, pods, None, reports=[worlds.report("n1", epoch=57)])
    assert known.epoch == 58
    known, _ = decide(nodes, pods, known, reports=[worlds.report("n1", epoch=58)])
    assert known.epoch == 58
    known, _ = decide(nodes, pods, known, reports=[worlds.report("n1", epoch=60), worlds.report("n2", epoch=1 << 60)])
    assert known.epoch == 61


def test_who_is_to_be_empty():
    spec = worlds.pool(drainNodes=["n2", "n9"]).spec
    assert spec is not None
    nodes = {"n1": worlds.node("n1"), "n3": worlds.node("n3", unschedulable=True)}
    assert membership.wishes(spec, nodes) == {"n2", "n3", "n9"}


NAMES = ["n1", "n2", "n3"]
POD = st.sampled_from([
    None, worlds.up("x"), worlds.up("x", ready=False), worlds.down("x"), worlds.up("x", terminating=True),
    worlds.up("x", address="10.9.9.9"),
])  # fmt: skip
WORLD = st.tuples(
    st.dictionaries(st.sampled_from(NAMES), st.booleans()),
    st.dictionaries(st.sampled_from(NAMES), POD),
    st.frozensets(st.sampled_from(NAMES)),
    st.floats(0, 100),
)


@given(st.lists(WORLD, min_size=1, max_size=6))
def test_the_epoch_rises_exactly_when_something_changed(worlds_seen: list[Any]):
    known, absent, now_s = None, {}, NOW_S
    for nodes, pods, leaving, pause_s in worlds_seen:
        now_s += pause_s
        there = {name: worlds.node(name, ready) for name, ready in nodes.items()}
        placed = [worlds.changed(pod, node=name) for name, pod in pods.items() if pod is not None]
        then, absent = decide(there, placed, known, leaving, absent=absent, now_s=now_s)
        if known is not None:
            assert then.epoch == known.epoch + (then.nodes != known.nodes)
            assert (then is known) is (then.nodes == known.nodes)
        # Deciding again from the same changes nothing.
        assert decide(there, placed, then, leaving, absent=absent, now_s=now_s)[0] is then
        for node in then.nodes:
            assert nodes.get(node.id) is not None
            assert nodes[node.id] or node.status == "gone"
            assert node.status != "ready" or node.id not in leaving
        known = then
