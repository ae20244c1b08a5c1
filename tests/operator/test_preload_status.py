"""Where a Preload stands: runs, their progress, and when one is complete."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shoal_operator import moments, plan
from shoal_operator.model import (
    DatasetReport,
    Event,
    Preload,
    PreloadMemory,
    PreloadObserved,
    PreloadPlan,
    PreloadReport,
)
from tests.operator import worlds
from tests.operator.worlds import NOW_S, done, standing, view_of

READY = {
    "bytes": 1000,
    "manifest": "m1",
    "lastScanTime": moments.shown(NOW_S - 60),
    "conditions": [{"type": "Ready", "status": "True", "reason": "Ready"}],
}
HOURLY = {"policy": "Cron", "schedule": "0 * * * *"}


def look(preload: Preload, said: Any = None, **fields: Any) -> PreloadPlan:
    """`said`: what nodes report of the run that the status names, by node."""
    run = preload.status.get("run")
    task = f"team-a/warm/{run}"
    reports = {name: worlds.report(name, preloads={task: one}) for name, one in (said or {}).items()}
    whole: dict[str, Any] = {
        "dataset": worlds.dataset(status=READY),
        "pool": worlds.pool(),
        "view": view_of("n1", "n2"),
        "reports": reports,
        "version": "0.2.0",
        **fields,
    }
    return plan.preload(PreloadObserved(**{"now_s": NOW_S, "preload": preload, **whole}))


def started(**spec: Any) -> Preload:
    """One whose run has begun a minute ago."""
    first = look(worlds.preload(**spec), now_s=NOW_S - 60)
    assert first.status is not None and first.status["phase"] == "Listing"
    return worlds.preload(status=first.status, **spec)


def status_of(planned: PreloadPlan) -> Any:
    assert planned.status is not None
    return planned.status


def follow(preload: Preload, planned: PreloadPlan, **spec: Any) -> Preload:
    return msgspec.structs.replace(preload, status=status_of(planned))


def message(status: Any, kind: str = "Ready") -> str:
    return worlds.condition(status, kind)["message"]


def test_it_begins():
    planned = look(worlds.preload())
    status = status_of(planned)
    assert standing(status) == "c Listing" and status["phase"] == "Listing"
    assert status["startTime"] == moments.shown(NOW_S) and status["run"].endswith("-1")
    assert (status["progress"], status["bytesTotal"], status["errors"]) == ("0%", 0, [])
    assert planned.events == (Event("Normal", "Listing", "the nodes are being told"),)


@pytest.mark.parametrize(
    ("dataset", "then", "text"),
    [
        (None, "s DatasetNotFound", "spec.dataset: Dataset team-a/images does not exist"),
        (worlds.dataset(meta=worlds.being_deleted("x")), "s DatasetNotFound", "is being deleted"),
        (worlds.dataset(), "c DatasetNotReady", "Dataset team-a/images is not ready: nothing is known of it yet"),
        (worlds.dataset(status={"conditions": [{"type": "Ready", "status": "False", "reason": "Scanning"}]}),
         "c DatasetNotReady", "is not ready: Scanning"),
    ],
)  # fmt: skip
def test_it_waits_for_its_data_set(dataset: Any, then: str, text: str):
    status = status_of(look(worlds.preload(), dataset=dataset))
    assert standing(status) == then and text in message(status)
    assert status["phase"] == "Pending" and not {"run", "startTime", "progress"} & set(status)
    # One that is under way goes on.
    assert status_of(look(started(), dataset=dataset))["phase"] == "Listing"


def test_a_spec_that_cannot_be_used():
    status = status_of(look(worlds.preload(policy="Twice")))
    assert standing(status) == "s UnsupportedSpec" and status["phase"] == "Pending"
    assert standing(status_of(look(worlds.facts.preload(worlds.custom("warm", None))))) == "s UnsupportedSpec"
    assert standing(status_of(look(worlds.preload(shiny=1)))) == "s Listing"
    wrong = status_of(look(worlds.preload(policy="Cron", schedule="61 * * * *")))
    assert standing(wrong) == "s InvalidSchedule"
    assert message(wrong) == "spec.schedule: minute: '61' is not within 0-59"


@pytest.mark.parametrize("known", [None, view_of(), view_of("n1", status="gone"), view_of("n1", status="draining")])
def test_a_pool_that_owns_nothing(known: Any):
    assert standing(status_of(look(started(), view=known))) == "c PoolNotReady"


@pytest.mark.parametrize(
    ("n1", "n2", "phase", "text"),
    [
        (done(), None, "Filling", "waits for the first word of n2"),
        (None, None, "Listing", "waits for the first word of n1, n2"),
        (PreloadReport("listing", 1), done(), "Listing", "1 of 2 nodes at work: n1"),
        (PreloadReport("filling", 1), PreloadReport("verifying", 1), "Filling", "2 of 2 nodes at work: n1, n2"),
        (PreloadReport("verifying", 1), done(), "Verifying", "1 of 2 nodes at work: n1"),
        (PreloadReport("verifying", 1), PreloadReport("failed", 1), "Verifying", "1 of 2 nodes at work: n1"),
        (done(), done(epoch=0), "Filling", "1 of 2 nodes at work: n2"),
        (done(), done(), "Complete", "4 objects, 1000, verified"),
        (done(600), done(400), "Complete", "4 objects, 1000, verified"),
        (done(), done(0), "Verifying",
         "the nodes have listed 500 bytes, and the data set has 1000, copies counted; the next"),
        (done(), done(bytes_verified=499), "Failed", "n2 is done with 499 of the 500 bytes that it owns"),
        (done(), done(objects_failed=1), "Failed", "on n2: 1 objects could not be brought"),
        (done(), PreloadReport("failed", 1, errors=("NotFound: a",)), "Failed", "on n2: n2: NotFound: a"),
    ],
)  # fmt: skip
def test_phases(n1: PreloadReport | None, n2: PreloadReport | None, phase: str, text: str):
    said = {name: one for name, one in (("n1", n1), ("n2", n2)) if one is not None}
    if phase == "Filling" and n2 is None:
        said["n1"] = PreloadReport("filling", 1)
    status = status_of(look(started(), said))
    assert status["phase"] == phase and text in message(status)
    letter = {"Complete": "R", "Failed": "s"}.get(phase, "c")
    assert standing(status) == f"{letter} {phase}"
    assert worlds.condition(status, "Complete")["status"] == str(phase == "Complete")
    assert worlds.condition(status, "Failed")["status"] == str(phase == "Failed")
    assert ("completionTime" in status) is (phase in ("Complete", "Failed"))
    assert (status["progress"] == "100%") is (phase == "Complete")


def test_nodes_that_own_nothing_are_not_waited_for():
    known = worlds.view.make(1, [*view_of("n1").nodes, *view_of("n2", status="draining").nodes])
    assert status_of(look(started(), {"n1": done(1000)}, view=known))["phase"] == "Complete"


def test_without_verifying_what_was_brought_counts():
    said = {"n1": done(bytes_verified=0), "n2": done(bytes_verified=0)}
    status = status_of(look(started(verify=False), said))
    assert status["phase"] == "Complete" and message(status) == "4 objects, 1000, there"
    assert status_of(look(started(), said))["phase"] == "Failed"


@pytest.mark.parametrize(
    ("owned", "spec_replicas", "view_replicas", "phase"),
    [
        ((1000, 1000), None, 2, "Complete"),
        ((1000, 1000), 2, 1, "Complete"),
        ((1000, 1000), 8, 1, "Complete"),  # no more copies than nodes
        ((500, 500), None, 2, "Verifying"),
        ((1000, 999), None, 2, "Verifying"),
    ],
)
def test_copies(owned: tuple[int, int], spec_replicas: int | None, view_replicas: int, phase: str):
    spec = {} if spec_replicas is None else {"replicas": spec_replicas}
    said = {"n1": done(owned[0]), "n2": done(owned[1])}
    known = view_of("n1", "n2", replicas=view_replicas)
    status = status_of(look(started(), said, view=known, dataset=worlds.dataset(status=READY, **spec)))
    assert status["phase"] == phase
    assert phase != "Complete" or message(status).endswith("verified, 2 copies each")


def test_of_some_paths_only_the_copies_can_be_told():
    known = view_of("n1", "n2", replicas=2)
    paths = started(paths=["a/"])
    assert status_of(look(paths, {"n1": done(30), "n2": done(30)}, view=known))["phase"] == "Complete"
    odd = status_of(look(paths, {"n1": done(30), "n2": done(31)}, view=known))
    assert odd["phase"] == "Failed" and message(odd).startswith("the nodes have listed 61 bytes")


def test_of_a_data_set_that_is_gone_nobody_knows_the_size():
    known = view_of("n1", "n2", replicas=2)
    assert status_of(look(started(), {"n1": done(9), "n2": done(9)}, dataset=None, view=known))["phase"] == "Complete"
    assert status_of(look(started(), {"n1": done(9)}, dataset=None))["bytesTotal"] == 0


def test_of_an_origin_that_gives_no_listing_nobody_knows_the_size():
    plain = worlds.dataset(status={**READY, "bytes": 0, "manifest": "unlisted"})
    assert status_of(look(started(), {"n1": done(9), "n2": done(9)}, dataset=plain))["phase"] == "Complete"


def test_the_next_scan_tells_whether_the_origin_changed_or_the_nodes_are_wrong():
    preload = started()
    task = f"team-a/warm/{preload.status['run']}"

    def with_scan(size: int, at_s: float) -> Any:
        scan = {"team-a.images": worlds.scanned("m2", bytes=size, scanned_at_s=at_s), "other": DatasetReport()}
        said = {"n1": done(), "n2": done(600)}
        reports = {name: worlds.report(name, preloads={task: one}) for name, one in said.items()}
        reports["n3"] = worlds.report("n3", datasets=scan)
        return status_of(look(preload, reports=reports))

    assert with_scan(1100, NOW_S - 1)["phase"] == "Complete"
    assert with_scan(1000, NOW_S - 61)["phase"] == "Verifying"
    failed = with_scan(1000, NOW_S - 1)
    assert failed["phase"] == "Failed" and message(failed).endswith("it has changed meanwhile")


def test_how_it_ends_is_kept():
    preload = started()
    complete = follow(preload, look(preload, {"n1": done(), "n2": done()}))
    assert look(complete, now_s=NOW_S + 100).status is None
    assert look(complete, dataset=None, now_s=NOW_S + 100).status is None
    assert look(complete, now_s=NOW_S + 100).memory == PreloadMemory()


def test_a_failure_is_tried_again_and_recovers():
    preload = started()
    planned = look(preload, {"n1": done(), "n2": PreloadReport("failed", 1, errors=("x",))})
    assert planned.events == (Event("Warning", "Failed", "on n2: n2: x"),)
    failed = follow(preload, planned)
    assert look(failed, now_s=NOW_S + 10) == PreloadPlan(again_in_s=20.0)
    # It stays failed while the data set is not ready.
    assert look(failed, dataset=worlds.dataset(), now_s=NOW_S + 31).status is None
    again = look(failed, now_s=NOW_S + 31)
    assert status_of(again)["run"].endswith("-2") and status_of(again)["phase"] == "Listing"
    assert "completionTime" not in status_of(again)
    assert worlds.condition(status_of(again), "Failed")["status"] == "False"
    second = follow(preload, again)
    assert standing(status_of(look(second, {"n1": done(), "n2": done()}, now_s=NOW_S + 40))) == "R Complete"


def test_suspended_and_resumed():
    never = status_of(look(worlds.preload(suspend=True)))
    assert standing(never) == "- Suspended" and never["phase"] == "Suspended" and "run" not in never
    preload = started()
    paused = worlds.preload(status=preload.status, suspend=True)
    status = status_of(look(paused, {"n1": done()}))
    assert status["phase"] == "Suspended" and status["run"] == preload.status["run"]
    assert status["startTime"] == preload.status["startTime"]
    resumed = worlds.preload(status=status)
    going = status_of(look(resumed))
    assert going["phase"] == "Listing" and going["run"] == preload.status["run"]
    complete = follow(preload, look(preload, {"n1": done(), "n2": done()}))
    assert look(worlds.preload(status=complete.status, suspend=True)).status is None


def test_a_schedule():
    stamp = moments.shown(NOW_S - 600)
    waits = look(worlds.preload(meta={"creationTimestamp": stamp}, **HOURLY), now_s=NOW_S - 60)
    status = status_of(waits)
    assert standing(status) == "- Scheduled" and message(status) == f"the next run is at {moments.shown(NOW_S)}"
    assert status["nextScheduleTime"] == moments.shown(NOW_S) and waits.again_in_s == 60.0
    begun = look(worlds.preload(status=status, meta={"creationTimestamp": stamp}, **HOURLY))
    assert status_of(begun)["phase"] == "Listing" and begun.again_in_s == 3600.0
    assert status_of(begun)["nextScheduleTime"] == moments.shown(NOW_S + 3600)


def test_on_change_waits_for_the_first_manifest():
    status = status_of(look(worlds.preload(policy="OnChange"), dataset=None))
    assert standing(status) == "- Scheduled" and message(status) == "nothing is due"


def test_rate_and_what_is_left():
    preload, memory = started(), PreloadMemory()

    def at(pause_s: float, brought: int) -> Any:
        nonlocal memory
        said = {"n1": PreloadReport("filling", 1, 2, 1, 0, 500, brought, 0, 500), "n2": PreloadReport("listing", 1)}
        planned = look(preload, said, now_s=NOW_S + pause_s, memory=memory)
        memory = planned.memory
        return status_of(planned)

    first = at(0, 0)
    assert "rate" not in first and first["bytesTotal"] == 1000 and first["progress"] == "0%"
    assert "rate" not in at(1, 50)
    second = at(10, 100)
    assert (second["rate"], second["eta"], second["progress"]) == ("10/s", "1m30s", "10%")
    assert second["bytesDone"] == 100 and second["objectsScanned"] == 2
    for pause_s in range(20, 100, 10):
        at(pause_s, 100)
    assert "rate" not in at(100, 100) and len(memory.marks) == 7  # nothing came for a minute
    at(110, 50)  # a node began again
    assert memory.marks == ((NOW_S + 110, 50),)
    at(100, 60)  # the clock was set back
    assert memory.marks == ((NOW_S + 100, 60),)
    assert at(110, 2000)["progress"] == "99%" and "eta" not in at(111, 2000)
    assert look(preload, {"n1": done(), "n2": done()}, memory=PreloadMemory("other", ((1, 2),))).memory.marks == (
        (NOW_S, 1000),
    )


def test_it_is_deleted_when_its_time_is_over():
    preload = started(ttlSecondsAfterFinished=60)
    complete = follow(preload, look(preload, {"n1": done(), "n2": done()}))
    assert look(complete, now_s=NOW_S + 59) == PreloadPlan(again_in_s=1.0)
    assert look(complete, now_s=NOW_S + 60) == PreloadPlan(delete=True)
    assert look(worlds.preload(meta=worlds.being_deleted("x"))) == PreloadPlan()


def test_numbers_wait_for_their_turn_and_phases_do_not():
    preload = started()
    filling = {"n1": PreloadReport("filling", 1, bytes_done=10), "n2": PreloadReport("filling", 1)}
    first = follow(preload, look(preload, filling))
    more = {**filling, "n2": PreloadReport("filling", 1, bytes_done=10)}
    assert look(first, more, patched_s=NOW_S - 1).again_in_s == 4.0
    assert look(first, {"n1": done(), "n2": done()}, patched_s=NOW_S - 1).status is not None
