"""The API server refuses what cannot work and says which field and which rule; it takes what lies right beside it."""

from __future__ import annotations

import pytest

from tests.cluster.api import Api
from tests.crds import cases, schema, specs
from tests.crds.specs import OBJECTS

UNCHANGEABLE = {
    ("Dataset", "spec.source.uri"): ("s3://bucket/other", "make another Dataset for other objects"),
    ("Dataset", "spec.pool"): ("other", "make another Dataset for another pool"),
    ("Preload", "spec.dataset"): ("other", "make another Preload for another data set"),
}


def _try(api: Api, kind: str, manifest: specs.Object) -> tuple[int, str]:
    """What the API server would say; nothing is made."""
    path = specs.collection(kind) + "?dryRun=All&fieldValidation=Strict"
    status, answer = api.request("POST", path, manifest)
    return status, answer.get("message", "")


@pytest.mark.parametrize("case", cases.BAD, ids=lambda case: f"{case.kind}-{case.says[:60]}-{str(case.changes)[:60]}")
def test_what_cannot_work_is_refused_with_field_and_rule(api: Api, case: cases.Bad) -> None:
    status, message = _try(api, case.kind, specs.changed(case.kind, case.changes))
    assert (status, case.says in message) == (422, True), message


@pytest.mark.parametrize("case", cases.GOOD, ids=lambda case: f"{case.kind}-{str(case.changes)[:60]}")
def test_what_can_work_is_taken(api: Api, case: cases.Good) -> None:
    status, message = _try(api, case.kind, specs.changed(case.kind, case.changes))
    assert (status, message) == (201, "")


def test_each_rule_has_a_case() -> None:
    said = [case.says for case in cases.BAD]
    transitions = [says for _, says in UNCHANGEABLE.values()]
    untried = [
        rule["message"]
        for crd in schema.definitions().values()
        for _, rule in schema.rules(crd)
        if not any(text in rule["message"] for text in (*said, *transitions))
    ]
    assert untried == []


def test_a_field_that_does_not_exist_is_refused(api: Api) -> None:
    for kind in OBJECTS:
        status, message = _try(api, kind, specs.changed(kind, {"spec.cacheSize": "1Gi"}))
        assert (status, 'unknown field "spec.cacheSize"' in message) == (400, True), message


@pytest.mark.parametrize(("kind", "path"), UNCHANGEABLE)
def test_what_an_object_is_about_never_changes(api: Api, kind: str, path: str) -> None:
    value, says = UNCHANGEABLE[kind, path]
    name = f"fixed-{path.replace('.', '-')}"
    status, made = api.request("POST", specs.collection(kind), specs.changed(kind, {"metadata.name": name}))
    assert status == 201, made
    patch: object = value
    for part in reversed(path.split(".")):
        patch = {part: patch}
    where = f"{specs.collection(kind)}/{name}"
    status, answer = api.request("PATCH", where, patch, "application/merge-patch+json")
    assert (status, f"{path} must not change: {says}" in answer["message"]) == (422, True), answer
    status, answer = api.request(
        "PATCH", where, {"metadata": {"labels": {"team": "a"}}}, "application/merge-patch+json"
    )
    assert status == 200, answer
