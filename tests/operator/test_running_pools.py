"""CachePools and a running operator, against a real API server: what it makes, keeps, notices and takes away."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.operator import running
from tests.operator.running import RunningPool, is_true
from tests.support import waiting
from tests.support.operator_process import OperatorProcess, Release, events_of

pytestmark = pytest.mark.slow

NET = 21


@pytest.fixture(scope="module")
def release(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    release = Release(control_plane, tmp_path_factory.mktemp("release"))
    try:
        yield release
    finally:
        release.end()


@pytest.fixture(scope="module")
def operator(release: Release) -> OperatorProcess:
    process = release.start()
    waiting.until(process.leads, "it leads")
    return process


@pytest.fixture(scope="module")
def pool(control_plane: Cluster, release: Release, operator: OperatorProcess) -> Iterator[RunningPool]:
    with running.running_pool(control_plane, release, "herring", NET) as up:
        yield up


def test_a_pool_becomes_what_it_is_made_of(control_plane: Cluster, release: Release, pool: RunningPool) -> None:
    kubectl = control_plane.kubectl
    owner = kubectl.get("cachepool", "herring")
    for kind, name in [
        ("daemonset", "shoal-herring"),
        ("serviceaccount", "shoal-herring"),
        ("service", "shoal-herring"),
        ("role", "shoal-herring"),
        ("rolebinding", "shoal-herring"),
        ("configmap", "shoal-herring"),
        ("configmap", "shoal-herring-config"),
        ("secret", "shoal-herring-key"),
    ]:
        found = kubectl.get(kind, name, release.namespace)["metadata"]
        assert found["labels"]["shoal.dev/pool"] == "herring", kind
        assert [reference["uid"] for reference in found["ownerReferences"]] == [owner["metadata"]["uid"]], kind
    assert owner["status"]["nodes"] == "3/3"
    assert pool.view() == dict.fromkeys(pool.nodes.names, "ready")
    assert owner["metadata"]["finalizers"] == ["shoal.dev/pool"]


def test_nothing_of_kopfs_own_is_written(control_plane: Cluster, release: Release, pool: RunningPool) -> None:
    text = control_plane.kubectl.run("get", "cpool,dset,nodes", "-A", "-o", "json", "--show-managed-fields")
    text += control_plane.kubectl.run("--namespace", release.namespace, "get", "all,cm,sa,role", "-o", "json")
    assert "kopf" not in text


def test_nodes_are_asked_with_a_token_of_the_pools_key(
    control_plane: Cluster, release: Release, pool: RunningPool
) -> None:
    secret = control_plane.kubectl.get("secret", "shoal-herring-key", release.namespace)
    door = pool.doors["herring-1"]
    door.key = base64.b64decode(secret["data"]["key"])
    assert len(door.key) == 32
    assert door.wrong("") != ""
    door.status = running.status_of_node(tiers={"dram": {"used_bytes": 7 << 20}})
    control_plane.kubectl.until("cachepool", "herring", lambda found: found["status"].get("usedBytes") == 7 << 20)


def test_a_node_that_kubernetes_lost_is_gone_from_the_view(control_plane: Cluster, pool: RunningPool) -> None:
    pool.nodes.stop("herring-2")
    control_plane.kubectl.until("node", "herring-2", is_true("Ready", status="Unknown"), seconds=40)
    noticed_s = time.monotonic()
    pool.until_view(n2="gone", n1="ready", n3="ready")
    assert time.monotonic() - noticed_s < 5
    control_plane.kubectl.until("cachepool", "herring", is_true("Ready", status="False"), seconds=10)
    pool.nodes.start("herring-2")
    pool.until_view(n2="ready")
    control_plane.kubectl.wait("cachepool", "herring", "condition=Ready", seconds=20)
    assert {event["reason"] for event in events_of(control_plane, "herring")} >= {"Ready", "NodesNotReady"}


def test_a_cordoned_node_hands_over(control_plane: Cluster, pool: RunningPool) -> None:
    control_plane.kubectl.run("cordon", "herring-3")
    pool.until_view(n3="draining")
    waiting.until(lambda: ("POST", "/drain") in pool.doors["herring-3"].asked, "it was told to drain")
    control_plane.kubectl.run("uncordon", "herring-3")
    pool.until_view(n3="ready")


def test_what_somebody_deletes_or_changes_is_put_right(
    control_plane: Cluster, release: Release, pool: RunningPool
) -> None:
    kubectl, namespace = control_plane.kubectl, release.namespace
    kubectl.delete("role", "shoal-herring", namespace)
    kubectl.until("role", "shoal-herring", lambda found: found["rules"], namespace, 10)
    kubectl.patch("configmap", "shoal-herring-config", {"data": {"node.toml": "nonsense"}}, namespace)

    def right(found: dict[str, Any]) -> bool:
        return found["data"]["node.toml"] != "nonsense"

    kubectl.until("configmap", "shoal-herring-config", right, namespace, 10)
    kubectl.patch("configmap", "shoal-herring", {"data": {"view.json": "{}"}}, namespace)
    pool.until_view(10, n1="ready", n2="ready", n3="ready")


def test_a_status_is_written_every_five_seconds_at_most(control_plane: Cluster, pool: RunningPool) -> None:
    """Every answer of the nodes differs from the one before, and everything that the operator hears has it look."""
    began_s = time.monotonic()
    patches = len(_status_patches(control_plane))
    step = 0

    def change() -> bool:
        nonlocal step
        step += 1
        for door in pool.doors.values():
            door.status = running.status_of_node(tiers={"dram": {"used_bytes": step << 20}})
        if step % 40 == 0:
            control_plane.kubectl.run("label", "--overwrite", "node", "herring-1", f"step={step}")
        return time.monotonic() - began_s > 16

    waiting.until(change, "16 s", 30)
    made = len(_status_patches(control_plane)) - patches
    assert 2 <= made <= 4


def _status_patches(cluster: Cluster) -> list[dict[str, Any]]:
    return [
        event
        for event in cluster.audit()
        if event["verb"] == "patch"
        and event["objectRef"].get("resource") == "cachepools"
        and event["objectRef"].get("subresource") == "status"
        and event["objectRef"].get("name") == "herring"
        and event["stage"] == "ResponseComplete"
    ]


def test_a_pool_of_no_nodes_says_so(control_plane: Cluster, operator: OperatorProcess) -> None:
    control_plane.kubectl.apply(json.dumps(running.pool("nowhere")))
    try:
        found = control_plane.kubectl.until("cachepool", "nowhere", is_true("Ready", status="False"), seconds=20)
        assert "node" in running.condition(found, "Ready")["message"]
    finally:
        control_plane.kubectl.delete("cachepool", "nowhere")


def test_a_pool_that_is_deleted_ends_its_nodes_first(
    control_plane: Cluster, release: Release, operator: OperatorProcess
) -> None:
    kubectl = control_plane.kubectl
    with running.running_pool(control_plane, release, "sprat", NET + 1, 2) as up:
        kubectl.delete("cachepool", "sprat", wait=False)
        up.until_view(n1="draining", n2="draining")
        waiting.until(
            lambda: all(("POST", "/drain") in door.asked for door in up.doors.values()), "all were told to drain", 10
        )
        assert kubectl.find("daemonset", "shoal-sprat", release.namespace) is not None
        kubectl.wait("cachepool", "sprat", "delete", seconds=20)
        kubectl.wait("daemonset", "shoal-sprat", "delete", release.namespace, seconds=30)
        kubectl.wait("secret", "shoal-sprat-key", "delete", release.namespace, seconds=30)
    waiting.until(lambda: operator.metric("shoal_operator_view_epoch", pool="sprat") is None, "its metrics go too", 10)


def test_metrics_tell(operator: OperatorProcess, pool: RunningPool) -> None:
    assert operator.metric("shoal_operator_leader") == 1
    assert operator.metric("shoal_operator_pool_nodes", pool="herring", status="ready") == 3
    assert (operator.metric("shoal_operator_reconciles_total", kind="CachePool", result="done") or 0) > 5
    assert (operator.metric("shoal_operator_status_patches_total", kind="CachePool") or 0) > 2
    assert (operator.metric("shoal_operator_polls_total", pool="herring", result="answered") or 0) > 2
    assert operator.metric("shoal_operator_watches_dead") == 0
    for door in pool.doors.values():
        door.status = running.status_of_node(fallbacks={"o_direct": 2})
    waiting.until(
        lambda: operator.metric("shoal_operator_node_fallbacks", pool="herring", kind="o_direct") == 6, seconds=20
    )
