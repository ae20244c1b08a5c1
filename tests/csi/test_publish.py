"""Volumes on a real machine, decided by a real API server: what a pod gets, and who gets nothing."""

from __future__ import annotations

import base64
import errno
import json
import subprocess
import time
from pathlib import Path

import pytest

from shoal_core import access
from tests.cluster.cluster import Cluster
from tests.csi.machine import Driver, Machine
from tests.csi.tenants import KEY, Tenants, node
from tests.support import waiting


def _volume(machine: Machine, pool: str) -> Path:
    """The directory of the only volume of a pool."""
    (folder,) = (machine.root / pool / "volumes").iterdir()
    return folder


def test_a_pod_gets_a_directory_with_addresses_and_a_token(driver: Driver, machine: Machine, tenants: Tenants) -> None:
    pool = tenants.pool(node("node-1", "a"), node("node-2", "b"), node("node-3", "a"))
    team = tenants.team()
    team.dataset("images", pool)
    account = team.account()
    team.allow("images", account)
    pod = account.pod()
    target = machine.target(pod.uid)
    context = pod.context("images")

    driver.publish(context, target)
    assert {"ro", "nosuid", "nodev", "noexec"} <= machine.mounts()[str(target)]
    mount = machine.seen(target)
    assert json.loads((mount / "client.json").read_text()) == {
        "addresses": ["unix:/run/shoal/node.sock", *(f"tcp:10.0.0.{number}:7440" for number in (1, 3, 2))],
        "datasets": {"images": "s3://bucket/images"},
        "zone": "a",
        "rack": "",
        "token_file": "/run/shoal/token",
    }
    claims = access.verify(KEY, (mount / "token").read_text(), time.time(), pool)
    name = f"{team.namespace}.images"
    assert claims.role == "reader" and claims.datasets == {"images": name} and claims.namespace == team.namespace
    assert 590 < claims.expires_s - time.time() <= 600
    with pytest.raises(OSError) as caught:
        (mount / "client.json").write_text("{}")
    assert caught.value.errno == errno.EROFS
    assert {path.name: path.stat().st_mode & 0o777 for path in mount.iterdir()} == {
        "client.json": 0o644,
        "token": 0o644,
    }

    folder = _volume(machine, pool)
    assert folder.stat().st_mode & 0o777 == 0o700
    told = access.parse_volume((folder / "access.json").read_bytes())
    assert told == access.VolumeAccess(f"{team.namespace}/job-0", team.namespace, {"images": name}, pod.uid)

    # The node's socket appears in the pod, and nobody but the node can make one.
    (folder / "mount" / "node.sock").touch()
    assert (mount / "node.sock").exists()
    token = context["csi.storage.k8s.io/serviceAccount.tokens"]
    assert json.loads(token)["shoal.dev"]["token"] not in driver.log()
    assert '"user": "' + account.user in driver.log()

    driver.unpublish(pod.volume_id, target)
    assert not target.exists() and machine.mounts() == {} and list(folder.parent.iterdir()) == []
    driver.unpublish(pod.volume_id, target)
    driver.unpublish("csi-never-heard-of", machine.kubelet / "nowhere")


def test_a_data_set_of_another_namespace_needs_permission(driver: Driver, machine: Machine, tenants: Tenants) -> None:
    pool = tenants.pool(node("node-1"))
    owner, user = tenants.team(), tenants.team()
    owner.dataset("images", pool)
    account = user.account()
    pod = account.pod()
    target = machine.target(pod.uid)
    context = pod.context(f"{owner.namespace}/images")

    code, text = driver.refusal(context, target)
    assert code == "PERMISSION_DENIED"
    assert text == (
        f"{account.user} may not use the Dataset {owner.namespace}/images; who owns it can allow it: "
        f"kubectl shoal grant use images -n {owner.namespace} --to {user.namespace}/trainer | kubectl apply -f -"
    )
    assert not target.exists() and not (machine.root / pool).exists()
    driver.refusal(context, target)
    (event,) = pod.events()
    assert (event["type"], event["reason"], event["count"]) == ("Warning", "DatasetDenied", 2)
    assert event["message"] == text and event["source"] == {"component": "csi.shoal.dev", "host": "node-1"}
    denied = [line for line in driver.log().splitlines() if "shoal.csi.audit: denied" in line]
    account_of = json.loads(denied[-1].partition("denied ")[2])
    assert account_of["user"] == account.user and account_of["datasets"] == [f"{owner.namespace}/images"]

    # Who may not use it does not learn whether it exists.
    unknown = driver.refusal(pod.context(f"{owner.namespace}/none"), target)
    assert unknown[0] == "PERMISSION_DENIED"

    owner.allow("images", account)
    driver.publish(context, target)
    assert json.loads((machine.seen(target) / "client.json").read_text())["datasets"] == {
        "images": "s3://bucket/images"
    }


