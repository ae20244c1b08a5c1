"""Where a Dataset stands, and when it may go."""

from typing import Any

import pytest

from shoal_operator import moments, plan, reporting
from shoal_operator.model import Dataset, DatasetObserved, DatasetPlan, DatasetReport, DatasetTotals, Event
from tests.operator import worlds
from tests.operator.worlds import NOW_S, SETTINGS, scanned, standing

FINALIZER = ["shoal.dev/dataset"]
KEPT = {"finalizers": FINALIZER}
SECRET = {"uri": "s3://bucket/images", "secretRef": {"name": "s3"}}


def totals(*said: Any) -> DatasetTotals:
    reports = [worlds.report(f"n{place}", datasets={"team-a.images": one}) for place, one in enumerate(said, 1)]
    return reporting.dataset_totals(reports).get("team-a.images", DatasetTotals())


def broken(code: str, message: str = "why", **fields: Any) -> DatasetReport:
    return DatasetReport(error_code=code, error_message=message, **fields)


def look(dataset: Dataset | None = None, **fields: Any) -> DatasetPlan:
    whole: dict[str, Any] = {"pool": worlds.pool(), "declared": True, "totals": totals(scanned()), **fields}
    return plan.dataset(
        DatasetObserved(now_s=NOW_S, settings=SETTINGS, dataset=dataset or worlds.dataset(meta=KEPT), **whole)
    )


def said(done: DatasetPlan) -> Any:
    assert done.status is not None
    return done.status


