"""The driver and a real kubelet: it registers, mounts into a pod of the level `restricted`, and is asked again.

The driver runs as a process of the node, with kubelet's own directories; tests/cluster has it in its pod.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal_core import access
from tests.cluster.cluster import Cluster
from tests.cluster.nodes import PAUSE_IMAGE
from tests.csi.tenants import KEY, Account, Tenants, node
from tests.support import waiting

NODE = 1
REPUBLISH_S = 150
"""kubelet looks at each pod about once a minute."""


@pytest.fixture(scope="module")
def tenants_of_cluster(cluster: Cluster) -> Tenants:
    tenants = Tenants(cluster)
    driver = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIDriver",
        "metadata": {"name": "csi.shoal.dev"},
        "spec": {
            "attachRequired": False,
            "podInfoOnMount": True,
            "requiresRepublish": True,
            "tokenRequests": [{"audience": "shoal.dev"}],
            "volumeLifecycleModes": ["Ephemeral"],
            "fsGroupPolicy": "None",
        },
    }
    tenants.apply(driver)
    return tenants


@pytest.fixture
def driver_log(cluster: Cluster, tenants_of_cluster: Tenants, tmp_path: Path) -> Iterator[Path]:
    """The driver runs on the node until the test ends."""
    log = tmp_path / "driver.log"
    kubelet = "/var/lib/kubelet"
    argv = cluster.nodes.enter(
        NODE,
        *(sys.executable, "-m", "shoal_csi", "--node-id", f"node-{NODE}"),
        *("--endpoint", f"unix://{kubelet}/plugins/csi.shoal.dev/csi.sock"),
        *("--registration-dir", f"{kubelet}/plugins_registry", "--health-port", "0", "--socket-wait-s", "0"),
    )
    environment = {
        **os.environ,
        "KUBECONFIG": str(tenants_of_cluster.kubeconfig),
        "POD_NAMESPACE": tenants_of_cluster.release,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(argv, env=environment, stdout=output, stderr=output)
    try:
        waiting.until(lambda: "kubelet knows csi.shoal.dev" in log.read_text(), "the registration", 30)
        yield log
    finally:
        process.terminate()
        process.wait(20)


def _pod(name: str, account: Account, dataset: str) -> dict[str, Any]:
    restricted = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    volume = {"driver": "csi.shoal.dev", "readOnly": True, "volumeAttributes": {"dataset": dataset}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": account.namespace},
        "spec": {
            "serviceAccountName": account.name,
            "nodeName": f"node-{NODE}",
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "main",
                    "image": PAUSE_IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "securityContext": restricted,
                    "volumeMounts": [{"name": "shoal", "mountPath": "/run/shoal", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "shoal", "csi": volume}],
        },
    }


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_kubelet_mounts_asks_again_and_unmounts(
    cluster: Cluster, tenants_of_cluster: Tenants, driver_log: Path
) -> None:
    tenants, kubectl = tenants_of_cluster, cluster.kubectl
    pool = tenants.pool(node("node-2", "zone-b"))
    team = tenants.team()
    kubectl.run("label", "namespace", team.namespace, "pod-security.kubernetes.io/enforce=restricted")
    team.dataset("images", pool)
    account = team.account()
    root = Path(f"/proc/{cluster.nodes.init_pid(NODE)}/root")

    tenants.apply(_pod("job", account, "images"))
    event = "FailedMount"
    waiting.until(
        lambda: [item for item in _events(tenants, account, "job") if item["reason"] == event], "kubelet's event", 60
    )
    (failed, *_) = (item for item in _events(tenants, account, "job") if item["reason"] == event)
    assert "kubectl shoal grant use images" in failed["message"]
    assert any(item["reason"] == "DatasetDenied" for item in _events(tenants, account, "job"))

    team.allow("images", account)
    kubectl.wait("pod", "job", "condition=Ready", team.namespace, 60)
    uid = kubectl.get("pod", "job", team.namespace)["metadata"]["uid"]
    (folder,) = (root / "run" / "shoal.dev" / pool / "volumes").iterdir()
    first = (folder / "mount" / "token").read_text()
    assert access.peek(first).who == f"{team.namespace}/job"
    mounted = root / f"var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/shoal/mount"
    assert (mounted / "token").read_text() == first

    team.forbid("images", account)
    began_s = time.monotonic()

    def held() -> dict[str, str]:
        return access.verify(KEY, (mounted / "token").read_text(), 0, pool).datasets

    waiting.until(lambda: not held(), "the end of the permission", REPUBLISH_S)
    print(f"withdrawn after {time.monotonic() - began_s:.0f} s")
    assert access.parse_volume((folder / "access.json").read_bytes()).datasets == {}
    assert kubectl.get("pod", "job", team.namespace)["status"]["phase"] == "Running"

    kubectl.delete("pod", "job", team.namespace)
    waiting.until(lambda: not folder.exists() and not mounted.exists(), "the end of the volume", 60)
    assert "Traceback" not in driver_log.read_text()


def _events(tenants: Tenants, account: Account, pod: str) -> list[dict[str, Any]]:
    return tenants.kubectl.items("events", account.namespace, fields=f"involvedObject.name={pod}")