def test_a_permission_that_is_withdrawn_ends_access_and_comes_back(
    driver: Driver, machine: Machine, tenants: Tenants
) -> None:
    pool = tenants.pool(node("node-1"))
    team = tenants.team()
    team.dataset("images", pool)
    account = team.account()
    team.allow("images", account)
    pod = account.pod()
    target = machine.target(pod.uid)
    context = pod.context("images")
    driver.publish(context, target)
    told = _volume(machine, pool) / "access.json"
    token = machine.seen(target) / "token"

    team.forbid("images", account)
    assert driver.refusal(context, target)[0] == "PERMISSION_DENIED"
    assert access.parse_volume(told.read_bytes()).datasets == {}
    assert access.verify(KEY, token.read_text(), time.time(), pool).datasets == {}
    assert str(target) in machine.mounts()

    team.allow("images", account)
    driver.publish(context, target)
    assert access.parse_volume(told.read_bytes()).datasets == {"images": f"{team.namespace}.images"}
    assert access.verify(KEY, token.read_text(), time.time(), pool).datasets == {"images": f"{team.namespace}.images"}


def test_a_token_must_be_the_pods_own(driver: Driver, machine: Machine, tenants: Tenants) -> None:
    pool = tenants.pool(node("node-1"))
    team = tenants.team()
    team.dataset("images", pool)
    account, other = team.account(), team.account("other")
    team.allow("images", account)
    pod, neighbour, stranger = account.pod(), account.pod("job-1"), other.pod("job-2")
    target = machine.target(pod.uid)
    unbound = tenants.kubectl.run(
        "--namespace", team.namespace, "create", "token", "trainer", "--audience=shoal.dev"
    ).strip()
    for token, reason in (
        (neighbour.token(), f"in the pod with uid {neighbour.uid}"),
        (stranger.token(), f"belongs to {other.user} "),
        (unbound, "in the pod with uid (none)"),
        (pod.token("somebody.else"), "the pod's token for shoal.dev is not valid"),
        ("nonsense", "the pod's token for shoal.dev is not valid"),
    ):
        code, text = driver.refusal(pod.context("images", token), target)
        assert code == "UNAUTHENTICATED" and reason in text
    assert {event["reason"] for event in pod.events()} == {"DatasetDenied"}

    # Kubernetes can hand the token over among the secrets, since 1.36.
    context = pod.context("images")
    name = "csi.storage.k8s.io/serviceAccount.tokens"
    driver.publish({key: value for key, value in context.items() if key != name}, target, secrets={name: context[name]})


def test_every_publish_makes_the_contents_anew(driver: Driver, machine: Machine, tenants: Tenants) -> None:
    """Volumes of one machine share what was read a moment ago, so a new view counts after some seconds."""
    pool = tenants.pool(node("node-2"))
    team = tenants.team()
    team.dataset("images", pool)
    account = team.account()
    team.allow("images", account)
    pod = account.pod()
    target = machine.target(pod.uid)
    context = pod.context("images")
    driver.publish(context, target)
    client = machine.seen(target) / "client.json"
    # No cache node on this machine: the same volume, over TCP only.
    assert json.loads(client.read_text())["addresses"] == ["tcp:10.0.0.2:7440"]

    tenants.view(pool, node("node-1"), node("node-3"), epoch=2)
    machine.unmount(target)

    def addresses() -> list[str]:
        driver.publish(context, target)
        return json.loads(client.read_text())["addresses"]

    expected = ["unix:/run/shoal/node.sock", "tcp:10.0.0.1:7440", "tcp:10.0.0.3:7440"]
    waiting.until(lambda: addresses() == expected, "the new view in the volume")
    assert len(machine.mounts()) == 1


def test_pools_of_one_machine_keep_apart(driver: Driver, machine: Machine, tenants: Tenants) -> None:
    pools = [tenants.pool(node("node-1")), tenants.pool(node("node-1"))]
    team = tenants.team()
    account = team.account()
    for name, pool in zip(("images", "texts"), pools, strict=True):
        team.dataset(name, pool)
        team.allow(name, account)
    pods = [account.pod("job-0"), account.pod("job-1")]
    for pod, name in zip(pods, ("images", "texts"), strict=True):
        driver.publish(pod.context(name), machine.target(pod.uid))
    told = [access.parse_volume((_volume(machine, pool) / "access.json").read_bytes()).who for pool in pools]
    assert told == [f"{team.namespace}/job-0", f"{team.namespace}/job-1"]

    code, text = driver.refusal(pods[0].context("images, texts"), machine.target(pods[0].uid), volume_id="csi-other")
    assert code == "INVALID_ARGUMENT" and pools[0] in text and pools[1] in text


