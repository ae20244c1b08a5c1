"""Where a CachePool stands, as its status says it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shoal_core import view
from shoal_operator import conditions, plan
from shoal_operator.model import Event, Pod, PoolPlan, Update
from tests.operator import worlds
from tests.operator.worlds import NOW_S, down, report, standing, up

KEPT = {"finalizers": ["shoal.dev/pool"]}
N3 = ("n1", "n2", "n3")


def look(
    *pods: Pod, spec: Any = None, status: Any = None, nodes: Any = None, members: Any = N3, **fields: Any
) -> PoolPlan:
    """A pool whose view has `members`; pods of template "new" are as they are to be."""
    pool = worlds.pool(status=status, meta={**KEPT, **fields.pop("meta", {})}, **(spec or {}))
    current = worlds.hash_of(pool) if pool.spec is not None else "new"
    hashed = [worlds.changed(pod, template_hash=current) if pod.template_hash == "new" else pod for pod in pods]
    update = fields.pop("update", None)
    known = view.make(5, [*_members(members)], pool.spec.replicas if pool.spec is not None else 1)
    whole: dict[str, Any] = {
        "pods": tuple(hashed),
        "nodes": nodes if nodes is not None else worlds.nodes(*N3),
        "state": worlds.state(pool, known, update),
        **fields,
    }
    seen = worlds.observed(pool, **whole) if pool.spec is not None else _bare(pool, whole)
    return plan.pool(seen)


def _members(names: Any) -> Any:
    given = names if isinstance(names, dict) else dict.fromkeys(names, "ready")
    return [
        view.Node(name, (f"tcp:10.0.0.{name[-1]}:7440",), 100 << 30, status=status) for name, status in given.items()
    ]


def _bare(pool: Any, whole: Any) -> Any:
    return worlds.PoolObserved(now_s=NOW_S, settings=worlds.SETTINGS, pool=pool, **whole)


def said(done: PoolPlan) -> Any:
    assert done.status is not None
    return done.status


def message(status: Any, kind: str = "Ready") -> str:
    return worlds.condition(status, kind)["message"]


ALL = [up(name) for name in N3]
TAINTED = {"taints": ({"key": "gpu", "effect": "NoSchedule"},)}
CRASHED = "Traceback\n  ...\nERROR nvme[0].directory: /mnt/cache is not a mount\n"


@pytest.mark.parametrize(
    ("pods", "fields", "then", "text"),
    [
        (ALL, {}, "R Ready", "3 nodes serve"),
        ([up("n1")], {"nodes": worlds.nodes("n1"), "members": ["n1"]}, "R Ready", "1 node serves"),
        (ALL, {"spec": {"shiny": 1}}, "Rs UnsupportedField", "3 nodes serve; not known to operator 0.2.0"),
        ([], {"nodes": {}, "members": []}, "s NoMatchingNodes",
         "no node has only taints that spec.tolerations puts up with"),
        ([],
         {"nodes": {"n1": worlds.node("n1", **TAINTED)}, "members": [], "spec": {"nodeSelector": {"a": "b", "c": "d"}}},
         "s NoMatchingNodes", "no node has the labels a=b, c=d and only taints"),
        ([], {"members": []}, "c PodsNotReady", "0 of 3 nodes ready: n1: has no pod yet; n2: has no pod yet; n3:"),
        ([up("n1"), up("n2"), up("n3", ready=False)], {}, "c PodsNotReady",
         "2 of 3 nodes ready: n3: its pod is not ready"),
        ([up("n1"), up("n2"), up("n3", terminating=True)], {}, "c PodsNotReady", "n3: pod shoal-p-n3 ends"),
        ([up("n1"), up("n2"), down("n3", "ContainerCreating", created_s=NOW_S - 20)], {}, "c PodsNotReady",
         "n3: ContainerCreating"),
        ([up("n1"), up("n2"), down("n3", "ContainerCreating", created_s=NOW_S - 21)], {}, "c PodsNotReady",
         "n3: ContainerCreating: a volume is missing: is /mnt/cache a directory there?"),
        ([up("n1"), up("n2"), down("n3", "CrashLoopBackOff", CRASHED)], {}, "s CrashLoopBackOff",
         "2 of 3 nodes ready: n3: CrashLoopBackOff: ERROR nvme[0].directory: /mnt/cache is not a mount"),
        ([up("n1"), down("n2"), down("n3", "ErrImagePull", "no such image")], {}, "s ErrImagePull",
         "1 of 3 nodes ready: n3: ErrImagePull: no such image; n2: its pod is not ready"),
        ([*ALL[:2], down("", "Unschedulable", "0/3 nodes: no memory")], {}, "s Unschedulable",
         "pod shoal-p-: Unschedulable: 0/3 nodes: no memory; n3: has no pod yet"),
        ([*ALL[:2], down("")], {}, "c PodsNotReady", "pod shoal-p-: waits for the scheduler"),
        (ALL, {"nodes": {**worlds.nodes("n1", "n2"), "n3": worlds.node("n3", False)}}, "c NodesNotReady",
         "2 of 3 nodes ready: n3: Kubernetes calls the node NotReady"),
        ([up("n1"), down("n2")], {"nodes": {**worlds.nodes("n1", "n2"), "n3": worlds.node("n3", False)}},
         "c PodsNotReady",
         "n2: its pod is not ready; n3: Kubernetes calls"),
        # What is out on purpose does not make the pool less than it is to be.
        ([up("n1"), up("n2"), up("n3", ready=False)], {"spec": {"drainNodes": ["n3", "n9"]}}, "R Draining",
         "2 of 3 nodes ready; empty or being emptied: n3"),
        ([up(name, ready=False) for name in N3], {"spec": {"drainNodes": list(N3)}}, "- Draining",
         "0 of 3 nodes ready"),
        ([up("n1", "old"), up("n2"), up("n3")], {}, "Rc Updating", "2 of 3 nodes up to date; n1 is replaced"),
        ([up("n1", "old"), up("n2"), up("n3")], {"spec": {"nvme": False}}, "Rc Updating", "n1 hands its blocks over"),
        ([up("n1", "old"), up("n2"), up("n3", ready=False)], {}, "c PodsNotReady", "n3: its pod is not ready"),
        ([up("n1", "old"), up("n2"), up("n3")], {"spec": {"updateStrategy": {"type": "OnDelete"}}}, "R UpdateWaits",
         "2 of 3 nodes up to date; spec.updateStrategy is OnDelete: delete the others' pods"),
        ([up("n1", "old"), up("n2"), up("n3", terminating=True, ready=False)],
         {"nodes": {**worlds.nodes("n1", "n2"), "n3": worlds.node("n3", **TAINTED)}}, "Rc Updating",
         "1 of 2 nodes up to date"),
        ([up("n1", uid="next"), up("n2"), up("n3")], {"update": Update("n1", "settling", "pod-n1", NOW_S)},
         "Rc Updating",
         "3 of 3 nodes up to date; n1 gets its share back"),
        ([down("n1", uid="next"), up("n2"), up("n3")], {"update": Update("n1", "replacing", "pod-n1", NOW_S)},
         "Rc Updating",
         "2 of 3 nodes up to date; n1 is replaced"),
        ([down("n1", "ErrImagePull", "no", uid="next"), up("n2"), up("n3")],
         {"update": Update("n1", "replacing", "pod-n1", NOW_S)}, "s ErrImagePull",
         "n1 is replaced; n1: ErrImagePull: no"),
    ],
)  # fmt: skip
def test_the_chain(pods: list[Pod], fields: Any, then: str, text: str):
    status = said(look(*pods, **fields))
    assert standing(status) == then
    assert text in message(status)


def test_an_update_that_waits_says_for_whom():
    lost = worlds.node("n3", False, since_s=NOW_S)
    waits = look(up("n1", "old"), up("n2"), nodes={**worlds.nodes("n1", "n2"), "n3": lost})
    assert standing(said(waits)) == "c NodesNotReady"
    assert message(said(waits)).endswith("n3: Kubernetes calls the node NotReady; the update waits for that")
    assert waits.again_in_s == plan.LOOK_AGAIN_S


def test_an_old_pod_that_ends_by_itself_is_waited_for():
    ends = up("n3", "old", terminating=True, ready=False)
    status = said(look(up("n1"), up("n2"), ends, spec={"drainNodes": ["n3"]}))
    assert standing(status) == "Rc Updating" and message(status) == "2 of 3 nodes up to date"


def test_a_path_that_an_older_pool_has():
    older = worlds.pool("older", meta={"creationTimestamp": "2025-01-01T00:00:00Z"})
    status = said(look(pools=(older,), members=[]))
    assert standing(status) == "s PathConflict"
    assert message(status).startswith("spec.nvme[0].path /mnt/cache is used by the older pool older as well")


def test_a_spec_that_means_nothing_leaves_what_runs_alone():
    before = said(look(*ALL))
    done = look(*ALL, spec={"dram": {"budget": "much"}}, status=before, meta={"generation": 2})
    assert standing(said(done)) == "s UnsupportedSpec" and said(done)["nodes"] == "3/3"
    assert message(said(done)).startswith("spec.dram.budget: 'much' is not a size")
    assert done.write_state is None and done.apply == () and done.view is not None
    assert [event.type for event in done.events] == ["Warning"]
    again = look(*ALL, spec={"dram": {"budget": "much"}}, status=said(done), meta={"generation": 2})
    assert again.status is None and again.events == ()


def test_the_numbers():
    reports = worlds.reports(
        report("n1", version="0.2.0", used_bytes=3 << 30, hits=973, misses=27),
        report("n2", version="0.1.0", used_bytes=1 << 30),
        report("n9", used_bytes=1 << 40),
    )
    status = said(look(*ALL, up("n9"), reports=reports))
    assert {key: value for key, value in status.items() if key != "conditions"} == {
        "nodesReady": 3, "nodesTotal": 3, "nodes": "3/3", "updatedNodes": 3, "capacityBytes": 300 << 30,
        "capacity": "300Gi", "usedBytes": 4 << 30, "used": "4Gi", "hitRatio": "97.3%", "viewEpoch": 5,
        "image": "registry.example/shoal:1", "version": "0.1.0, 0.2.0", "observedGeneration": 1,
    }  # fmt: skip


def test_what_only_nodes_know_stays_until_they_answer_a_new_operator():
    first = said(look(*ALL, reports=worlds.reports(report("n1", used_bytes=5, hits=1, version="1"))))
    after = look(*ALL, status=first)
    assert after.status is None
    assert said(look(*ALL))["usedBytes"] == 0 and "hitRatio" not in said(look(*ALL))
    # What a pod that is gone said does not count.
    old = worlds.reports(report("n1", NOW_S - 5000, used_bytes=5))
    assert said(look(*ALL, reports=old))["used"] == "0"


def test_what_is_second_best_is_said():
    degraded = lambda done: worlds.condition(said(done), "Degraded")  # noqa: E731
    assert degraded(look(*ALL))["status"] == "False"
    slow = worlds.reports(report("n1", fallbacks={"o_direct": 1}))
    done = look(*ALL, reports=slow)
    assert degraded(done)["reason"] == "Fallbacks"
    assert degraded(done)["message"].startswith("o_direct on n1 (a disk tier")
    assert [event.reason for event in done.events] == ["Ready", "Fallbacks"]
    blind = worlds.reports(report("n1", view_error="connection refused", fallbacks={"o_direct": 1}), report("n2"))
    found = degraded(look(*ALL, reports=blind))
    assert found["reason"] == "ViewNotFollowed"
    assert found["message"].startswith("n1 does not see the view: connection refused; o_direct on n1")


def test_what_rose_is_told_and_looked_at_again_until_it_is_forgotten():
    rose = worlds.reports(report("n1", fallbacks={"bypass": 2}))
    first = look(*ALL, reports=worlds.reports(report("n1", NOW_S - 5, fallbacks={"bypass": 1})))
    assert [event.reason for event in first.events] == ["Ready"] and first.again_in_s is None
    then = look(*ALL, reports=rose, memory=first.memory, status=said(first))
    assert [event.message.partition(" (")[0] for event in then.events] == ["bypass on n1", "n1: bypass +1"]
    assert then.again_in_s == plan.LOOK_AGAIN_S * 15
    later = msgspec.structs.replace
    assert later(then, memory=then.memory).memory.fallbacks["n1", "bypass"].rose_s == NOW_S


def test_ready_comes_and_goes_by_itself_and_each_time_there_is_an_event():
    first = look(*ALL)
    assert first.events == (Event("Normal", "Ready", "3 nodes serve"),)
    lost = look(*ALL[:2], down("n3", "CrashLoopBackOff"), status=said(first))
    assert [event.type for event in lost.events] == ["Warning"]
    back = look(*ALL, status=said(lost), patched_s=NOW_S)
    assert standing(said(back)) == "R Ready" and conditions.is_true(said(back), "Ready")
    assert look(*ALL, status=said(back)).status is None
