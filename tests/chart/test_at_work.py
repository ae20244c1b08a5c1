"""The operator and the driver at work with the accounts that the chart gives them: nothing they ask is forbidden."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.configuration import Configuration

from shoal_csi.cluster import Cluster as DriversView
from shoal_csi.cluster import User
from shoal_csi.refusals import Refused
from shoal_csi.request import DatasetName
from tests.chart.helm import NAMESPACE
from tests.cluster.cluster import Cluster
from tests.cluster.layout import free_ports
from tests.crds import specs
from tests.support import waiting

POOL = "at-work"


def _token(cluster: Cluster, account: str, folder: Path, *argv: str) -> Path:
    path = folder / f"{account}.token"
    path.write_text(cluster.kubectl.run("--namespace", NAMESPACE, "create", "token", account, *argv).strip())
    return path


@contextlib.contextmanager
def _operator(cluster: Cluster, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    reach = {
        "server": cluster.layout.api_url,
        "ca_file": str(cluster.layout.certificate("ca")),
        "token_file": str(_token(cluster, "shoal-operator", folder)),
    }
    (folder / "api.json").write_text(json.dumps(reach))
    environment = {
        **os.environ,
        "SHOAL_KUBERNETES_API": str(folder / "api.json"),
        "POD_NAMESPACE": NAMESPACE,
        "POD_NAME": "operator-0",
        "SHOAL_IMAGE": "shoal:0.1.0",
    }
    argv = (sys.executable, "-m", "shoal_operator", "--metrics-port", str(free_ports(1)[0]))
    with (folder / "operator.log").open("wb") as log:
        process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def _refused(cluster: Cluster, account: str) -> list[str]:
    """What the API server forbade to an account that came with a token; other tests come with certificates."""
    who = f"system:serviceaccount:{NAMESPACE}:{account}"
    asked = [
        event
        for event in cluster.audit()
        if event["user"]["username"] == who and "JTI=" in str(event["user"].get("extra"))
    ]
    assert len(asked) > 5
    forbidden = [event for event in asked if event["responseStatus"].get("code") in (401, 403)]
    return [f"{event['verb']} {event['requestURI']}" for event in forbidden]


def _condition(manifest: dict[str, Any], kind: str) -> str:
    conditions = manifest.get("status", {}).get("conditions", [])
    return next((condition["status"] for condition in conditions if condition["type"] == kind), "")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_operator_makes_and_removes_a_pool_with_its_own_rights(installed: Cluster, tmp_path: Path) -> None:
    kubectl = installed.kubectl
    namespace = kubectl.namespace()
    with _operator(installed, tmp_path) as process:
        spec = {"metadata.name": POOL, "spec.drainTimeoutSeconds": 1}
        kubectl.apply(json.dumps(specs.changed("CachePool", spec)))
        dataset = {"spec.pool": POOL, "spec.source.secretRef": {"name": "keys"}}
        kubectl.apply(json.dumps(specs.changed("Dataset", dataset)), namespace)
        kubectl.apply(json.dumps(specs.PRELOAD), namespace)
        kubectl.until("daemonset", f"shoal-{POOL}", lambda _: True, NAMESPACE)
        kubectl.until("cachepool", POOL, lambda pool: _condition(pool, "Ready") == "False")
        kubectl.until("dataset", "images", lambda found: _condition(found, "CredentialsDenied") == "True", namespace)
        kubectl.until("preload", "warm-images", lambda preload: "status" in preload, namespace)
        kubectl.patch("cachepool", POOL, {"spec": {"image": "shoal:0.1.1"}})
        kubectl.until("cachepool", POOL, lambda pool: pool["status"].get("image") == "shoal:0.1.1")
        for kind, name, where in (("preload", "warm-images", namespace), ("dataset", "images", namespace)):
            kubectl.delete(kind, name, where)
        kubectl.delete("cachepool", POOL)
        waiting.until(lambda: kubectl.find("daemonset", f"shoal-{POOL}", NAMESPACE) is None, "the pool is removed", 60)
        assert process.poll() is None, (tmp_path / "operator.log").read_text()
    assert _refused(installed, "shoal-operator") == []


def test_the_driver_asks_all_that_it_asks_with_its_own_rights(installed: Cluster, tmp_path: Path) -> None:
    kubectl = installed.kubectl
    namespace = kubectl.namespace()
    kubectl.apply(json.dumps(specs.DATASET), namespace)
    key = f"--from-literal=key={'k' * 32}"
    kubectl.run("--namespace", NAMESPACE, "create", "secret", "generic", "shoal-driven-key", key)
    view = json.dumps({"epoch": 1, "replica_count": 1, "nodes": []})
    kubectl.run("--namespace", NAMESPACE, "create", "configmap", "shoal-driven", f"--from-literal=view.json={view}")
    configuration = Configuration(host=installed.layout.api_url)
    configuration.ssl_ca_cert = str(installed.layout.certificate("ca"))
    configuration.api_key = {"authorization": "Bearer " + _token(installed, "shoal-csi", tmp_path).read_text()}
    driver = DriversView(configuration, NAMESPACE)
    with contextlib.closing(driver):
        user = driver.review_token(_token(installed, "shoal-csi", tmp_path, "--audience=shoal.dev").read_text())
        assert user.name == f"system:serviceaccount:{NAMESPACE}:shoal-csi"
        name = DatasetName(namespace, "images")
        assert driver.may_use(user, name) is False
        assert driver.may_use(User("admin", "", ("system:masters",), {}), name) is True
        assert driver.dataset(name)["pool"] == "nvme"
        assert driver.pool_key("driven") == b"k" * 32
        assert driver.pool_view("driven").epoch == 1
        with pytest.raises(Refused, match="there is no CachePool absent"):
            driver.pool_view("absent")
        event = {
            "metadata": {"name": "train.1", "namespace": namespace},
            "involvedObject": {"kind": "Pod", "name": "train", "namespace": namespace},
            "reason": "VolumeDenied",
            "message": "tried",
            "count": 1,
            "lastTimestamp": "2026-01-02T03:04:05Z",
        }
        for count in (1, 2):
            driver.record_event(namespace, {**event, "count": count})
    assert kubectl.get("event", "train.1", namespace)["count"] == 2
    assert _refused(installed, "shoal-csi") == []
