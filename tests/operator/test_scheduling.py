"""Which run of a preload is due."""

from typing import Any

import pytest

from shoal_core.errors import ConfigError
from shoal_operator import moments, scheduling
from shoal_operator.model import Preload
from tests.operator import worlds
from tests.operator.worlds import NOW_S

HOURLY = {"policy": "Cron", "schedule": "0 * * * *"}
AT_16 = 1_764_000_000.0
assert moments.shown(AT_16) == "2025-11-24T16:00:00Z"


def due(preload: Preload, manifest: str = "m1", now_s: float = NOW_S) -> scheduling.Due:
    assert preload.spec is not None
    return scheduling.due(preload, preload.spec, manifest, now_s)


def after(run: str, phase: str, ended_s: float = NOW_S, **spec: Any) -> Preload:
    ended = {"completionTime": moments.shown(ended_s)} if phase in scheduling.FINAL else {}
    return worlds.preload(status={"run": run, "phase": phase, **ended}, **spec)


def first(manifest: str = "m1", now_s: float = NOW_S, **spec: Any) -> str:
    said = due(worlds.preload(**spec), manifest, now_s)
    assert said.is_new and said.run.endswith("-1")
    return said.run


def test_once_is_once():
    run = first()
    assert first() == run  # a restarted operator arrives at the same
    assert due(after(run, "Filling")) == scheduling.Due(run)
    assert due(after(run, "Complete")) == scheduling.Due(run, is_over=True)
    assert due(after(run, "Complete"), "m2") == scheduling.Due(run, is_over=True)


def test_another_of_the_same_name_begins_anew():
    assert first() != first(meta={"uid": "another"})


@pytest.mark.parametrize(
    ("change", "is_new"),
    [
        ({"paths": ["a/"]}, True),
        ({"verify": False}, True),
        ({"bytesPerSecond": "1Gi"}, False),
        ({"suspend": False}, False),
    ],
)
@pytest.mark.parametrize("phase", ["Filling", "Complete", "Failed"])
def test_what_is_to_be_brought_decides(change: Any, is_new: bool, phase: str):
    assert due(after(first(), phase, **change)).is_new is is_new


def test_a_run_that_failed_is_tried_again_after_longer_and_longer():
    run = first()
    failed = after(run, "Failed")
    assert due(failed, now_s=NOW_S + 29) == scheduling.Due(run, is_over=True, retry_s=NOW_S + 30)
    again = due(failed, now_s=NOW_S + 30)
    assert again == scheduling.Due(run[:-1] + "2", is_new=True)
    assert due(after(again.run, "Failed"), now_s=NOW_S + 59).is_over
    assert due(after(again.run, "Failed"), now_s=NOW_S + 60).run.endswith("-3")
    assert [scheduling.retry_after_s(count) for count in (1, 2, 5, 6, 10_000)] == [30, 60, 480, 600, 600]
    # Without its end in the status it ended now.
    assert due(worlds.preload(status={"run": run, "phase": "Failed"})).is_over


def test_on_change_follows_the_manifest():
    on_change = {"policy": "OnChange"}
    assert due(worlds.preload(**on_change), "") == scheduling.Due()
    run = first(**on_change)
    assert due(after(run, "Complete", **on_change)).is_over
    assert due(after(run, "Complete", **on_change), "m2") == scheduling.Due(first("m2", **on_change), is_new=True)
    # A run under way gives way; an origin that is not known for a moment changes nothing.
    assert due(after(run, "Filling", **on_change), "m2").is_new
    assert due(after(run, "Complete", **on_change), "") == scheduling.Due(run, is_over=True)


def test_cron_runs_at_its_times():
    stamp = moments.shown(AT_16 - 600)
    young = worlds.preload(meta={"creationTimestamp": stamp}, **HOURLY)
    assert due(young, now_s=AT_16 - 1) == scheduling.Due(next_s=AT_16)
    said = due(young, now_s=AT_16)
    assert said.is_new and said.next_s == AT_16 + 3600
    run = said.run
    assert due(after(run, "Complete", **HOURLY), now_s=AT_16 + 3599).is_over
    # It is not cut off by the next one, which comes when it is over.
    under_way = due(after(run, "Filling", **HOURLY), now_s=AT_16 + 3601)
    assert under_way == scheduling.Due(run, next_s=AT_16 + 7200)
    assert due(after(run, "Complete", **HOURLY), now_s=AT_16 + 3601).is_new
    # One for all the times that nobody was there.
    assert due(after(run, "Complete", **HOURLY), now_s=AT_16 + 36_001).run != run
    failed = due(after(run, "Failed", AT_16, **HOURLY), now_s=AT_16 + 10)
    assert failed == scheduling.Due(run, is_over=True, next_s=AT_16 + 3600, retry_s=AT_16 + 30)
    with pytest.raises(ConfigError, match="'often' has 1 fields"):
        due(worlds.preload(policy="Cron", schedule="often"))


def test_a_schedule_instead_of_once_keeps_what_was_until_its_time():
    stamp = moments.shown(AT_16 - 600)
    was = after(first(), "Complete", meta={"creationTimestamp": stamp}, **HOURLY)
    assert due(was, now_s=AT_16 - 1) == scheduling.Due(first(), is_over=True, next_s=AT_16)
    assert due(after(first(), "Filling", meta={"creationTimestamp": stamp}, **HOURLY), now_s=AT_16 - 1).run == ""


def test_names_of_runs():
    assert scheduling.attempt("a-b-12") == 12
    assert scheduling.attempt("odd") == scheduling.attempt("") == 1
    assert scheduling.task_id(worlds.preload(), "r") == "team-a/warm/r"


@pytest.mark.parametrize(
    ("preload", "expires_s"),
    [
        (after("r", "Complete", ttlSecondsAfterFinished=60), NOW_S + 60),
        (after("r", "Failed", ttlSecondsAfterFinished=0), NOW_S),
        (after("r", "Complete"), None),
        (after("r", "Filling", ttlSecondsAfterFinished=60), None),
        (after("r", "Complete", ttlSecondsAfterFinished=60, **HOURLY), None),
        (worlds.preload(status={"phase": "Complete"}, ttlSecondsAfterFinished=60), None),
    ],
)
def test_when_it_expires(preload: Preload, expires_s: float | None):
    assert preload.spec is not None
    assert scheduling.expires_s(preload, preload.spec) == expires_s
