"""The custom resource definitions as files: their fields, rules and columns, for tests of all three at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "crds"
FILES = sorted(FOLDER.glob("*.yaml"))

Schema = dict[str, Any]


class Field(NamedTuple):
    """A field, or the items of a list or map, with its path as error messages write it."""

    path: str
    schema: Schema
    named: bool
    """False for items: they have no line of their own in kubectl explain."""


def definition(path: Path) -> Schema:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def definitions() -> dict[str, Schema]:
    """By kind."""
    return {found["spec"]["names"]["kind"]: found for found in map(definition, FILES)}


def root(crd: Schema) -> Schema:
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def columns(crd: Schema) -> list[Schema]:
    return crd["spec"]["versions"][0]["additionalPrinterColumns"]


def fields(schema: Schema, path: str = "") -> Iterator[Field]:
    """All fields below, metadata's apart: those are the API server's."""
    for name, inner in schema.get("properties", {}).items():
        if path or name != "metadata":
            here = f"{path}.{name}" if path else name
            yield Field(here, inner, named=True)
            yield from fields(inner, here)
    for inner, mark in ((schema.get("items"), "[]"), (schema.get("additionalProperties"), "{}")):
        if isinstance(inner, dict):
            yield Field(path + mark, inner, named=False)
            yield from fields(inner, path + mark)


def rules(crd: Schema) -> Iterator[tuple[str, Schema]]:
    """(path of the field that carries it, rule)."""
    for rule in root(crd).get("x-kubernetes-validations", []):
        yield "", rule
    for field in fields(root(crd)):
        for rule in field.schema.get("x-kubernetes-validations", []):
            yield field.path, rule


def resolve(crd: Schema, json_path: str) -> Schema | None:
    """The schema of what a printer column shows; None where there is no such field."""
    if json_path.startswith(".metadata."):
        return {"type": "string"}
    here: Schema = root(crd)
    for name, condition in re.findall(r"\.(\w+)(\[\?\([^)]*\)\])?", json_path):
        found = here.get("properties", {}).get(name)
        if found is None:
            return None
        here = found["items"] if condition else found
    return here
