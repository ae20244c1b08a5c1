"""Upgrade from the previous version, upgrade again, uninstall, install again: what users made is never lost."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from tests.chart.helm import CHART, NAMESPACE, PREVIOUS, Helm
from tests.cluster.cluster import Cluster
from tests.crds import specs

HERE = ("--namespace", NAMESPACE)
KINDS = [f"{plural}.shoal.dev" for plural in specs.PLURAL.values()]


def _make_objects(cluster: Cluster) -> dict[str, str]:
    """One of each kind, in the words that the previous version knew; their uids."""
    made: dict[str, str] = {}
    objects = {
        "CachePool": {"dram": {"budget": "64Gi"}},
        "Dataset": {"pool": "nvme", "source": {"uri": "s3://bucket/images"}},
        "Preload": {"dataset": "images"},
    }
    with cluster.api as api:
        for kind, spec in objects.items():
            manifest = {"apiVersion": "shoal.dev/v1alpha1", "kind": kind, "metadata": {"name": "kept"}, "spec": spec}
            status, answer = api.request("POST", specs.collection(kind), manifest)
            assert status == 201, answer
            made[kind] = answer["metadata"]["uid"]
    return made


def _uids(cluster: Cluster) -> dict[str, str]:
    found = {kind: cluster.kubectl.get(specs.PLURAL[kind], "kept", "default") for kind in specs.OBJECTS}
    return {kind: each["metadata"]["uid"] for kind, each in found.items()}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_from_the_previous_version_to_this_one_and_back_from_nothing(empty: Cluster) -> None:
    helm, kubectl = Helm(empty.kubeconfig), empty.kubectl
    helm.run("install", "shoal", PREVIOUS, *HERE, "--create-namespace")
    before = kubectl.get("deployment", "shoal-operator", NAMESPACE)
    assert before["spec"]["template"]["spec"]["containers"][0]["image"] == "shoal:0.0.9"
    uids = _make_objects(empty)
    assert "replicas" not in kubectl.get("cachepool", "kept")["spec"]

    helm.run("upgrade", "shoal", CHART, *HERE)
    after = kubectl.get("deployment", "shoal-operator", NAMESPACE)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"]["template"]["spec"]["containers"][0]["image"] == "shoal:0.1.0"
    crd = kubectl.get("crd", "datasets.shoal.dev")
    assert crd["metadata"]["annotations"]["shoal.dev/schema-version"] == "1"
    assert crd["spec"]["names"]["categories"] == ["shoal"]
    for kind in KINDS:
        kubectl.wait("crd", kind, "condition=Established")
    assert _uids(empty) == uids
    assert kubectl.get("cachepool", "kept")["spec"]["replicas"] == 1  # the new definition's default
    assert kubectl.find("csidriver", "csi.shoal.dev") is not None

    helm.run("upgrade", "shoal", CHART, *HERE, "--set", "crds.install=false")
    assert _uids(empty) == uids
    helm.run("upgrade", "shoal", CHART, *HERE)
    assert _uids(empty) == uids

    helm.run("uninstall", "shoal", *HERE)
    assert kubectl.find("deployment", "shoal-operator", NAMESPACE) is None
    assert kubectl.find("csidriver", "csi.shoal.dev") is None
    assert _uids(empty) == uids
    said = helm.run("install", "shoal", CHART, *HERE)
    assert f"kubectl label namespace {NAMESPACE} pod-security.kubernetes.io/enforce=privileged" in said
    assert _uids(empty) == uids
    assert kubectl.find("deployment", "shoal-operator", NAMESPACE) is not None


def test_the_webhooks_certificate_outlives_upgrades(installed: Cluster) -> None:
    def state() -> tuple[object, str]:
        secret = installed.kubectl.get("secret", "shoal-webhook-tls", NAMESPACE)
        webhook = installed.kubectl.get("mutatingwebhookconfiguration", "shoal-webhook")["webhooks"][0]
        assert webhook["clientConfig"]["caBundle"] == secret["data"]["ca.crt"]
        assert (webhook["failurePolicy"], webhook["sideEffects"]) == ("Ignore", "None")
        return secret["data"], secret["metadata"]["uid"]

    before = state()
    Helm(installed.kubeconfig).run("upgrade", "shoal", CHART, *HERE, "--reuse-values", "--set", "operator.replicas=1")
    assert state() == before


def test_the_webhooks_certificate_is_for_its_service(installed: Cluster, tmp_path: Path) -> None:
    data = installed.kubectl.get("secret", "shoal-webhook-tls", NAMESPACE)["data"]
    for name in ("ca.crt", "tls.crt"):
        (tmp_path / name).write_bytes(base64.b64decode(data[name]))
    name = f"shoal-webhook.{NAMESPACE}.svc"
    argv = ("openssl", "verify", "-CAfile", tmp_path / "ca.crt", "-verify_hostname", name, tmp_path / "tls.crt")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("OK\n"), done.stderr
