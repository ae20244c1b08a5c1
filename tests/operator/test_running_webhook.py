"""The webhook of a running operator, called by a real API server for real pods."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import pki
from tests.cluster.cluster import Cluster
from tests.operator import running
from tests.operator.running import RunningPool
from tests.support import waiting
from tests.support.operator_process import OperatorProcess, Release, free_port

pytestmark = pytest.mark.slow

NET = 51
MOUNT = {"name": "shoal", "mountPath": "/run/shoal", "readOnly": True}


@pytest.fixture(scope="module")
def release(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    release = Release(control_plane, tmp_path_factory.mktemp("release"))
    try:
        yield release
    finally:
        release.end()


@pytest.fixture(scope="module")
def certificates(control_plane: Cluster, release: Release) -> Path:
    folder = release.directory / "tls"
    folder.mkdir()
    _certify(control_plane, folder, "webhook-1")
    return folder


def _certify(cluster: Cluster, folder: Path, who: str) -> None:
    pki.issue(cluster.layout, who, f"/CN={who}")
    for source, name in ((cluster.layout.certificate(who), "tls.crt"), (cluster.layout.key(who), "tls.key")):
        shutil.copy(source, folder / f"{name}.new")
        (folder / f"{name}.new").rename(folder / name)


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def operator(control_plane: Cluster, release: Release, certificates: Path, port: int) -> Iterator[OperatorProcess]:
    """Two replicas; the one that waits answers."""
    first = release.start("operator-0")
    waiting.until(first.leads, "the first leads")
    second = release.start("operator-1", "--webhook-cert-dir", str(certificates), "--webhook-port", str(port))
    authority = base64.b64encode(control_plane.layout.certificate("ca").read_bytes()).decode()
    webhook = {
        "name": "inject.shoal.dev",
        "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": f"https://127.0.0.1:{port}/mutate", "caBundle": authority},
        "failurePolicy": "Ignore",
        "timeoutSeconds": 2,
        "reinvocationPolicy": "IfNeeded",
        "sideEffects": "None",
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "objectSelector": {"matchExpressions": [{"key": "shoal.dev/inject", "operator": "Exists"}]},
    }
    configuration = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": f"shoal-{release.namespace}"},
        "webhooks": [webhook],
    }
    control_plane.kubectl.apply(json.dumps(configuration))
    try:
        yield second
    finally:
        control_plane.kubectl.delete("mutatingwebhookconfiguration", f"shoal-{release.namespace}")


@pytest.fixture(scope="module")
def pool(control_plane: Cluster, release: Release, operator: OperatorProcess) -> Iterator[RunningPool]:
    with running.running_pool(control_plane, release, "eel", NET, 2) as up:
        yield up


@pytest.fixture(scope="module")
def team(control_plane: Cluster, pool: RunningPool) -> Iterator[str]:
    namespace = control_plane.kubectl.namespace("team")
    control_plane.kubectl.apply(json.dumps(running.dataset("images", "eel")), namespace)
    pool.until_state(lambda state: f"{namespace}.images" in state["datasets.json"])
    yield namespace
    running.discard(control_plane, "dataset", "images", namespace)


def make_pod(cluster: Cluster, namespace: str, name: str, dataset: str) -> tuple[dict[str, Any], str]:
    """The pod as the API server took it, and what kubectl printed."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"shoal.dev/inject": dataset}},
        "spec": {"containers": [{"name": "main", "image": "example.test/train:1"}]},
    }
    said = cluster.kubectl.apply(json.dumps(pod), namespace)
    return cluster.kubectl.get("pod", name, namespace), said


def test_a_pod_gets_the_volume_and_prefers_the_nodes_that_hold_it(
    control_plane: Cluster, pool: RunningPool, team: str
) -> None:
    pod, said = make_pod(control_plane, team, "train", "images")
    assert "Warning" not in said
    volume = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "shoal")
    assert volume["csi"]["driver"] == "csi.shoal.dev"
    assert volume["csi"]["volumeAttributes"] == {"dataset": f"{team}/images"}
    assert MOUNT in pod["spec"]["containers"][0]["volumeMounts"]
    affinity = pod["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["weight"] == 50
    assert term["preference"]["matchExpressions"][0]["values"] == pool.nodes.names
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in affinity


def test_a_data_set_of_another_namespace(control_plane: Cluster, team: str) -> None:
    other = control_plane.kubectl.namespace("other")
    pod, _ = make_pod(control_plane, other, "train", f"{team}.images")
    volume = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "shoal")
    assert volume["csi"]["volumeAttributes"] == {"dataset": f"{team}/images"}


def test_what_it_cannot_do_is_a_warning_and_the_pod_is_made(control_plane: Cluster, team: str) -> None:
    pod, said = make_pod(control_plane, team, "odd", "a.b.c")
    assert "Warning: shoal: label shoal.dev/inject: 'a.b.c' is neither DATASET nor NAMESPACE.DATASET" in said
    assert all(volume["name"] != "shoal" for volume in pod["spec"]["volumes"])
    pod, said = make_pod(control_plane, team, "early", "texts")
    assert f"there is no Dataset {team}/texts" in said
    assert any(volume["name"] == "shoal" for volume in pod["spec"]["volumes"])


def test_a_renewed_certificate_is_used_without_a_restart(
    control_plane: Cluster, operator: OperatorProcess, certificates: Path, port: int
) -> None:
    def subject() -> str:
        text = ssl.get_server_certificate(("127.0.0.1", port))
        (certificates / "seen.pem").write_text(text)
        decoded = ssl._ssl._test_decode_cert(str(certificates / "seen.pem"))  # type: ignore[attr-defined]
        return dict(entry[0] for entry in decoded["subject"])["commonName"]

    assert subject() == "webhook-1"
    _certify(control_plane, certificates, "webhook-2")
    waiting.until(lambda: subject() == "webhook-2", "the new certificate", 15)


def test_without_an_answer_the_pod_is_made_as_it_is(
    control_plane: Cluster, operator: OperatorProcess, team: str
) -> None:
    operator.end()
    pod, _ = make_pod(control_plane, team, "alone", "images")
    assert all(volume["name"] != "shoal" for volume in pod["spec"]["volumes"])
