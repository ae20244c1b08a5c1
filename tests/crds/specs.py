"""Objects that are right, and how a test changes one value in them."""

from __future__ import annotations

import copy
from typing import Any

Object = dict[str, Any]

ABSENT = object()
"""As a value: the field shall not be there."""

POOL: Object = {
    "apiVersion": "shoal.dev/v1alpha1",
    "kind": "CachePool",
    "metadata": {"name": "nvme"},
    "spec": {
        "nodeSelector": {"disk": "nvme"},
        "dram": {"budget": "64Gi"},
        "nvme": [{"path": "/var/lib/shoal", "capacity": "2Ti"}],
    },
}

DATASET: Object = {
    "apiVersion": "shoal.dev/v1alpha1",
    "kind": "Dataset",
    "metadata": {"name": "images"},
    "spec": {"pool": "nvme", "source": {"uri": "s3://bucket/images"}},
}

PRELOAD: Object = {
    "apiVersion": "shoal.dev/v1alpha1",
    "kind": "Preload",
    "metadata": {"name": "warm-images"},
    "spec": {"dataset": "images"},
}

OBJECTS = {each["kind"]: each for each in (POOL, DATASET, PRELOAD)}
NAMESPACED = {"CachePool": False, "Dataset": True, "Preload": True}
PLURAL = {"CachePool": "cachepools", "Dataset": "datasets", "Preload": "preloads"}


def changed(kind: str, changes: dict[str, object]) -> Object:
    """A right object with other values; a path goes by names and numbers, as in "spec.nvme.0.path"."""
    made = copy.deepcopy(OBJECTS[kind])
    for path, value in changes.items():
        *parents, last = path.split(".")
        here: Any = made
        for name in parents:
            here = here[int(name)] if isinstance(here, list) else here.setdefault(name, {})
        if value is ABSENT:
            del here[last]
        else:
            here[int(last) if isinstance(here, list) else last] = copy.deepcopy(value)
    return made


def collection(kind: str, namespace: str = "default") -> str:
    """Where objects of a kind are made."""
    place = f"namespaces/{namespace}/" if NAMESPACED[kind] else ""
    return f"/apis/shoal.dev/v1alpha1/{place}{PLURAL[kind]}"
