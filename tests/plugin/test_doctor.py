"""doctor: what it finds in an installation that is not one, half of one, and a whole one. Nodes: test_in_pods."""

from __future__ import annotations

import datetime as dt
from typing import Any

from tests.plugin.plugin import Plugin
from tests.plugin.worlds import NOW, World, condition
from tests.support import waiting


def found(plugin: Plugin, world: World, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and the checks by name."""
    done = plugin.run("doctor", world.pool, "--system-namespace", world.system, "--no-nodes", "-o", "json", *words)
    return done.code, {check["name"]: check for check in done.json()}


def install(world: World, image: str = "example.com/shoal:0.1.0", *, ready: int = 2) -> None:
    """What the chart makes, as far as doctor looks at it."""
    labels = {"app": "operator"}
    containers = [{"name": "x", "image": image}]
    template = {"metadata": {"labels": labels}, "spec": {"containers": containers}}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    meta = {"namespace": world.system}
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    world.apply(
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {**meta, "name": "shoal-operator"},
            "spec": {**spec, "replicas": 2},
        },
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {**meta, "name": "shoal-csi"},
         "spec": {**spec, "template": {**template, "spec": {"containers": containers, "nodeSelector": {"a": "b"}}}}},
        {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {**meta, "name": "shoal-operator"},
         "spec": {"holderIdentity": "operator-1", "renewTime": now}},
        {"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": "csi.shoal.dev"}, "spec": {}},
    )  # fmt: skip
    waiting.until(lambda: len(world.kubectl.items("pod", world.system, "app=operator")) == 2)
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": NOW}]
    for pod in world.kubectl.items("pod", world.system, "app=operator")[:ready]:
        told = {"status": {"phase": "Running", "conditions": conditions}}
        world.kubectl.patch("pod", pod["metadata"]["name"], told, world.system, "status")
    world.kubectl.wait("deployment", "shoal-operator", f"jsonpath={{.status.readyReplicas}}={ready}", world.system)


def test_nothing_is_installed(plugin: Plugin, world: World) -> None:
    world.make_pool()
    code, checks = found(plugin, world)
    assert code == 1
    assert checks["API server"]["outcome"] == "pass" and checks["CRD datasets"]["finding"] == "schema 1"
    assert checks["operator"]["outcome"] == "fail" and "helm upgrade --install" in checks["operator"]["remedy"]
    assert checks["leader"]["outcome"] == "fail"


def test_all_is_installed(plugin: Plugin, world: World) -> None:
    world.make_pool()
    install(world)
    _, checks = found(plugin, world)
    good = {name: check["outcome"] for name, check in checks.items() if name not in ("Dataset", "Preload")}
    assert good["operator"] == good["leader"] == good["CSI driver"] == good["your rights"] == "pass", checks
    assert checks["leader"]["finding"] == "operator-1"
    assert checks["CachePool"]["finding"] == "1, all well"
    assert "create pods/exec" in checks["your rights"]["finding"]


def test_versions_that_differ(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_nodes(f"{world.pool}-a")
    install(world, "registry.example.com:5000/shoal:9.9.9", ready=1)
    _, checks = found(plugin, world)
    assert checks["operator"]["outcome"] == "warn" and "this plugin is 0.1.0" in checks["operator"]["finding"]
    assert checks["images of nodes"]["outcome"] == "pass"


def test_definitions_that_are_older_or_newer(plugin: Plugin, world: World) -> None:
    """The annotation is put back: the definitions are everybody's."""
    world.make_pool()

    def annotate(value: str) -> None:
        world.kubectl.run("annotate", "--overwrite", "crd", "preloads.shoal.dev", f"shoal.dev/schema-version={value}")

    try:
        annotate("0")
        code, checks = found(plugin, world)
        assert code == 1 and checks["CRD preloads"]["outcome"] == "fail"
        assert "crds/" in checks["CRD preloads"]["remedy"]
        annotate("99")
        assert found(plugin, world)[1]["CRD preloads"]["outcome"] == "warn"
    finally:
        annotate("1")


def test_conditions_come_with_the_next_step(plugin: Plugin, world: World) -> None:
    world.make_pool(
        condition("Ready", "False", "NoMatchingNodes", "no node has disk=nvme"),
        condition("Stalled", "True", "NoMatchingNodes", "no node has disk=nvme"),
    )
    denied = "pool p may not read secret s; to allow that and nothing else: COMMAND"
    world.make_dataset(
        "images", condition("Ready", "False", "CredentialsDenied", denied),
        condition("Stalled", "True", "CredentialsDenied", denied),
    )  # fmt: skip
    world.make_dataset(
        "slow", condition("Ready", "False", "OriginUnreachable", "does not answer"), condition("Stalled", "False", "No")
    )
    code, checks = found(plugin, world)
    pool, images = checks[f"CachePool {world.pool}"], checks[f"Dataset {world.team}/images"]
    assert code == 1 and pool["outcome"] == "fail" and pool["remedy"].startswith("kubectl label node")
    assert images["remedy"] == f"kubectl shoal grant dataset images -n {world.team} | kubectl apply -f -"
    assert images["finding"] == "CredentialsDenied: pool p may not read secret s"
    assert checks[f"Dataset {world.team}/slow"]["outcome"] == "warn", "it may come right by itself"


def test_rights_of_somebody_who_has_few(plugin: Plugin, world: World) -> None:
    world.make_pool()
    user = f"few-{world.pool}"
    world.kubectl.run("create", "clusterrole", user, "--verb=get,list", "--resource=cachepools.shoal.dev")
    world.kubectl.run("create", "clusterrolebinding", user, f"--clusterrole={user}", f"--user={user}")
    done = plugin.as_user(user).run("doctor", world.pool, "--system-namespace", world.system)
    assert f"you may not create pods/exec in {world.system}: no top, locate" in done.out
    assert "you may not create preloads.shoal.dev in default: no warm" in done.out
    assert "skip  CRD cachepools" in done.out and "Traceback" not in done.errors
    assert done.errors == ""


def test_no_cluster_at_all(plugin: Plugin) -> None:
    done = plugin.run("doctor", "--kubeconfig", "/nonexistent")
    assert done.code == 1 and "FAIL  API server" in done.out and "--context" in done.out and done.errors == ""
