"""What users get wrong, on a real cluster: each is told where it is looked for, and mended without a restart.

Specs that the API server itself refuses are in tests/crds; tokens and permissions of pods in tests/csi; an operator
beside older or newer CRDs in tests/operator.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cluster.release import BUCKET, NAMESPACE, Release

pytestmark = pytest.mark.timeout(600)

POOL = "small"
PATH = "/var/lib/shoal"


@pytest.fixture(scope="module")
def team(release: Release) -> Iterator[str]:
    """A namespace with an object in the bucket, and a pool for its data sets."""
    release.bucket.put(BUCKET, "few/a.bin", b"a" * 1000)
    release.kubectl.apply(json.dumps(release.pool(POOL, ports={"data": 7460, "control": 7461})))
    release.ready("cachepool", POOL)
    yield release.kubectl.namespace("team")
    release.kubectl.delete("cachepool", POOL, wait=False)


def test_a_data_set_without_its_secret_and_the_permission(release: Release, team: str) -> None:
    """First the pool may not read the secret; then it may, and there is none; then there is one, and all is well."""
    kubectl = release.kubectl
    kubectl.apply(json.dumps(release.dataset(team, "few", POOL, "few/")))
    said = release.says("dataset", "few", "CredentialsDenied", team)
    assert f"kubectl shoal grant dataset few -n {team} | kubectl apply -f -" in said
    assert release.condition("dataset", "few", "CredentialsDenied", team)["status"] == "True"
    _grant(release, team)
    said = release.says("dataset", "few", "SecretMissing", team, 60)
    assert "s3" in said and team in said
    kubectl.apply(json.dumps(release.secret(team)))
    release.ready("dataset", "few", team, 150)
    assert release.condition("dataset", "few", "CredentialsDenied", team)["status"] == "False"
    assert kubectl.get("dataset", "few", team)["status"]["objects"] == 1


def test_wrong_credentials(release: Release) -> None:
    team = release.kubectl.namespace("wrong")
    _grant(release, team)
    release.kubectl.apply(json.dumps(release.secret(team, AWS_SECRET_ACCESS_KEY="not-this-one")))
    release.kubectl.apply(json.dumps(release.dataset(team, "few", POOL, "few/")))
    assert "403" in release.says("dataset", "few", "CredentialsRejected", team, 90)
    release.kubectl.apply(json.dumps(release.secret(team)))
    release.ready("dataset", "few", team, 150)


def test_an_origin_that_cannot_be_reached(release: Release, team: str) -> None:
    dataset = release.dataset(team, "nowhere", POOL, "few/")
    dataset["spec"]["source"]["endpoint"] = f"http://{release.cluster.layout.node_address(0)}:1"
    release.kubectl.apply(json.dumps(dataset))
    assert "few" in release.says("dataset", "nowhere", "OriginUnreachable", team, 120)


def test_a_data_set_of_no_pool(release: Release, team: str) -> None:
    release.kubectl.apply(json.dumps(release.dataset(team, "lost", "no-such-pool", "few/")))
    assert "no-such-pool" in release.says("dataset", "lost", "PoolNotFound", team)


def test_a_pool_that_no_node_matches(release: Release) -> None:
    release.kubectl.apply(json.dumps(release.pool("nobody", nodeSelector={"shoal.dev/none": "true"})))
    assert "shoal.dev/none" in release.says("cachepool", "nobody", "NoMatchingNodes")
    release.kubectl.patch("cachepool", "nobody", {"spec": {"nodeSelector": {"shoal.dev/none": None}}})
    release.ready("cachepool", "nobody", seconds=60)
    release.kubectl.delete("cachepool", "nobody")
    assert not release.kubectl.items("daemonset", NAMESPACE, "shoal.dev/pool=nobody")


def test_two_pools_on_one_path(release: Release) -> None:
    path = f"{PATH}/shared"
    for node in release.cluster.layout.nodes:
        release.cluster.run_in(node, "mkdir", "-p", path)
    place = [{"path": path, "capacity": "32Mi", "requireMount": False}]
    release.kubectl.apply(json.dumps(release.pool("first", nvme=place, ports={"data": 7470, "control": 7471})))
    release.ready("cachepool", "first")
    release.kubectl.apply(json.dumps(release.pool("second", nvme=place, ports={"data": 7480, "control": 7481})))
    said = release.says("cachepool", "second", "PathConflict")
    assert "first" in said and path in said
    assert release.condition("cachepool", "first", "Ready")["status"] == "True"
    release.kubectl.delete("cachepool", "first")
    release.ready("cachepool", "second", seconds=90)
    release.kubectl.delete("cachepool", "second")


def test_a_path_that_is_not_a_mount(release: Release) -> None:
    for node in release.cluster.layout.nodes:
        release.cluster.run_in(node, "mkdir", "-p", f"{PATH}/folder")
    place = [{"path": f"{PATH}/folder", "capacity": "32Mi"}]
    release.kubectl.apply(json.dumps(release.pool("folder", nvme=place)))
    said = _pods_say(release, "folder", "mount")
    assert "nvme" in said
    place[0]["requireMount"] = False  # type: ignore[assignment]
    release.kubectl.patch("cachepool", "folder", {"spec": {"nvme": place}})
    release.ready("cachepool", "folder", seconds=120)
    release.kubectl.delete("cachepool", "folder")


def test_a_disk_smaller_than_the_capacity(release: Release) -> None:
    for node in release.cluster.layout.nodes:
        release.cluster.nodes.add_disk(node, f"{PATH}/tiny", "64M")
    place = [{"path": f"{PATH}/tiny", "capacity": "1Gi"}]
    release.kubectl.apply(json.dumps(release.pool("tiny", nvme=place)))
    assert "nvme[0].budget_bytes" in _pods_say(release, "tiny", "can hold")
    place[0]["capacity"] = "32Mi"
    release.kubectl.patch("cachepool", "tiny", {"spec": {"nvme": place}})
    release.ready("cachepool", "tiny", seconds=120)
    release.kubectl.delete("cachepool", "tiny")


def _grant(release: Release, team: str) -> None:
    """What `kubectl shoal grant dataset few` prints (tests/plugin prove that it does), made by hand."""
    account = f"{NAMESPACE}:shoal-{POOL}"
    release.kubectl.run("-n", team, "create", "role", "s3", "--verb=get", "--resource=secrets", "--resource-name=s3")
    release.kubectl.run("-n", team, "create", "rolebinding", "s3", "--role=s3", f"--serviceaccount={account}")


def _pods_say(release: Release, pool: str, word: str) -> str:
    """The message of Ready once it has this word: what a node's last words were is part of it."""

    def has_it(seen: dict[str, object]) -> bool:
        return word in _message(seen)

    return _message(release.kubectl.until("cachepool", pool, has_it, seconds=90))


def _message(pool: dict[str, object]) -> str:
    status = pool.get("status")
    conditions = status.get("conditions", []) if isinstance(status, dict) else []
    return " ".join(each["message"] for each in conditions if each["type"] == "Ready")
