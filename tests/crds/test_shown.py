"""What kubectl shows: defaults, columns that are all filled, short names, the category, and a text for each field."""

from __future__ import annotations

import re

import pytest

from tests.cluster.api import Api
from tests.cluster.cluster import Cluster
from tests.crds import schema, specs
from tests.crds.statuses import STATUSES

DEFAULTS: dict[str, dict[str, object]] = {
    "CachePool": {
        "spec.imagePullPolicy": "IfNotPresent",
        "spec.dram.hugePages": "auto",
        "spec.nvme.0.keepFree": 0,
        "spec.nvme.0.requireMount": True,
        "spec.replicas": 1,
        "spec.topology": {"zoneKey": "topology.kubernetes.io/zone", "rackKey": ""},
        "spec.blockSize": "4Mi",
        "spec.updateStrategy": {"type": "RollingUpdate"},
        "spec.drainTimeoutSeconds": 600,
        "spec.drainNodes": [],
        "spec.sharedMemory": {"namespaces": []},
        "spec.hostNetwork": False,
        "spec.ports": {"data": 7440, "control": 7441},
        "spec.tolerations": [],
        "spec.imagePullSecrets": [],
        "spec.resources": {},
    },
    "Dataset": {
        "spec.source": {"uri": "s3://bucket/images", "include": [], "exclude": []},
        "spec.version": {"policy": "Refresh", "refreshSeconds": 60},
        "spec.eviction": "S3FIFO",
    },
    "Preload": {"spec.paths": [], "spec.policy": "Once", "spec.verify": True, "spec.suspend": False},
}
PART_GIVEN = {
    "CachePool": ({"spec.ports": {"data": 9000}}, "spec.ports", {"data": 9000, "control": 7441}),
    "Dataset": (
        {"spec.version": {"policy": "Pinned"}},
        "spec.version",
        {"policy": "Pinned", "refreshSeconds": 60},
    ),
}


def _at(manifest: specs.Object, path: str) -> object:
    here = manifest
    for part in path.split("."):
        here = here[int(part)] if isinstance(here, list) else here[part]
    return here


def _made(api: Api, kind: str, changes: dict[str, object], namespace: str = "default") -> specs.Object:
    status, made = api.request("POST", specs.collection(kind, namespace), specs.changed(kind, changes))
    assert status == 201, made
    return made


@pytest.mark.parametrize("kind", DEFAULTS)
def test_defaults_are_written_into_the_object(api: Api, kind: str) -> None:
    made = _made(api, kind, {"metadata.name": "with-defaults"})
    assert {path: _at(made, path) for path in DEFAULTS[kind]} == DEFAULTS[kind]
    expected = {name.split(".")[1] for name in DEFAULTS[kind]} | set(specs.OBJECTS[kind]["spec"])
    assert set(made["spec"]) == expected  # nothing else is made up


@pytest.mark.parametrize("kind", PART_GIVEN)
def test_defaults_fill_what_is_left_open(api: Api, kind: str) -> None:
    changes, path, expected = PART_GIVEN[kind]
    assert _at(_made(api, kind, {"metadata.name": "in-part", **changes}), path) == expected


@pytest.mark.parametrize("kind", STATUSES)
def test_every_column_is_filled(served: Cluster, api: Api, kind: str) -> None:
    crd = schema.definitions()[kind]
    namespace = served.kubectl.namespace() if specs.NAMESPACED[kind] else ""
    _made(api, kind, {"metadata.name": "filled"}, namespace or "default")
    plural = crd["spec"]["names"]["plural"]
    before = served.kubectl.get(plural, "filled", namespace)["metadata"]["generation"]
    served.kubectl.patch(plural, "filled", {"status": STATUSES[kind]}, namespace, subresource="status")
    found = served.kubectl.get(plural, "filled", namespace)
    assert found["status"] == STATUSES[kind]  # no field was dropped as unknown
    assert found["metadata"]["generation"] == before  # status is a subresource

    where = ("--namespace", namespace) if namespace else ()
    header, line = served.kubectl.run(*where, "get", plural, "filled", "-o", "wide").splitlines()
    starts = [match.start() for match in re.finditer(r"\S+( \S+)*", header)]
    shown = {
        header[start:end].strip(): line[start:end].strip()
        for start, end in zip(starts, [*starts[1:], None], strict=True)
    }
    assert set(shown) == {"NAME", *(column["name"].upper() for column in schema.columns(crd))}
    assert {name: value for name, value in shown.items() if value in ("", "<none>", "<unknown>", "<invalid>")} == {}

    narrow, _ = served.kubectl.run(*where, "get", plural, "filled").splitlines()
    first = [column["name"].upper() for column in schema.columns(crd) if not column.get("priority")]
    assert re.split(r" {2,}", narrow.strip()) == ["NAME", *first]


