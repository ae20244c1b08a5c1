"""What is to be done for a pool: all decisions together."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from shoal_core import view
from shoal_operator import documents, plan, reporting
from shoal_operator.model import Order, Pod, Pool, PoolPlan, State, Update
from tests.operator import worlds
from tests.operator.worlds import NOW_S, changed, down, report, up

KEPT = {"finalizers": ["shoal.dev/pool"]}


def pool(**fields: Any) -> Pool:
    return worlds.pool(meta={**KEPT, **fields.pop("meta", {})}, **fields)


def pods(of: Pool, *names: str) -> tuple[Pod, ...]:
    return tuple(up(name, worlds.hash_of(of)) for name in names)


def state_after(planned: PoolPlan) -> State:
    assert planned.write_state is not None
    return State("42", planned.write_state["data"])


def statuses(planned: PoolPlan) -> str:
    assert planned.view is not None
    return f"{planned.view.epoch}: " + " ".join(f"{node.id}={node.status}" for node in planned.view.nodes)


def test_the_life_of_a_pool():
    fresh, nodes = worlds.pool(), worlds.nodes("n1", "n2")
    first = plan.pool(worlds.observed(fresh, objects={}, has_key=False, nodes=nodes))
    assert first.finalizers == ("shoal.dev/pool",) and first.make_key
    assert [one["kind"] for one in first.apply][-1] == "DaemonSet" and len(first.apply) == 6
    assert statuses(first) == "1: " and first.status is not None and first.again_in_s == plan.LOOK_AGAIN_S * 15
    kept = changed(fresh, finalizers=("shoal.dev/pool",), status=first.status)
    second = plan.pool(
        worlds.observed(kept, nodes=nodes, pods=pods(kept, "n1", "n2"), state=state_after(first), patched_s=NOW_S)
    )
    assert second.finalizers is None and not second.make_key and second.apply == ()
    assert statuses(second) == "2: n1=ready n2=ready"
    assert second.status is not None and worlds.standing(second.status) == "R Ready"
    done = changed(kept, status=second.status)
    seen = worlds.observed(done, nodes=nodes, pods=pods(done, "n1", "n2"), state=state_after(second))
    third = plan.pool(seen)
    assert third == PoolPlan(view=second.view)


def settled(of: Pool, **fields: Any) -> Any:
    """A pool of n1 and n2 at epoch 7."""
    assert of.spec is not None
    known = view.make(
        7,
        [view.Node(name, (f"tcp:10.0.0.{name[-1]}:7440",), of.spec.capacity_bytes) for name in ("n1", "n2")],
        of.spec.replicas,
    )
    whole = {
        "nodes": worlds.nodes("n1", "n2"), "pods": pods(of, "n1", "n2"),
        "state": worlds.state(of, known, fields.pop("update", None)), **fields,
    }  # fmt: skip
    return worlds.observed(of, **whole)


def test_a_cordoned_node_is_drained_and_told_so_until_it_says_that_it_does():
    of = pool()
    nodes = {"n1": worlds.node("n1", unschedulable=True), "n2": worlds.node("n2")}
    first = plan.pool(settled(of, nodes=nodes))
    assert statuses(first) == "8: n1=draining n2=ready"
    assert first.drain == (Order("n1", "10.0.0.1:7441"),) and first.stop_drain == ()
    drains = worlds.reports(report("n1", draining=True))
    busy = changed(pods(of, "n1")[0], ready=False)
    second = plan.pool(settled(of, nodes=nodes, state=state_after(first), pods=(busy, *pods(of, "n2")), reports=drains))
    assert second.view == first.view and second.drain == ()
    back = plan.pool(settled(of, state=state_after(first), pods=(busy, *pods(of, "n2")), reports=drains))
    assert statuses(back) == "9: n1=ready n2=ready"
    assert back.stop_drain == (Order("n1", "10.0.0.1:7441"),) and back.drain == ()
    assert back.memory.absent_since_s == {"n1": NOW_S} and back.again_in_s == plan.LOOK_AGAIN_S


@pytest.mark.parametrize(
    "odd",
    [
        {"terminating": True}, {"address": ""}, {"running": False, "ready": False},
    ],
)  # fmt: skip
def test_a_pod_that_cannot_hear_is_told_nothing(odd: Any):
    of = pool(drainNodes=["n1"])
    deaf = changed(pods(of, "n1")[0], **odd)
    assert plan.pool(settled(of, pods=(deaf, *pods(of, "n2")))).drain == ()


def test_ports_of_a_pod_are_its_own():
    of = pool(drainNodes=["n1"], ports={"control": 8000})
    one, other = pods(of, "n1", "n2")
    assert plan.pool(settled(of, pods=(changed(one, control_port=7441), other))).drain[0].address == "10.0.0.1:7441"
    assert plan.pool(settled(of, pods=(one, other))).drain[0].address == "10.0.0.1:8000"


def test_a_pool_without_a_disk_hands_over_one_node_after_the_other():
    of = pool(nvme=False)
    old = (up("n1", "old"), up("n2", "old"))
    first = plan.pool(settled(of, pods=old))
    assert statuses(first) == "8: n1=draining n2=ready" and first.delete_pods == ()
    assert [order.node for order in first.drain] == ["n1"]
    assert documents.update_of(state_after(first)) == Update("n1", "draining", "pod-n1", NOW_S, hands_over=True)
    drained = worlds.reports(report("n1", NOW_S + 5, draining=True, drained=True))
    second = plan.pool(settled(of, pods=old, state=state_after(first), reports=drained, now_s=NOW_S + 5))
    assert second.delete_pods == (("shoal-p-n1", "pod-n1"),) and second.view == first.view
    started = down("n1", uid="next", running=True, template_hash=worlds.hash_of(of), created_s=NOW_S + 6)
    third = plan.pool(settled(of, pods=(started, old[1]), state=state_after(second), reports=drained, now_s=NOW_S + 8))
    # The new pod is not told to drain though its node still owns nothing: it would never be ready.
    assert third.drain == () and third.view == first.view and third.again_in_s == plan.LOOK_AGAIN_S
    ready = changed(started, ready=True)
    fourth = plan.pool(settled(of, pods=(ready, old[1]), state=state_after(second), now_s=NOW_S + 10))
    assert statuses(fourth) == "9: n1=ready n2=ready" and fourth.delete_pods == ()
    update = documents.update_of(state_after(fourth))
    assert update is not None and update.phase == "settling"


def test_the_state_and_the_update_are_written_together():
    of = pool()
    first = plan.pool(settled(of, pods=(up("n1", "old"), *pods(of, "n2"))))
    assert first.delete_pods == (("shoal-p-n1", "pod-n1"),) and first.write_state is not None
    assert first.write_state["metadata"]["resourceVersion"] == "41"
    assert json.loads(first.write_state["data"]["operator.json"])["update"]["phase"] == "replacing"
    assert statuses(first) == "7: n1=ready n2=ready"  # its disk stays, so it does as well


def test_of_two_pools_on_one_path_the_younger_makes_nothing_and_changes_nothing():
    older = worlds.pool("older", meta={"creationTimestamp": "2025-01-01T00:00:00Z"})
    of = pool(meta={"creationTimestamp": "2025-06-01T00:00:00Z"})
    made = plan.pool(settled(of, pools=(older, of), objects={}, pods=(up("n1", "old"),)))
    assert made.apply == () and made.delete_pods == ()
    under_way = Update("n1", "replacing", "x", NOW_S)
    kept = plan.pool(settled(of, pools=(older, of), update=under_way))
    assert kept.write_state is None


def test_data_sets_and_preloads_are_told_to_the_nodes():
    of = pool()
    planned = plan.pool(settled(of, datasets=(worlds.dataset(),)))
    assert documents.declared(state_after(planned)) == {"team-a.images"}
    assert statuses(planned) == "7: n1=ready n2=ready"


# Its end


def leaving(ago_s: float = 10.0, **spec: Any) -> Pool:
    return worlds.pool(meta=worlds.being_deleted("shoal.dev/pool", ago_s), **spec)


def quiet(name: str, **fields: Any) -> Any:
    return report(name, **{"draining": True, "drained": True, **fields})


def test_a_pool_that_goes_in_the_middle_of_an_update_drains_that_node_too():
    of = leaving()
    going = plan.pool(settled(of, update=Update("n1", "replacing", "x", NOW_S)))
    assert {order.node for order in going.drain} == {"n1", "n2"}


def test_a_pool_that_goes_drains_first():
    planned = plan.pool(settled(leaving(), objects={}, has_key=False))
    assert statuses(planned) == "8: n1=draining n2=draining"
    assert [order.node for order in planned.drain] == ["n1", "n2"]
    assert planned.finalizers is None and planned.apply == () and not planned.make_key
    assert planned.status is not None and worlds.standing(planned.status) == "c Deleting"
    assert planned.again_in_s == plan.LOOK_AGAIN_S


@pytest.mark.parametrize(
    ("fields", "goes"),
    [
        ({"reports": worlds.reports(quiet("n1"), quiet("n2"))}, True),
        ({"reports": worlds.reports(quiet("n1"), quiet("n2", leases=1))}, False),
        ({"reports": worlds.reports(quiet("n1"), quiet("n2", drained=False))}, False),
        ({"reports": worlds.reports(quiet("n1"), quiet("n2", at_s=NOW_S - 11))}, False),
        ({"reports": worlds.reports(quiet("n1"))}, False),
        ({"reports": worlds.reports(quiet("n1")), "nodes": worlds.nodes("n1")}, True),
        (
            {"reports": worlds.reports(quiet("n1")), "nodes": {**worlds.nodes("n1"), "n2": worlds.node("n2", False)}},
            True,
        ),
        ({"pods": (down("n1"), up("n2", terminating=True))}, True),
        ({"pods": ()}, True),
    ],
)
def test_it_goes_when_nobody_reads_any_more(fields: Any, goes: bool):
    planned = plan.pool(settled(leaving(), **fields))
    assert planned.finalizers == (("example.org/other",) if goes else None)
    assert not goes or planned == PoolPlan(finalizers=("example.org/other",))


def test_it_goes_in_the_end_whoever_reads():
    assert plan.pool(settled(leaving(599))).finalizers is None
    assert plan.pool(settled(leaving(600))).finalizers is not None
    assert plan.pool(settled(leaving(5, drainTimeoutSeconds=5))).finalizers is not None


def test_a_pool_whose_spec_cannot_be_read_goes_as_well():
    broken = worlds.facts.pool(worlds.custom("p", {}, meta=worlds.being_deleted("shoal.dev/pool")))
    seen = worlds.PoolObserved(now_s=NOW_S, settings=worlds.SETTINGS, pool=broken)
    assert plan.pool(seen).finalizers == ("example.org/other",)
    assert plan.pool(changed(seen, pods=(up("n1"),), nodes=worlds.nodes("n1"))).finalizers is None


def test_what_others_still_hold_is_left_to_them():
    gone = worlds.pool(meta=worlds.being_deleted("example.org/mine"))
    assert plan.pool(settled(gone)) == PoolPlan()


def test_there_may_be_no_spec():
    none = worlds.facts.pool(worlds.custom("p", None, meta=KEPT))
    planned = plan.pool(worlds.PoolObserved(now_s=NOW_S, settings=worlds.SETTINGS, pool=none))
    assert planned.status is not None and worlds.standing(planned.status) == "s UnsupportedSpec"


def test_the_same_look_twice_decides_the_same():
    of = pool(nvme=False)
    seen = settled(of, pods=(up("n1", "old"), down("n2", template_hash="old")), reports=worlds.reports(report("n1")))
    assert plan.pool(seen) == plan.pool(seen)


def test_a_thousand_nodes_are_decided_on():
    of = pool()
    names = [f"n{number}" for number in range(1000)]
    nodes = worlds.nodes(*names)
    every = pods(of, *names)
    seen = worlds.observed(of, nodes=nodes, pods=every, reports={name: report(name) for name in names})
    first = plan.pool(seen)
    assert first.view is not None and len(first.view.nodes) == 1000
    again = plan.pool(changed(seen, state=state_after(first), pool=changed(of, status=first.status)))
    assert again == PoolPlan(view=first.view)


# What nodes say together


def test_totals_of_data_sets():
    said = [
        report("n2", datasets={"d": worlds.scanned("m2", scanned_at_s=2.0, cached_bytes=1, hits=2, misses=3)}),
        report("n1", datasets={"d": worlds.scanned("m1", scanned_at_s=1.0, cached_bytes=1, hits=2, misses=3)}),
        report("n3", datasets={"e": msgspec.structs.replace(worlds.scanned(""), error_code="X", error_message="y")}),
    ]
    totals = reporting.dataset_totals(said)
    assert totals["d"].scan.manifest == "m2" and totals["d"].nodes == {"n1", "n2"}
    assert (totals["d"].cached_bytes, totals["d"].hits, totals["d"].misses, totals["d"].error_code) == (2, 4, 6, "")
    assert (totals["e"].error_code, totals["e"].error_message, totals["e"].scan.manifest) == ("X", "n3: y", "")
