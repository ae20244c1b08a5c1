"""What the examples show is what the API server takes."""

from __future__ import annotations

from typing import Any

import yaml

from tests.cluster.api import Api
from tests.crds import schema, specs

EXAMPLES = schema.FOLDER.parent / "examples"


def _objects() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.relative_to(EXAMPLES)}: {document['kind']}", document)
        for path in sorted(EXAMPLES.rglob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        if document and str(document.get("apiVersion", "")).startswith("shoal.dev/")
    ]


def test_the_examples_are_taken(api: Api) -> None:
    refused: dict[str, str] = {}
    for what, manifest in _objects():
        manifest["metadata"].pop("namespace", None)
        path = specs.collection(manifest["kind"]) + "?dryRun=All&fieldValidation=Strict"
        status, answer = api.request("POST", path, manifest)
        if status != 201:
            refused[what] = answer["message"]
    assert refused == {}
