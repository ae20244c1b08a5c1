"""The custom resource definitions: the chart has them as they are, and every field of them is bounded and explained."""

import re
import subprocess

import pytest

from tests.crds import schema
from tests.tidy import tracked

KINDS = schema.definitions()
SPEC = {kind: list(schema.fields(schema.root(crd))) for kind, crd in KINDS.items()}


def test_the_chart_has_them_as_they_are() -> None:
    done = subprocess.run(
        [tracked.REPOSITORY / "tools/chart-crds", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_three_of_one_group_and_category() -> None:
    assert set(KINDS) == {"CachePool", "Dataset", "Preload"}
    for crd in KINDS.values():
        spec = crd["spec"]
        assert (spec["group"], spec["versions"][0]["name"]) == ("shoal.dev", "v1alpha1")
        assert spec["names"]["categories"] == ["shoal"]
        assert int(crd["metadata"]["annotations"]["shoal.dev/schema-version"]) >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_column_shows_a_field_that_exists(kind: str) -> None:
    columns = schema.columns(KINDS[kind])
    assert [column["jsonPath"] for column in columns if schema.resolve(KINDS[kind], column["jsonPath"]) is None] == []
    for column in columns:
        shown = schema.resolve(KINDS[kind], column["jsonPath"]) or {}
        assert column["type"] in (shown["type"], "date"), column


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_explained_with_its_default(kind: str) -> None:
    texts = {field.path: field.schema.get("description", "") for field in SPEC[kind] if field.named}
    assert [path for path, text in texts.items() if not text.endswith(".")] == []
    silent = [
        field.path
        for field in SPEC[kind]
        if field.named
        and field.schema.get("type") != "object"
        and field.schema.get("default") is not None
        and "Default:" not in texts[field.path]
    ]
    assert silent == []


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_without_bound(kind: str) -> None:
    """Else a rule's cost has none either, and an object may be as large as etcd lets it."""
    free = [
        field.path
        for field in SPEC[kind]
        if (field.schema.get("type") == "array" and "maxItems" not in field.schema)
        or (isinstance(field.schema.get("additionalProperties"), dict) and "maxProperties" not in field.schema)
        or (
            field.schema.get("type") == "string"
            and not {"maxLength", "enum", "format"} & set(field.schema)
            and field.path not in ("apiVersion", "kind")
        )
    ]
    assert free == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_names_its_field(kind: str) -> None:
    paths = {field.path for field in SPEC[kind]} | {"metadata.name"}
    for place, rule in schema.rules(KINDS[kind]):
        named = re.match(r"([A-Za-z.\[\]]+) must ", rule["message"])
        assert named is not None, rule["message"]
        assert named[1] in paths, rule["message"]
        assert named[1].startswith(place.rstrip("[]")), (place, rule["message"])
