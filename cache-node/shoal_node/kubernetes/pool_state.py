"""The state of a pool, as the operator writes it: who is in it, which data sets it holds, what is preloaded. Pure.

Three JSON documents in one ConfigMap. Each is understood by itself, and so is each data set and each preload: what is
wrong with one costs nothing but that one, and is said by name. A document that is missing or no JSON leaves things as
they are. Fields that this version does not know are passed over: an operator may be newer than a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import msgspec

from shoal_core import config, names, structure, view
from shoal_core.errors import ConfigError
from shoal_node import origin_options
from shoal_node.preload_progress import Preload

VIEW, DATASETS, PRELOADS = DOCUMENTS = "view.json", "datasets.json", "preloads.json"

S = TypeVar("S", bound=msgspec.Struct)


class SecretPlace(msgspec.Struct, frozen=True):
    """Where the credentials of a data set are."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class PoolDataset(msgspec.Struct, frozen=True):
    """A data set, and what only a pool says of one."""

    settings: config.Dataset
    secret: SecretPlace | None
    refresh_s: float | None
    """How often its origin is listed; None: once."""
    generation: int
    """Another one: somebody changed it, and it is listed again."""


class PoolState(msgspec.Struct, frozen=True):
    """What is not None is to be so."""

    view: view.View | None
    datasets: dict[str, PoolDataset] | None
    refused: dict[str, str]
    """Data sets that cannot be, and why: they are declared nowhere."""
    preloads: dict[str, Preload] | None
    errors: tuple[str, ...]
    """What is wrong with the documents."""


def parse(data: Mapping[str, str]) -> PoolState:
    """Never raises: what is wrong is in `errors` and `refused`."""
    errors: list[str] = []
    known_view = _view(data, errors)
    datasets, refused = _datasets(data, errors)
    return PoolState(known_view, datasets, refused, _preloads(data, errors), tuple(errors))


def _view(data: Mapping[str, str], errors: list[str]) -> view.View | None:
    document = _document(data, VIEW, errors)
    if document is None:
        return None
    try:
        return view.parse(document)
    except ConfigError as error:
        errors.append(f"{VIEW}: {error}")
        return None


def _datasets(data: Mapping[str, str], errors: list[str]) -> tuple[dict[str, PoolDataset] | None, dict[str, str]]:
    document = _document(data, DATASETS, errors)
    if document is None:
        return None, {}
    found: dict[str, PoolDataset] = {}
    refused: dict[str, str] = {}
    for name, given in document.items():
        try:
            found[name] = _dataset(name, _table(given))
        except ConfigError as error:
            refused[name] = str(error)
    return found, refused


def _dataset(name: str, given: Mapping[str, Any]) -> PoolDataset:
    if not names.is_dataset(name):
        raise ConfigError(f"{name!r}: {names.DATASET_RULE}")
    settings = _known(config.Dataset, given, name)
    for field, wrong in (
        ("url", origin_options.refusal(settings.url)),
        ("endpoint", origin_options.refusal_of_endpoint(settings.endpoint) if settings.endpoint else ""),
    ):
        if wrong:
            raise ConfigError(f"{name}.{field}: {wrong}")
    secret = given.get("secret")
    place = None if secret is None else _known(SecretPlace, _table(secret), f"{name}.secret")
    generation = given.get("generation")
    return PoolDataset(settings, place, settings.refresh_s, generation if isinstance(generation, int) else 0)


def _preloads(data: Mapping[str, str], errors: list[str]) -> dict[str, Preload] | None:
    document = _document(data, PRELOADS, errors)
    if document is None:
        return None
    found: dict[str, Preload] = {}
    for name, given in document.items():
        try:
            task = _known(Preload, _table(given), name)
            if task.bytes_per_s is not None and not task.bytes_per_s > 0:
                raise ConfigError(f"{name}.bytes_per_s: {task.bytes_per_s} is not more than 0")
            if any(".." in path.split("/") or path.startswith("/") for path in task.paths):
                raise ConfigError(f"{name}.paths: a path is below the data set's URL: no '/' at its start, no '..'")
            found[name] = task
        except ConfigError as error:
            errors.append(f"{PRELOADS}: {error}")
    return found


def _document(data: Mapping[str, str], name: str, errors: list[str]) -> dict[str, Any] | None:
    text = data.get(name)
    if text is None:
        if name == VIEW:
            errors.append(f"{name}: it is missing")
        return None
    try:
        plain: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        errors.append(f"{name}: no JSON: {error}")
        return None
    if not isinstance(plain, dict):
        errors.append(f"{name}: not a JSON object")
        return None
    return cast("dict[str, Any]", plain)


def _table(given: object) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise ConfigError("it is not a JSON object")
    return cast("Mapping[str, Any]", given)


def _known(kind: type[S], given: Mapping[str, Any], path: str) -> S:
    """A struct of the fields that this version knows; null is the same as absent."""
    fields = {field.name for field in msgspec.structs.fields(kind)}
    return structure.build(kind, {key: given[key] for key in given if key in fields and given[key] is not None}, path)
