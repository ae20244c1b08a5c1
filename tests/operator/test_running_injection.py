"""What the webhook adds to a pod, applied as the API server would apply it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from shoal_core import view
from shoal_operator import injecting
from shoal_operator.injecting import Wanted
from shoal_operator.model import Manifest
from shoal_operator.observing import Store

ASKED = Wanted("team-a", "images")


def apply(pod: dict[str, Any], operations: list[dict[str, Any]]) -> dict[str, Any]:
    """JSON patch, as far as `add` goes; KeyError where a path's parent is missing, as the API server refuses it."""
    pod = copy.deepcopy(pod)
    for operation in operations:
        assert operation["op"] == "add"
        *parents, last = [part.replace("~1", "/") for part in operation["path"].split("/")[1:]]
        place: Any = pod
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if isinstance(place, list):
            place.append(operation["value"]) if last == "-" else place.insert(int(last), operation["value"])
        else:
            place[last] = operation["value"]
    return pod


def pod(label: str | None = "images", **spec: Any) -> dict[str, Any]:
    labels = {injecting.LABEL: label} if label is not None else {}
    return {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main"}, {"name": "side"}], **spec}}


@pytest.mark.parametrize(
    ("label", "asked"),
    [("images", Wanted("team-a", "images")), ("shared.images", Wanted("shared", "images")), (None, None)],
)
def test_the_label_names_a_data_set(label: str | None, asked: Wanted | None) -> None:
    assert injecting.wanted(pod(label), "team-a") == asked


@pytest.mark.parametrize("label", ["", "a.b.c", "-x", "team-b.", "IMAGES"])
def test_a_label_that_names_none_is_said(label: str) -> None:
    with pytest.raises(ValueError, match=r"neither DATASET nor NAMESPACE\.DATASET"):
        injecting.wanted(pod(label), "team-a")


def test_every_container_gets_the_volume() -> None:
    before = pod(initContainers=[{"name": "first", "volumeMounts": [{"name": "code", "mountPath": "/code"}]}])
    patch, warnings = injecting.operations(before, ASKED, [])
    after = apply(before, patch)["spec"]
    assert warnings == []
    assert after["volumes"] == [
        {
            "name": "shoal",
            "csi": {"driver": "csi.shoal.dev", "readOnly": True, "volumeAttributes": {"dataset": "team-a/images"}},
        }
    ]
    mount = {"name": "shoal", "mountPath": "/run/shoal", "readOnly": True}
    assert [item["volumeMounts"] for item in after["containers"]] == [[mount], [mount]]
    assert after["initContainers"][0]["volumeMounts"] == [{"name": "code", "mountPath": "/code"}, mount]


def test_twice_is_once() -> None:
    patch, _ = injecting.operations(pod(), ASKED, ["a", "b"])
    once = apply(pod(), patch)
    assert injecting.operations(once, ASKED, ["c"]) == ([], [])


def test_nodes_are_preferred_beside_what_the_pod_prefers() -> None:
    own = {"weight": 1, "preference": {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}}
    preferred = "preferredDuringSchedulingIgnoredDuringExecution"
    for affinity in (None, {}, {"podAffinity": {}}, {"nodeAffinity": {}}, {"nodeAffinity": {preferred: [own]}}):
        before = pod(**({} if affinity is None else {"affinity": affinity}))
        patch, _ = injecting.operations(before, ASKED, ["host-1", "host-2"])
        terms = apply(before, patch)["spec"]["affinity"]["nodeAffinity"][preferred]
        assert terms[-1] == {
            "weight": 50,
            "preference": {
                "matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": ["host-1", "host-2"]}
                ]
            },
        }
        assert terms[:-1] == ((affinity or {}).get("nodeAffinity") or {}).get(preferred, [])


def test_no_nodes_no_preference() -> None:
    patch, _ = injecting.operations(pod(), ASKED, [])
    assert "affinity" not in apply(pod(), patch)["spec"]


def test_another_volume_of_that_name_is_left_alone() -> None:
    patch, warnings = injecting.operations(pod(volumes=[{"name": "shoal", "emptyDir": {}}]), ASKED, [])
    assert patch == []
    assert "of another kind" in warnings[0]


def test_another_mount_at_that_place_is_left_alone() -> None:
    taken = {"name": "other", "mountPath": "/run/shoal/"}
    before = pod(volumes=[{"name": "other", "emptyDir": {}}])
    before["spec"]["containers"][0]["volumeMounts"] = [taken]
    patch, warnings = injecting.operations(before, ASKED, [])
    after = apply(before, patch)["spec"]["containers"]
    assert after[0]["volumeMounts"] == [taken]
    assert [mount["name"] for mount in after[1]["volumeMounts"]] == ["shoal"]
    assert "main has something else" in warnings[0]


def _store(nodes: int) -> Store:
    store = Store(lambda _: None)
    number = iter(range(1, 100_000))

    def see(kind: str, manifest: Manifest) -> None:
        manifest["metadata"] |= {"uid": manifest["metadata"]["name"], "resourceVersion": str(next(number))}
        store.see(kind, manifest)

    see("CachePool", {"metadata": {"name": "pool"}, "spec": {"dram": {"budget": "1Gi"}}})
    source = {"uri": "s3://bucket/images"}
    see("Dataset", {"metadata": {"name": "images", "namespace": "team-a"}, "spec": {"pool": "pool", "source": source}})
    members = tuple(
        view.Node(f"node-{at:03}", (f"tcp:10.0.0.{at}:7440",), 1 << 30, status="gone" if at == 0 else "ready")
        for at in range(nodes)
    )
    for member in members:
        see("Node", {"metadata": {"name": member.id, "labels": {"kubernetes.io/hostname": f"host-{member.id}"}}})
    known = store.of_pool("pool")
    known.view = view.make(1, members)
    return store


def test_the_nodes_of_the_view_hold_it_until_more_is_known() -> None:
    assert injecting.holders(_store(4), ASKED) == ["host-node-001", "host-node-002", "host-node-003"]


def test_then_those_that_say_so_hold_it() -> None:
    from shoal_operator.model import DatasetReport, NodeReport

    store = _store(4)
    store.of_pool("pool").reports["node-002"] = NodeReport(
        "node-002", 0.0, datasets={"team-a.images": DatasetReport(cached_bytes=5)}
    )
    assert injecting.holders(store, ASKED) == ["host-node-002"]


def test_no_pod_names_a_thousand_nodes() -> None:
    held = injecting.holders(_store(1000), ASKED)
    assert len(held) == injecting.NODES_MAX
    assert held == injecting.holders(_store(1000), ASKED)


def test_of_an_unknown_data_set_nothing_is_known() -> None:
    assert injecting.holders(_store(2), Wanted("team-a", "texts")) == []
