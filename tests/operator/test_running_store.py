"""What the operator has seen: in any order, more than once, and whom a change concerns."""

from __future__ import annotations

from typing import Any

import pytest

from shoal_operator.model import NodeReport, Pod, PreloadReport
from shoal_operator.observing import Store
from shoal_operator.queueing import Key

POOL = Key("CachePool", "", "pool")
IMAGES = Key("Dataset", "team", "images")
WARM = Key("Preload", "team", "warm")


class World:
    """A store, and what it told."""

    def __init__(self) -> None:
        self.told: set[Key] = set()
        self.store = Store(self.told.add)
        self._number = 0

    def see(self, kind: str, name: str, namespace: str = "", number: int | None = None, **content: Any) -> set[Key]:
        """What is told of it."""
        self.told.clear()
        self._number += 1
        metadata = {"name": name, "uid": f"{kind}-{name}", "resourceVersion": str(number or self._number)}
        metadata |= content.pop("metadata", {})
        if namespace:
            metadata["namespace"] = namespace
        self.store.see(kind, {"kind": kind, "metadata": metadata, **content})
        return set(self.told)

    def of_pool(self, kind: str, name: str, **content: Any) -> set[Key]:
        metadata = {"labels": {"shoal.dev/pool": "pool"}, **content.pop("metadata", {})}
        return self.see(kind, name, "shoal-system", metadata=metadata, **content)

    def pod(self, name: str = "pod-1", node: str = "node-1", ready: bool = True) -> set[Key]:
        status = {
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [{"name": "node", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}],
        }
        return self.of_pool("Pod", name, spec={"nodeName": node}, status=status)

    def gone(self, kind: str, name: str, namespace: str = "", number: int = 0) -> set[Key]:
        self.told.clear()
        self.store.gone(kind, (namespace, name), f"{kind}-{name}", number)
        return set(self.told)


def spec_of_pool(**more: Any) -> dict[str, Any]:
    return {"dram": {"budget": "1Gi"}, **more}


def spec_of_dataset(pool: str = "pool") -> dict[str, Any]:
    return {"pool": pool, "source": {"uri": "s3://bucket/images"}}


@pytest.fixture
def world() -> World:
    world = World()
    world.see("CachePool", "pool", spec=spec_of_pool())
    world.see("Dataset", "images", "team", spec=spec_of_dataset())
    world.see("Preload", "warm", "team", spec={"dataset": "images"})
    return world


def test_an_older_version_never_replaces_a_newer_one(world: World) -> None:
    assert world.see("Node", "node-1", number=500, metadata={"labels": {"a": "new"}}) == {POOL}
    assert world.see("Node", "node-1", number=499, metadata={"labels": {"a": "old"}}) == set()
    assert world.see("Node", "node-1", number=500, metadata={"labels": {"a": "odd"}}) == set()
    assert world.store.nodes["node-1"].labels == {"a": "new"}


def test_what_is_gone_stays_gone_whatever_answers_come_late(world: World) -> None:
    world.see("Preload", "late", "team", number=700, spec={"dataset": "images"})
    world.gone("Preload", "late", "team", number=710)
    assert world.see("Preload", "late", "team", number=705, spec={"dataset": "images"}) == set()
    assert ("team", "late") not in world.store.preloads
    world.see("Preload", "late", "team", number=720, spec={"dataset": "images"})
    assert ("team", "late") in world.store.preloads


def test_the_end_of_another_object_of_that_name_is_no_news(world: World) -> None:
    world.store.gone("Preload", ("team", "warm"), "of-an-earlier-one")
    assert ("team", "warm") in world.store.preloads


def test_a_heartbeat_is_no_news(world: World) -> None:
    condition = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    world.see("Node", "node-1", status={"conditions": [{**condition, "lastHeartbeatTime": "1"}]})
    assert world.see("Node", "node-1", status={"conditions": [{**condition, "lastHeartbeatTime": "2"}]}) == set()
    lost = {**condition, "status": "Unknown"}
    assert world.see("Node", "node-1", status={"conditions": [lost]}) == {POOL}
    assert world.gone("Node", "node-1") == {POOL}


