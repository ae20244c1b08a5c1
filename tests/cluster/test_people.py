"""What people do by hand beside the operator that runs: pools, kubectl shoal, and pods that the webhook gives their
volume."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.cluster.release import BUCKET, NAMESPACE, ROOT, Release
from tests.plugin.plugin import Plugin
from tests.support.kubernetes import load_image

pytestmark = pytest.mark.timeout(600)

POOL = "hands"
FILES, FILE_BYTES = 12, 256 << 10


@pytest.fixture(scope="module")
def team(release: Release) -> Iterator[str]:
    """A namespace with a data set in a pool of its own, whose every grant is what the plugin prints."""
    for number in range(FILES):
        release.bucket.put(BUCKET, f"hands/{number:02}.bin", bytes([number]) * FILE_BYTES)
    kubectl, plugin = release.kubectl, Plugin(release.cluster)
    kubectl.apply(json.dumps(release.pool(POOL, replicas=2)))
    release.ready("cachepool", POOL)
    team = kubectl.namespace("team")
    kubectl.apply(json.dumps(release.secret(team)))
    kubectl.apply(json.dumps(release.dataset(team, "few", POOL, "hands/")))
    kubectl.apply(plugin.good("grant", "dataset", "few", "-n", team).out)
    kubectl.apply(plugin.good("grant", "use", "few", "-n", team, "--to", f"{team}/default").out)
    release.ready("dataset", "few", team, 150)
    yield team
    kubectl.delete("cachepool", POOL, wait=False)


@pytest.fixture
def plugin(release: Release) -> Plugin:
    return Plugin(release.cluster)


def test_a_pool_is_ready_soon(release: Release, team: str) -> None:
    """Of three nodes, its image there; what kubectl waits for included."""
    begun_s = time.monotonic()
    release.kubectl.apply(json.dumps(release.pool("quick", ports={"data": 7480, "control": 7481})))
    release.ready("cachepool", "quick")
    took_s = time.monotonic() - begun_s
    print(f"\napply to Ready of a pool of three nodes: {took_s:.1f} s")
    release.kubectl.delete("cachepool", "quick")


def test_warm_waits_until_every_byte_was_checked(plugin: Plugin, release: Release, team: str) -> None:
    done = plugin.run("warm", "few", "-n", team, "--wait")
    assert done.code == 0, done
    size = 2 * FILES * FILE_BYTES
    assert f"Complete: {FILES} of {FILES} objects, {size:,} bytes, {size:,} checked" in done.out
    held = release.kubectl.until("dataset", "few", lambda seen: seen["status"].get("cachedPercent") == "100%", team)
    assert held["status"]["objects"] == FILES
    (first,) = plugin.good("locate", "shoal://few/00.bin", "-n", team, "-o", "json").json()
    assert len(first["holders"]) == 2, first


def test_a_warm_that_finds_nothing_fails_and_says_so(plugin: Plugin, release: Release, team: str) -> None:
    done = plugin.run("warm", "few", "none/", "-n", team, "--wait")
    assert done.code == 1 and "Failed" in done.out and "none: there is no object of the data set" in done.out, done
    release.kubectl.run("-n", team, "delete", "preloads", "--all")


def test_doctor_finds_nothing_wrong(plugin: Plugin, team: str) -> None:
    checks = plugin.run("doctor", POOL, "-o", "json").json()
    others = "CachePool ", "Dataset ", "Preload "  # what other tests of this cluster made to fail
    failed = {check["name"]: check["finding"] for check in checks if check["outcome"] == "fail"}
    ours = {name: text for name, text in failed.items() if team in name or POOL in name or not name.startswith(others)}
    assert ours == {}
    assert {"operator", "leader", "CSI driver"} <= {check["name"] for check in checks}


def test_a_drained_node_hands_over_and_comes_back(plugin: Plugin, release: Release, team: str) -> None:
    done = plugin.run("drain", "node-3", "--pool", POOL)
    assert done.code == 0 and f"pool {POOL}: node-3 is drained" in done.out, done
    (node,) = [each for each in _nodes(plugin) if each["node"] == "node-3"]
    assert node["view"]["status"] == "draining"
    for number in range(FILES):
        blocks = plugin.good(
            "locate", f"shoal://few/{number:02}.bin", "-n", team, "--node", "node-1", "-o", "json"
        ).json()
        assert all("node-3" not in [owner["id"] for owner in block["owners"]] for block in blocks)
    assert "stays" in plugin.good("drain", "node-3", "--pool", POOL, "--cancel").out
    release.kubectl.until("cachepool", POOL, lambda pool: pool["status"]["nodes"] == "3/3")


def test_the_webhook_gives_a_pod_its_volume(release: Release, team: str) -> None:
    kubectl = release.kubectl
    image = load_image(release.cluster, "shoal-trainer", ROOT, ROOT / "images/trainer/Dockerfile")
    chart = (str(ROOT / "charts/shoal"), "--namespace", NAMESPACE, "--reuse-values")
    release.helm("upgrade", "shoal", *chart, "--set", "webhook.enabled=true", "--wait", "--timeout", "120s")
    try:
        kubectl.run("label", "namespace", team, "pod-security.kubernetes.io/enforce=restricted")
        read = "import shoal; print(len(shoal.connect().read('shoal://few/03.bin')))"
        container = {
            "name": "reader", "image": image, "command": ["python", "-c", read],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }  # fmt: skip
        secure = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
        pod = {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "reader", "namespace": team, "labels": {"shoal.dev/inject": "few"}},
            "spec": {"restartPolicy": "Never", "securityContext": secure, "containers": [container]},
        }  # fmt: skip
        kubectl.apply(json.dumps(pod))
        made = kubectl.get("pod", "reader", team)["spec"]
        (volume,) = [each for each in made["volumes"] if "csi" in each]
        assert volume["csi"]["driver"] == "csi.shoal.dev" and made["affinity"]["nodeAffinity"]
        kubectl.wait("pod", "reader", "jsonpath={.status.phase}=Succeeded", team, 60)
        assert kubectl.logs("reader", team).splitlines()[-1] == str(FILE_BYTES)
    finally:
        release.helm("upgrade", "shoal", *chart, "--set", "webhook.enabled=false", "--wait", "--timeout", "120s")


def _nodes(plugin: Plugin) -> list[dict[str, dict[str, str]]]:
    return plugin.good("status", POOL, "-o", "json").json()["nodes"]