@pytest.mark.parametrize(
    ("dataset", "fields", "then", "message"),
    [
        ({}, {}, "R Ready", "4 objects, 1000"),
        ({}, {"totals": totals(scanned(objects=1, bytes=2048))}, "R Ready", "1 object, 2Ki"),
        ({"eviction": "LFU"}, {}, "s UnsupportedSpec",
         "spec.eviction: invalid enum value 'LFU'; operator 0.2.0 does not know it, a newer one may"),
        ({"shiny": 1}, {}, "Rs UnsupportedField",
         "4 objects, 1000; not known to operator 0.2.0 and left aside: spec.shiny"),
        ({"shiny": 1}, {"pool": None}, "s PoolNotFound", "not known to operator 0.2.0 and left aside: spec.shiny"),
        ({"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1}, {}, "Rs UnsupportedField", "spec.d, spec.e and 1 more"),
        ({}, {"pool": None}, "s PoolNotFound", "spec.pool: CachePool p does not exist"),
        ({}, {"pool": worlds.pool(meta=worlds.being_deleted("x"))}, "s PoolNotFound", "CachePool p is being deleted"),
        ({}, {"declared": False, "totals": totals()}, "c Declaring", "pool p is being told of it"),
        ({}, {"totals": totals()}, "c Scanning", "no node of pool p has spoken of it yet"),
        ({}, {"totals": totals(DatasetReport())}, "c Scanning", "s3://bucket/images is being listed"),
        ({"meta": {"generation": 2}}, {"totals": totals(scanned(generation=1))}, "c Scanning", "is being listed"),
        ({"meta": {"generation": 2}}, {"totals": totals(scanned(generation=2))}, "R Ready", ""),
        ({"source": SECRET}, {"secret_allowed": False}, "s CredentialsDenied",
         "pool p may not read secret s3; to allow that and nothing else: "
         "kubectl shoal grant dataset images -n team-a | kubectl apply -f -"),
        ({"source": SECRET}, {"totals": totals(broken("CredentialsDenied"))}, "s CredentialsDenied",
         "kubectl shoal grant"),
        ({"source": SECRET}, {"totals": totals(broken("CredentialsDenied")), "secret_allowed": True}, "c Scanning",
         "access to the secret was granted"),
        ({"source": SECRET}, {"secret_allowed": True}, "R Ready", ""),
        ({}, {"totals": totals(broken("CredentialsDenied"))}, "c Scanning", "is being listed"),
        ({"source": SECRET}, {"totals": totals(broken("SecretMissing"))}, "s SecretMissing",
         "there is no usable secret s3 in namespace team-a: n1: why"),
        ({"source": SECRET}, {"totals": totals(broken("CredentialsRejected"))}, "s CredentialsRejected",
         "s3://bucket/images refuses what secret s3 holds: n1: why"),
        ({}, {"totals": totals(broken("CredentialsRejected"))}, "s CredentialsRejected", "refuses to be read so"),
        ({"source": {"uri": "s3://b", "endpoint": "http://x"}}, {"totals": totals(broken("OriginUnreachable"))},
         "c OriginUnreachable", "s3://b at http://x does not answer; what is cached is still served: n1: why"),
        ({}, {"totals": totals(broken("NotFound"))}, "s NotFound", "there is nothing at s3://bucket/images"),
        ({}, {"totals": totals(broken("BadSource"))}, "s BadSource", "cannot be read"),
        ({}, {"totals": totals(broken("Novel"))}, "c OriginError", "s3://bucket/images: n1: why"),
        # The scan of a node that took over counts, not what the one before it said last.
        ({}, {"totals": totals(broken("NotFound", scanned_at_s=NOW_S - 60), scanned())}, "R Ready", ""),
        ({}, {"totals": totals(scanned(), broken("NotFound", scanned_at_s=NOW_S))}, "s NotFound", "n2: why"),
        ({"meta": {"generation": 2}}, {"totals": totals(broken("NotFound", generation=1))}, "c Scanning",
         "is being listed"),
        ({"meta": {"generation": 2}}, {"totals": totals(broken("NotFound", generation=2))}, "s NotFound", "n1: why"),
        ({}, {"totals": totals(scanned("unlisted", objects=0, bytes=0))}, "R Ready", "its origin gives no listing"),
        ({}, {"totals": totals(scanned(), broken("NotFound"))}, "s NotFound", "n2: why"),
    ],
)  # fmt: skip
def test_the_chain(dataset: Any, fields: Any, then: str, message: str):
    meta = {**KEPT, **dataset.pop("meta", {})}
    status = said(look(worlds.dataset(meta=meta, **dataset), **fields))
    assert standing(status) == then
    assert message in worlds.condition(status, "Ready")["message"]
    denied = worlds.condition(status, "CredentialsDenied")
    assert (denied["status"] == "True") is (then == "s CredentialsDenied")
    assert denied["message"] == (worlds.condition(status, "Ready")["message"] if "Denied" in then else "")


def test_there_may_be_no_spec():
    assert standing(said(look(worlds.facts.dataset(worlds.custom("images", None, meta=KEPT))))) == "s UnsupportedSpec"


def test_the_numbers():
    here = scanned(bytes=1000, cached_bytes=700, hits=9, misses=1)
    there = DatasetReport(cached_bytes=200, hits=0, misses=0)
    status = said(look(totals=totals(here, there)))
    told = {key: value for key, value in status.items() if key != "conditions"}
    assert told == {
        "objects": 4, "bytes": 1000, "size": "1000", "manifest": "m1", "lastScanTime": moments.shown(NOW_S - 5),
        "cachedBytes": 900, "cachedPercent": "90%", "hitRatio": "90.0%", "observedGeneration": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("replicas", "pool", "percent"),
    [
        (None, worlds.pool(replicas=2), "45%"),
        (1, worlds.pool(replicas=2), "90%"),
        (8, worlds.pool(), "45%"),
        (None, None, "90%"),
    ],
)
def test_the_share_that_is_cached_counts_copies(replicas: int | None, pool: Any, percent: str):
    spec = {} if replicas is None else {"replicas": replicas}
    seen = look(worlds.dataset(meta=KEPT, **spec), pool=pool, totals=totals(scanned(cached_bytes=900), DatasetReport()))
    assert said(seen)["cachedPercent"] == percent


def test_an_empty_data_set_has_no_share():
    assert "cachedPercent" not in said(look(totals=totals(scanned(bytes=0))))


# Pinned


def pinned(status: Any = None, manifest: str = "", generation: int = 1) -> Dataset:
    version = {"policy": "Pinned", **({"manifest": manifest} if manifest else {})}
    return worlds.dataset(status=status, meta={**KEPT, "generation": generation}, version=version)


@pytest.mark.parametrize(
    ("dataset", "then", "manifest"),
    [
        (pinned(manifest="m1"), "R Ready", "m1"),
        (pinned(manifest="m0"), "s VersionChanged", "m1"),
        (pinned(), "R Ready", "m1"),
        (pinned({"manifest": "m0", "observedGeneration": 1}), "s VersionChanged", "m0"),
        (pinned({"manifest": "m1", "observedGeneration": 1}), "R Ready", "m1"),
        (pinned({"manifest": "m0", "observedGeneration": 1}, generation=2), "R Ready", "m1"),
        (pinned({"manifest": "m0", "observedGeneration": 1}, manifest="m1"), "R Ready", "m1"),
    ],
)
def test_what_is_pinned(dataset: Dataset, then: str, manifest: str):
    status = said(look(dataset))
    assert standing(status) == then and status["manifest"] == manifest


# What does not change


def test_nothing_is_written_while_nothing_changes():
    first = said(look())
    again = look(worlds.dataset(status=first, meta=KEPT), patched_s=NOW_S)
    assert again == DatasetPlan()
    # A scan that found the same is not worth a patch, but for one now and then.
    later = totals(scanned(scanned_at_s=NOW_S + 500))
    assert look(worlds.dataset(status=first, meta=KEPT), totals=later).status is None
    late = totals(scanned(scanned_at_s=NOW_S + 600))
    assert said(look(worlds.dataset(status=first, meta=KEPT), totals=late))["lastScanTime"] == moments.shown(
        NOW_S + 600
    )
    soon = totals(scanned("m2", scanned_at_s=NOW_S + 1))
    assert said(look(worlds.dataset(status=first, meta=KEPT), totals=soon))["lastScanTime"] == moments.shown(NOW_S + 1)


def test_a_new_operator_keeps_what_was_known_until_nodes_answer():
    first = said(look(totals=totals(scanned(cached_bytes=5))))
    assert look(worlds.dataset(status=first, meta=KEPT), totals=totals()).status is None
    # But not of another spec.
    changed = worlds.dataset(status=first, meta={**KEPT, "generation": 2})
    assert standing(said(look(changed, totals=totals()))) == "c Scanning"


def test_it_recovers_by_itself_and_says_so():
    lost = look(totals=totals(broken("NotFound")))
    assert lost.events == (Event("Warning", "NotFound", "there is nothing at s3://bucket/images: n1: why"),)
    back = look(worlds.dataset(status=lost.status, meta=KEPT))
    assert standing(said(back)) == "R Ready"
    assert back.events == (Event("Normal", "Ready", "4 objects, 1000"),)


def test_numbers_wait_for_their_turn():
    first = said(look())
    more = totals(scanned(cached_bytes=100))
    waits = look(worlds.dataset(status=first, meta=KEPT), totals=more, patched_s=NOW_S - 2)
    assert waits == DatasetPlan(again_in_s=3.0)
    assert look(worlds.dataset(status=first, meta=KEPT), totals=more, patched_s=NOW_S - 5).status is not None


# Its end


def leaving(ago_s: float = 1.0) -> Dataset:
    return worlds.dataset(meta=worlds.being_deleted(FINALIZER[0], ago_s))


def test_it_gets_its_finalizer():
    assert look(worlds.dataset()).finalizers == ("shoal.dev/dataset",)
    assert look().finalizers is None


@pytest.mark.parametrize(
    ("fields", "ago_s", "goes"),
    [
        ({}, 1, False),
        ({"declared": False}, 1, False),
        ({"totals": totals()}, 1, False),
        ({"declared": False, "totals": totals()}, 1, True),
        ({}, 60, True),
        ({"pool": None}, 1, True),
    ],
)
def test_it_goes_when_the_nodes_dropped_it(fields: Any, ago_s: float, goes: bool):
    done = look(leaving(ago_s), **fields)
    if goes:
        assert done == DatasetPlan(finalizers=("example.org/other",))
    else:
        assert standing(said(done)) == "c Deleting" and done.again_in_s == plan.LOOK_AGAIN_S and done.finalizers is None


def test_what_others_still_hold_is_left_to_them():
    assert look(worlds.dataset(meta=worlds.being_deleted("example.org/mine"))) == DatasetPlan()


def test_which_pool_it_is_for():
    assert plan.pool_of_dataset(worlds.dataset()) == "p"
    assert plan.pool_of_dataset(worlds.dataset(eviction="odd")) == ""