def test_our_own_words_are_no_news(world: World) -> None:
    status = {"nodes": "3/3"}
    assert world.see("CachePool", "pool", spec=spec_of_pool(), status=status) == set()
    assert world.see("Dataset", "images", "team", spec=spec_of_dataset(), status=status) == {WARM}
    assert world.see("Preload", "warm", "team", spec={"dataset": "images"}, status={"rate": "1Gi/s"}) == set()
    run = {"run": "r1", "phase": "Listing"}
    assert world.see("Preload", "warm", "team", spec={"dataset": "images"}, status=run) == {POOL}


def test_a_pool_concerns_all_pools_and_its_data_sets(world: World) -> None:
    other = Key("CachePool", "", "other")
    assert world.see("CachePool", "other", spec=spec_of_pool()) == {POOL, other}
    assert world.see("CachePool", "pool", spec=spec_of_pool(replicas=2)) == {POOL, other, IMAGES}
    assert world.gone("CachePool", "pool") == {POOL, other, IMAGES}


def test_a_data_set_concerns_itself_its_pool_and_its_preloads(world: World) -> None:
    metadata = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert world.see("Dataset", "images", "team", spec=spec_of_dataset(), metadata=metadata) == {IMAGES, POOL, WARM}
    assert world.gone("Dataset", "images", "team") == {IMAGES, POOL, WARM}


def test_the_state_concerns_whom_it_says_something_of(world: World) -> None:
    def state(datasets: str, view: str = "") -> set[Key]:
        return world.of_pool("ConfigMap", "shoal-pool", data={"datasets.json": datasets, "view.json": view})

    assert state('{"team.images": {"url": "s3://bucket/images"}}') == {POOL, IMAGES, WARM}
    assert world.store.of_pool("pool").declared == {"team.images"}
    assert state('{"team.images": {"url": "s3://bucket/other"}}') == {POOL}
    assert state("{}") == {POOL, IMAGES}
    assert state("{}", '{"epoch": 1, "nodes": [], "replica_count": 1}') == {POOL, WARM}
    view = world.store.of_pool("pool").view
    assert view is not None
    assert view.epoch == 1


def test_objects_are_kept_without_the_servers_book_keeping(world: World) -> None:
    metadata = {"managedFields": [{"manager": "x"}]}
    assert world.of_pool("DaemonSet", "shoal-pool", metadata=metadata, status={"numberReady": 1}) == {POOL}
    kept = world.store.of_pool("pool").objects["DaemonSet", "shoal-pool"]
    assert "status" not in kept
    assert "managedFields" not in kept["metadata"]
    assert world.of_pool("DaemonSet", "shoal-pool", metadata=metadata, status={"numberReady": 2}) == set()
    assert world.gone("DaemonSet", "shoal-pool", "shoal-system") == {POOL}
    assert world.store.of_pool("pool").objects == {}


def test_reports_concern_those_whose_figures_changed(world: World) -> None:
    world.pod()
    report = NodeReport("node-1", 1.0, used_bytes=5)
    world.told.clear()
    world.store.report("pool", [report])
    assert world.told == {POOL, WARM}
    world.told.clear()
    world.store.report("pool", [NodeReport("node-1", 6.0, used_bytes=5)])
    assert world.told == set()
    world.store.report("pool", [NodeReport("node-1", 11.0, preloads={"team/warm/r1": PreloadReport()})])
    assert world.told == {POOL, WARM}


def test_a_report_goes_with_its_pod(world: World) -> None:
    world.pod()
    world.store.report("pool", [NodeReport("node-1", 1.0)])
    changes = world.store.pods_changes
    assert world.pod(ready=False) == {POOL}
    assert "node-1" in world.store.of_pool("pool").reports
    assert world.gone("Pod", "pod-1", "shoal-system") == {POOL}
    assert world.store.of_pool("pool").reports == {}
    assert world.store.pods_changes == changes + 2


def test_nothing_is_kept_of_a_pool_that_is_gone_with_all_it_had(world: World) -> None:
    world.pod()
    world.gone("CachePool", "pool")
    assert isinstance(world.store.of_pool("pool").pods["pod-1"], Pod)
    world.gone("Pod", "pod-1", "shoal-system")
    assert "pool" not in world.store._of_pool