def test_short_names_and_the_category(served: Cluster, api: Api) -> None:
    namespace = served.kubectl.namespace()
    short = {"CachePool": "cpool", "Dataset": "dset", "Preload": "pre"}
    for kind, name in short.items():
        _made(api, kind, {"metadata.name": "short"}, namespace)
        shown = served.kubectl.run("--namespace", namespace, "get", name, "short", "-o", "name")
        assert shown == f"{kind.lower()}.shoal.dev/short\n"
    listed = served.kubectl.run("--namespace", namespace, "get", "shoal", "-o", "name").split()
    assert {f"{kind.lower()}.shoal.dev/short" for kind in short} <= set(listed)


def test_objects_can_be_chosen_by_what_they_refer_to(served: Cluster, api: Api) -> None:
    namespace = served.kubectl.namespace()
    for name in ("fast", "slow"):
        _made(api, "Dataset", {"metadata.name": name, "spec.pool": name}, namespace)
        _made(api, "Preload", {"metadata.name": name, "spec.dataset": name}, namespace)
    for plural, field in (("datasets", "spec.pool"), ("preloads", "spec.dataset")):
        items = served.kubectl.items(plural, namespace, fields=f"{field}=fast")
        assert [item["metadata"]["name"] for item in items] == ["fast"]


def test_conditions_merge_by_type(served: Cluster, api: Api) -> None:
    namespace = served.kubectl.namespace()
    _made(api, "Dataset", {}, namespace)
    for number, kind in enumerate(("Ready", "Stalled")):
        condition = {**STATUSES["Dataset"]["conditions"][0], "type": kind}
        applied = {
            "apiVersion": "shoal.dev/v1alpha1",
            "kind": "Dataset",
            "metadata": {"name": "images"},
            "status": {"conditions": [condition]},
        }
        path = f"{specs.collection('Dataset', namespace)}/images/status?fieldManager=writer-{number}"
        status, answer = api.request("PATCH", path, applied, "application/apply-patch+yaml")
        assert status == 200, answer
    conditions = served.kubectl.get("dataset", "images", namespace)["status"]["conditions"]
    assert sorted(condition["type"] for condition in conditions) == ["Ready", "Stalled"]
    served.kubectl.wait("dataset", "images", "condition=Ready", namespace, 10)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("cachepool", "A set of cache nodes"),
        ("cachepool.spec.nvme.capacity", "Bytes of the disk on each node"),
        ("cachepool.spec.drainTimeoutSeconds", "Default: 600"),
        ("dataset.spec.version.refreshSeconds", "Default: 60"),
        ("dset.status.conditions.reason", "in one word for programs"),
        ("preload.spec.bytesPerSecond", "a second at most"),
        ("pre.status.eta", "Time that is left"),
    ],
)
def test_kubectl_explains(served: Cluster, path: str, says: str) -> None:
    assert says in " ".join(served.kubectl.run("explain", path).split())


def test_the_api_server_has_a_text_for_each_field(api: Api) -> None:
    served = api.get("/openapi/v3/apis/shoal.dev/v1alpha1")["components"]["schemas"]
    for kind in specs.OBJECTS:
        found = served[f"dev.shoal.v1alpha1.{kind}"]
        paths = {field.path: field.schema for field in schema.fields(found) if field.named}
        assert {path for path, field in paths.items() if not field.get("description")} == set()
        assert len(paths) > 15
