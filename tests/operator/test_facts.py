"""What is made of what the API server and the nodes say, and of what they do not say."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_operator import facts, names
from shoal_operator.model import DatasetReport, Node, NodeReport, Pod, PreloadReport, State
from tests.operator import worlds

STAMP = "2025-11-24T16:00:00Z"
STAMP_S = 1764000000.0


def ready(status: str) -> dict[str, Any]:
    return {"conditions": [{"type": "Other"}, {"type": "Ready", "status": status, "lastTransitionTime": STAMP}]}


def test_a_node():
    found = {
        "metadata": {"name": "n1", "labels": {"zone": "a"}},
        "spec": {"unschedulable": True, "taints": [{"key": "k", "effect": "NoSchedule", "timeAdded": STAMP}, "odd"]},
        "status": ready("True"),
    }
    taint = {"key": "k", "effect": "NoSchedule", "timeAdded": STAMP}
    assert facts.node(found) == Node("n1", True, STAMP_S, True, {"zone": "a"}, (taint,))
    assert facts.node({"metadata": {"name": "n1"}, "status": ready("Unknown")}) == Node("n1", False, STAMP_S)
    assert facts.node({}) == Node("", False, 0.0)


def test_a_pod_that_serves():
    found = {
        "metadata": {
            "name": "shoal-p-x", "uid": "u", "creationTimestamp": STAMP, "labels": {names.POOL_LABEL: "p"},
            "annotations": {names.TEMPLATE_HASH: "h", names.CAPACITY: "123"},
        },
        "spec": {
            "nodeName": "n1",
            "containers": [{"image": "i:1", "ports": [{"name": "data", "containerPort": 1}, {"containerPort": 2}]}],
        },
        "status": {**ready("True"), "podIP": "10.0.0.1", "containerStatuses": [{"state": {"running": {"a": 1}}}]},
    }  # fmt: skip
    assert facts.pod(found) == Pod(
        "shoal-p-x", "u", "n1", "10.0.0.1", STAMP_S, running=True, ready=True, ready_since_s=STAMP_S,
        template_hash="h", image="i:1", capacity_bytes=123, data_port=1,
    )  # fmt: skip
    assert facts.pool_of(found) == "p"
    assert facts.pool_of({}) is None
    assert facts.pod({}) == Pod("", "", "")


def container(state: Any, last: Any = None) -> dict[str, Any]:
    return {"status": {"containerStatuses": [{"state": state, "lastState": last or {}}]}}


@pytest.mark.parametrize(
    ("found", "running", "reason", "message"),
    [
        (container({"waiting": {"reason": "ContainerCreating"}}), False, "ContainerCreating", ""),
        (container({"waiting": {"reason": "ErrImagePull", "message": "no such"}}), False, "ErrImagePull", "no such"),
        (
            container(
                {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                {"terminated": {"reason": "Error", "message": "disk\nERROR not a mount"}},
            ),
            False, "CrashLoopBackOff", "disk\nERROR not a mount",
        ),
        (container({"running": {"x": 1}}, {"terminated": {"reason": "OOMKilled", "exitCode": 137}}), True,
         "OOMKilled", "it ended with exit code 137"),
        (container({"terminated": {"reason": "Error", "exitCode": 2}}), False, "Error", "it ended with exit code 2"),
        ({"status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                                     "message": "0/3 nodes"}]}}, False, "Unschedulable", "0/3 nodes"),
        ({"status": {"conditions": [{"type": "PodScheduled", "status": "True"}], "reason": "Evicted", "message": "m"}},
         False, "Evicted", "m"),
    ],
)  # fmt: skip
def test_why_a_pod_does_not_run(found: Any, running: bool, reason: str, message: str):
    pod = facts.pod(found)
    assert (pod.running, pod.reason, pod.message) == (running, reason, message)


def test_a_pod_that_ends():
    assert facts.pod({"metadata": {"deletionTimestamp": STAMP}}).terminating


def test_resources():
    metadata = {
        "name": "images", "namespace": "team-a", "uid": "u", "generation": 3, "creationTimestamp": STAMP,
        "deletionTimestamp": STAMP, "finalizers": ["shoal.dev/dataset"],
    }  # fmt: skip
    spec = {"pool": "p", "source": {"uri": "s3://b"}, "shiny": 1}
    found = facts.dataset({"metadata": metadata, "spec": spec, "status": {"objects": 1}})
    assert (found.name_on_nodes, found.generation, found.created_s, found.deleted_s) == (
        "team-a.images", 3, STAMP_S, STAMP_S,
    )  # fmt: skip
    assert found.finalizers == ("shoal.dev/dataset",) and found.status == {"objects": 1}
    assert (found.error, found.unknown) == ("", ("spec.shiny",)) and found.spec is not None
    broken = facts.pool({"metadata": {"name": "p"}, "spec": {"dram": {"budget": "x"}}})
    assert broken.spec is None and broken.error.startswith("spec.dram.budget: 'x'")
    assert facts.preload({}).error == "spec: expected object, got null"


@pytest.mark.parametrize("name", ["a.b", "A", "", "-a", "a" * 64])
def test_a_name_that_nodes_cannot_know(name: str):
    assert facts.dataset(worlds.custom(name, {"pool": "p", "source": {"uri": "s3://b"}})).error.startswith(
        "metadata.name"
    )
    assert facts.pool(worlds.custom(name, {"dram": {"budget": 1}})).spec is None


def test_a_report():
    status = {
        "version": "0.2.0", "view_epoch": 7, "draining": True, "clients": 2, "leases": 3, "pull_queue": 4,
        "cluster": {"view_error": "down"}, "tiers": {"dram": {"used_bytes": 5}, "disk": {"used_bytes": 6}},
        "granted_hits": 10, "reads": {"tcp": {"dram": 1, "disk": 2, "origin": 4}, "unix": {"dram": 3}},
        "fallbacks": {"o_direct": 1},
        "datasets": {"t.d": {
            "objects": 1, "bytes": 2**60 + 1, "manifest": "m", "scanned_at_s": 1.5, "generation": 3,
            "error": {"code": "NotFound", "message": "gone"}, "cached_bytes": 3, "hits": 4, "misses": 5,
        }, "t.e": {"error": None}},
        "preloads": {"t/w/r": {
            "state": "filling", "epoch": 7, "objects_scanned": 1, "objects_done": 2, "objects_failed": 3,
            "bytes_scanned": 4, "bytes_done": 5, "bytes_verified": 6, "bytes_owned": 7,
            "errors": ["a", {"code": "C", "message": "m"}, {"message": "n"}, 4, "e", "f"],
        }},
    }  # fmt: skip
    drain = {"refusing": True, "handover": {"draining": True, "done": True}}
    assert facts.report("n1", status, drain, 9.0) == NodeReport(
        "n1", 9.0, "0.2.0", 7, "down", draining=True, drained=True, clients=2, leases=3, used_bytes=6, hits=16,
        misses=4, pull_queue=4, fallbacks={"o_direct": 1},
        datasets={
            "t.d": DatasetReport("m", 3, 1, 2**60 + 1, 1.5, "NotFound", "gone", 3, 4, 5),
            "t.e": DatasetReport(),
        },
        preloads={"t/w/r": PreloadReport("filling", 7, 1, 2, 3, 4, 5, 6, 7, ("a", "C: m", "n", "4", "e"))},
    )  # fmt: skip
    assert facts.report("n1", {}, None, 9.0) == NodeReport("n1", 9.0)


@pytest.mark.parametrize(
    ("drain", "drained"),
    [
        ({"refusing": False, "handover": {"draining": True, "done": True}}, False),
        ({"refusing": True, "handover": {"draining": True, "done": False}}, False),
        ({"refusing": True, "handover": {"draining": False}}, True),
        ({"refusing": True}, True),
    ],
)
def test_when_a_node_is_drained(drain: Any, drained: bool):
    assert facts.report("n", {"draining": True}, drain, 1.0).drained is drained


def test_a_state():
    found = {"metadata": {"resourceVersion": "5"}, "data": {"view.json": "{}", "odd": 1}}
    assert facts.state(found) == State("5", {"view.json": "{}"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
NAMES = (
    "metadata spec status conditions containerStatuses state waiting labels taints tiers dram datasets preloads "
    "fallbacks reads cluster errors name bytes finalizers generation used_bytes"
)
KNOWN = st.sampled_from(NAMES.split(" "))
ODD = st.recursive(
    st.dictionaries(KNOWN, JSON), lambda inner: st.dictionaries(KNOWN, inner | st.lists(inner)), max_leaves=20
)


@settings(max_examples=40)
@given(ODD)
def test_nothing_is_raised_because_of_what_is_said(said: dict[str, Any]):
    for read in (facts.node, facts.pod, facts.pool, facts.dataset, facts.preload, facts.state, facts.pool_of):
        read(said)
    facts.report("n", said, said, 1.0)
