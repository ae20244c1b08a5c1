"""Datasets and Preloads and a running operator: declared, found readable, denied their secret, filled, taken away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.operator import running
from tests.operator.running import RunningPool, is_true
from tests.support import waiting
from tests.support.operator_process import OperatorProcess, Release, events_of

pytestmark = pytest.mark.slow

NET = 31
MANIFEST = "m" * 32


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
    with running.running_pool(control_plane, release, "cod", NET, 2) as up:
        yield up


@pytest.fixture
def team(control_plane: Cluster) -> Iterator[str]:
    """A namespace that is not the release's. Whatever is left in it goes before the pool does."""
    namespace = control_plane.kubectl.namespace("team")
    yield namespace
    for kind in ("preload", "dataset"):
        for item in control_plane.kubectl.items(kind, namespace):
            running.discard(control_plane, kind, item["metadata"]["name"], namespace)


def scanned(name: str, **more: Any) -> dict[str, Any]:
    """What the node that scanned it says of a data set."""
    report = {"objects": 10, "bytes": 10 << 20, "manifest": MANIFEST, "scanned_at_s": 1.0, "error": None}
    return {name: {**report, "cached_bytes": 0, "hits": 0, "misses": 0, **more}}


def test_a_data_set_of_another_namespace_is_declared_and_ready(
    control_plane: Cluster, pool: RunningPool, team: str
) -> None:
    kubectl = control_plane.kubectl
    kubectl.apply(json.dumps(running.dataset("images", "cod")), team)
    name = f"{team}.images"
    declared = pool.until_state(lambda state: name in state["datasets.json"])["datasets.json"][name]
    assert declared["url"] == "s3://bucket/images"
    assert declared.get("secret") is None
    pool.doors["cod-1"].status = running.status_of_node(datasets=scanned(name, cached_bytes=3 << 20))
    pool.doors["cod-2"].status = running.status_of_node(datasets={name: {"cached_bytes": 2 << 20}})
    kubectl.wait("dataset", "images", "condition=Ready", team, 30)
    found = kubectl.until("dataset", "images", lambda item: item["status"].get("cachedBytes") == 5 << 20, team, 20)
    assert found["status"]["objects"] == 10
    assert found["status"]["manifest"] == MANIFEST
    kubectl.run("--namespace", team, "delete", "dataset", "images", "--wait=false")
    pool.until_state(lambda state: name not in state["datasets.json"])
    for door in pool.doors.values():
        door.status = running.status_of_node()
    kubectl.wait("dataset", "images", "delete", team, 30)


def test_a_secret_that_was_not_granted_is_said_with_the_command(
    control_plane: Cluster, release: Release, pool: RunningPool, team: str
) -> None:
    kubectl = control_plane.kubectl
    kubectl.apply(json.dumps(running.dataset("texts", "cod", secretRef={"name": "keys"})), team)
    denied = kubectl.until("dataset", "texts", is_true("CredentialsDenied"), team, 20)
    command = f"kubectl shoal grant dataset texts -n {team} | kubectl apply -f -"
    assert command in running.condition(denied, "CredentialsDenied")["message"]
    assert running.condition(denied, "Ready")["status"] == "False"
    reasons = waiting_for_event(control_plane, "texts")
    assert "CredentialsDenied" in reasons
    rule = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["keys"], "verbs": ["get"]}
    account = {"kind": "ServiceAccount", "name": "shoal-cod", "namespace": release.namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "grant"}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "grant"}}
    kubectl.apply(json.dumps({**role, "kind": "Role", "rules": [rule]}), team)
    kubectl.apply(json.dumps({**role, "kind": "RoleBinding", "roleRef": reference, "subjects": [account]}), team)
    # Nothing tells of a right that was granted: it is asked for every 10 s.
    kubectl.until("dataset", "texts", is_true("CredentialsDenied", status="False"), team, 20)
    secret = pool.state()["datasets.json"][f"{team}.texts"]["secret"]
    assert secret == {"namespace": team, "name": "keys"}


def waiting_for_event(cluster: Cluster, name: str) -> set[str]:
    waiting.until(lambda: events_of(cluster, name), f"an Event on {name}", 10)
    return {event["reason"] for event in events_of(cluster, name)}


def test_a_preload_runs_and_completes(control_plane: Cluster, pool: RunningPool, team: str) -> None:
    kubectl = control_plane.kubectl
    name = f"{team}.videos"
    kubectl.apply(json.dumps(running.dataset("videos", "cod")), team)
    pool.doors["cod-1"].status = running.status_of_node(datasets=scanned(name))
    kubectl.wait("dataset", "videos", "condition=Ready", team, 30)
    kubectl.apply(json.dumps(running.preload("warm", "videos")), team)
    prefix = f"{team}/warm/"
    tasks = pool.until_state(lambda state: any(key.startswith(prefix) for key in state["preloads.json"]))[
        "preloads.json"
    ]
    (task,) = [key for key in tasks if key.startswith(prefix)]
    assert tasks[task]["dataset"] == name

    def say(state: str, done: int, verified: int) -> None:
        epoch = pool.state()["view.json"]["epoch"]
        counts = {"objects_scanned": 5, "objects_done": done, "objects_failed": 0, "bytes_scanned": 5 << 20}
        share = {"bytes_done": done << 20, "bytes_verified": verified << 20, "bytes_owned": 5 << 20}
        report = {"state": state, "epoch": epoch, **counts, **share, "errors": []}
        for node, door in pool.doors.items():
            datasets = scanned(name) if node == "cod-1" else {}
            door.status = running.status_of_node(view_epoch=epoch, datasets=datasets, preloads={task: report})

    say("filling", 2, 0)
    kubectl.until("preload", "warm", lambda found: found["status"].get("phase") == "Filling", team, 20)
    say("done", 5, 5)
    kubectl.wait("preload", "warm", "condition=Complete", team, 30)
    status = kubectl.get("preload", "warm", team)["status"]
    assert (status["phase"], status["progress"], status["objectsDone"]) == ("Complete", "100%", 10)
    pool.until_state(lambda state: task not in state["preloads.json"])


def test_a_data_set_of_no_pool_says_so(control_plane: Cluster, operator: OperatorProcess, team: str) -> None:
    control_plane.kubectl.apply(json.dumps(running.dataset("lost", "no-such-pool")), team)
    found = control_plane.kubectl.until("dataset", "lost", is_true("Ready", status="False"), team, 20)
    assert "no-such-pool" in running.condition(found, "Ready")["message"]