def test_several_data_sets_in_one_volume(driver: Driver, machine: Machine, tenants: Tenants) -> None:
    pool = tenants.pool(node("node-1"))
    own, other = tenants.team(), tenants.team()
    account = own.account()
    for team, name in (own, "images"), (own, "texts"), (other, "images"):
        team.dataset(name, pool)
        team.allow(name, account)
    pod = account.pod()
    target = machine.target(pod.uid)
    driver.publish(pod.context(f"images,texts,{other.namespace}/images"), target)
    claims = access.peek((machine.seen(target) / "token").read_text())
    assert claims.datasets == {
        f"{own.namespace}.images": f"{own.namespace}.images",
        "texts": f"{own.namespace}.texts",
        f"{other.namespace}.images": f"{other.namespace}.images",
    }


def test_what_is_missing_is_named(driver: Driver, machine: Machine, tenants: Tenants) -> None:
    team = tenants.team()
    account = team.account()
    pod = account.pod()
    target = machine.target(pod.uid)
    for name in "none", "homeless", "early":
        team.allow(name, account)
    team.dataset("homeless", "no-such-pool")
    early = tenants.pool(ready=False)
    team.dataset("early", early)
    namespace = team.namespace
    assert driver.refusal(pod.context("none"), target) == (
        "NOT_FOUND",
        f"there is no Dataset none in the namespace {namespace}",
    )
    assert driver.refusal(pod.context("homeless"), target) == ("NOT_FOUND", "there is no CachePool no-such-pool")
    code, text = driver.refusal(pod.context("early"), target)
    assert code == "UNAVAILABLE" and text.startswith(f"CachePool {early} is not set up yet")
    assert pod.events() == []  # none of these is about permission


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dataset": ""}, "volumeAttributes.dataset: missing"),
        ({"dataset": "a/b/c"}, "'a/b/c' is not [namespace/]name"),
        ({"datasets": "images"}, "volumeAttributes.datasets: unknown"),
        ({"csi.storage.k8s.io/ephemeral": "false"}, "inline ephemeral volumes only"),
        ({"csi.storage.k8s.io/pod.uid": ""}, "podInfoOnMount"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(
    changes: dict[str, str], reason: str, driver: Driver, machine: Machine
) -> None:
    context = {
        "dataset": "images",
        "csi.storage.k8s.io/ephemeral": "true",
        "csi.storage.k8s.io/pod.name": "job-0",
        "csi.storage.k8s.io/pod.namespace": "team",
        "csi.storage.k8s.io/pod.uid": "1",
        "csi.storage.k8s.io/serviceAccount.name": "trainer",
    }
    code, text = driver.refusal({**context, **changes}, machine.target("1"), volume_id="csi-1")
    assert code == "INVALID_ARGUMENT" and reason in text


def test_an_expired_token_is_refused(
    driver: Driver, machine: Machine, tenants: Tenants, control_plane: Cluster
) -> None:
    """A token that Kubernetes made, but whose time is over, signed anew with the cluster's own key."""
    pool = tenants.pool(node("node-1"))
    team = tenants.team()
    team.dataset("images", pool)
    account = team.account()
    team.allow("images", account)
    pod = account.pod()
    target = machine.target(pod.uid)
    good = pod.token()
    header, payload, _ = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    key = control_plane.layout.key("service-accounts")
    again = _signed(header, claims, key)
    driver.publish(pod.context("images", again), target)  # the signature is as good as Kubernetes' own
    hour_s = 3600
    expired = _signed(header, {**claims, **{name: claims[name] - 2 * hour_s for name in ("exp", "iat", "nbf")}}, key)
    code, text = driver.refusal(pod.context("images", expired), target)
    assert code == "UNAUTHENTICATED" and "token has expired" in text
    assert access.parse_volume((_volume(machine, pool) / "access.json").read_bytes()).datasets == {}


def _signed(header: str, claims: dict[str, object], key: Path) -> str:
    def text(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    content = f"{header}.{text(json.dumps(claims).encode())}"
    argv = ["openssl", "dgst", "-sha256", "-sign", key]
    signature = subprocess.run(argv, input=content.encode(), capture_output=True, check=True).stdout
    return f"{content}.{text(signature)}"
