"""Conditions and their events; when a status is written."""

from typing import Any

import pytest

from shoal_operator import conditions, status
from shoal_operator.conditions import Condition, Verdict
from shoal_operator.model import Event
from tests.operator.worlds import NOW_S

EARLIER, NOW = "2025-11-01T00:00:00Z", "2025-11-24T16:00:00Z"


def stored(kind: str, value: str, reason: str = "R") -> dict[str, Any]:
    return {"type": kind, "status": value, "reason": reason, "lastTransitionTime": EARLIER}


@pytest.mark.parametrize(
    ("verdict", "trues"),
    [
        (Verdict("A", "m", ready=True), ["Ready"]),
        (Verdict("A", "m", busy=True), ["Reconciling"]),
        (Verdict("A", "m", ready=True, busy=True), ["Ready", "Reconciling"]),
        (Verdict("A", "m", stalled=True), ["Stalled"]),
        (Verdict("A", "m", busy=True, stalled=True), ["Stalled"]),
        (Verdict("A", "m"), []),
    ],
)
def test_what_is_stalled_is_not_reconciled(verdict: Verdict, trues: list[str]):
    said = conditions.standing(verdict)
    assert [one.type for one in said] == ["Ready", "Reconciling", "Stalled"]
    assert [one.type for one in said if one.is_true] == trues
    assert said[0].reason == "A" and said[0].message == "m"
    assert all(one.reason for one in said)


def test_since_when_a_condition_holds():
    before = {"conditions": [stored("Ready", "True"), stored("Stalled", "False"), "odd", {"type": 3}]}
    made = conditions.dated(
        [Condition("Ready", True, "Other", "x" * 2000), Condition("Stalled", True, "S"), Condition("New", False, "N")],
        before, 4, NOW_S,
    )  # fmt: skip
    assert [one["lastTransitionTime"] for one in made] == [EARLIER, NOW, NOW]
    assert [one["status"] for one in made] == ["True", "True", "False"]
    assert {one["observedGeneration"] for one in made} == {4}
    assert len(str(made[0]["message"])) == 1024 and made[0]["reason"] == "Other"


@pytest.mark.parametrize(
    ("before", "now", "stalled", "events"),
    [
        ([], Condition("Ready", False, "Scanning", "m"), False, [Event("Normal", "Scanning", "m")]),
        ([stored("Ready", "False", "Scanning")], Condition("Ready", False, "Scanning", "other"), False, []),
        ([stored("Ready", "True", "A")], Condition("Ready", True, "B", "m"), False, [Event("Normal", "B", "m")]),
        ([stored("Ready", "True", "A")], Condition("Ready", False, "A", "m"), True, [Event("Warning", "A", "m")]),
        ([], Condition("Reconciling", True, "A"), False, []),
        ([], Condition("Stalled", True, "A"), True, []),
        ([], Condition("Degraded", True, "F", "m"), False, [Event("Warning", "F", "m")]),
        ([], Condition("Degraded", False, "F"), False, []),
        ([stored("Degraded", "True")], Condition("Degraded", True, "F"), False, []),
        ([stored("Complete", "False")], Condition("Complete", True, "C", "m"), False, [Event("Normal", "C", "m")]),
    ],
)  # fmt: skip
def test_an_event_tells_of_a_change(before: list[Any], now: Condition, stalled: bool, events: list[Event]):
    assert conditions.changes({"conditions": before}, [now], stalled) == events


def test_two_conditions_that_turn_for_one_reason_are_one_event():
    said = [Condition("Ready", False, "Denied", "m"), Condition("CredentialsDenied", True, "Denied", "m")]
    assert conditions.changes({}, said, stalled=True) == [Event("Warning", "Denied", "m")]


def test_odd_statuses_are_none():
    assert conditions.by_type({"conditions": "none"}) == {}
    assert not conditions.is_true({}, "Ready")
    assert conditions.is_true({"conditions": [stored("Ready", "True")]}, "Ready")


BEFORE = {"used": "1", "phase": "Filling", "conditions": [stored("Ready", "True"), stored("Stalled", "False")]}


@pytest.mark.parametrize(
    ("after", "ago_s", "writes", "again_s"),
    [
        (BEFORE, None, False, None),
        ({**BEFORE, "conditions": BEFORE["conditions"][::-1]}, None, False, None),
        ({**BEFORE, "used": "2"}, None, True, None),
        ({**BEFORE, "used": "2"}, 1.0, False, 4.0),
        ({**BEFORE, "used": "2"}, 5.0, True, None),
        ({**BEFORE, "used": "2"}, -3.0, True, None),
        ({**BEFORE, "phase": "Verifying"}, 1.0, True, None),
        ({**BEFORE, "run": "x"}, 1.0, True, None),
        ({**BEFORE, "observedGeneration": 2}, 1.0, True, None),
        ({**BEFORE, "conditions": [stored("Ready", "False"), stored("Stalled", "False")]}, 1.0, True, None),
        ({**BEFORE, "conditions": [stored("Ready", "True", "Else"), stored("Stalled", "False")]}, 1.0, True, None),
    ],
)
def test_what_matters_is_written_at_once_and_the_rest_in_its_turn(
    after: Any, ago_s: float | None, writes: bool, again_s: float | None
):
    patched_s = None if ago_s is None else NOW_S - ago_s
    assert status.to_patch(BEFORE, after, patched_s, NOW_S) == (after if writes else None, again_s)


def test_the_first_status_is_written_at_once():
    assert status.to_patch({}, {"conditions": [stored("Ready", "False")]}, NOW_S, NOW_S)[0] is not None
