"""status and datasets: what people see, and what scripts get."""

from __future__ import annotations

import json

from tests.plugin.plugin import Plugin
from tests.plugin.worlds import World, condition
from tests.support import waiting

READY = condition("Ready", "True", "Ready", "all is well")


def line_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if name in line)


def test_status_shows_pool_and_nodes(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_nodes(f"{world.pool}-a", f"{world.pool}-b")
    shown = plugin.good("status", world.pool).out
    header, line = shown.splitlines()[:2]
    assert header.split() == ["POOL", "READY", "NODES", "CAPACITY", "USED", "HIT", "RATIO", "EPOCH", "VERSION", "AGE"]
    assert line.split()[:8] == [world.pool, "True", "3/3", "6Ti", "1.2Ti", "97.3%", "7", "0.1.0"]
    node = line_of(shown, f"{world.pool}-b  ").split()
    assert node[:8] == [
        world.pool, f"{world.pool}-b", "ready", "a", f"shoal-{world.pool}-{world.pool}-b", "Ready", "2", "10.1.2.2",
    ]  # fmt: skip
    assert "All is well: 1 pool, 0 data sets and preloads." in shown


def test_status_names_what_needs_attention_most_urgent_first(plugin: Plugin, world: World) -> None:
    world.make_pool(READY, condition("Degraded", "True", "Fallbacks", "2 nodes read their disk through the page cache"))
    command = "kubectl shoal grant dataset images -n x | kubectl apply -f -"
    denied = [
        condition("Ready", "False", "CredentialsDenied", command),
        condition("Stalled", "True", "CredentialsDenied", command),
        condition("CredentialsDenied", "True", "CredentialsDenied", command),
    ]
    world.make_dataset("images", *denied)
    world.make_dataset("fine", READY)
    shown = plugin.good("status", world.pool).out
    attention = shown.partition("Needs attention:\n")[2]
    assert attention.count("CredentialsDenied") == 1, "three conditions tell of one thing"
    assert command in attention and "fine" not in attention
    assert attention.index(f"Dataset {world.team}/images") < attention.index(f"CachePool {world.pool}: Fallbacks")
    values = plugin.good("status", world.pool, "-o", "json").json()
    assert [(each["kind"], each["type"], each["stalled"]) for each in values["attention"]] == [
        ("Dataset", "CredentialsDenied", True), ("CachePool", "Degraded", False),
    ]  # fmt: skip


def test_status_of_a_pool_that_no_operator_has_seen(plugin: Plugin, world: World) -> None:
    world.apply({
        "apiVersion": "shoal.dev/v1alpha1", "kind": "CachePool", "metadata": {"name": world.pool},
        "spec": {"dram": {"budget": "1Gi"}},
    })  # fmt: skip
    shown = plugin.good("status", world.pool).out
    assert "NotSeen" in shown and "kubectl shoal doctor" in shown


def test_status_in_yaml_is_the_same_as_in_json(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_nodes(f"{world.pool}-a")
    values = plugin.good("-o", "json", "status", world.pool).json()
    assert [node["node"] for node in values["nodes"]] == [f"{world.pool}-a"]
    assert values["nodes"][0]["view"]["status"] == "ready"
    assert plugin.good("status", "-o", "yaml", world.pool).yaml() == [values]


def test_status_without_the_right_to_see_pods(plugin: Plugin, world: World) -> None:
    """Who may see Shoal's own objects and nothing else gets those, and is told what is missing."""
    world.make_pool()
    world.make_nodes(f"{world.pool}-a")
    world.apply({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": f"see-{world.pool}"},
        "rules": [{"apiGroups": ["shoal.dev"], "resources": ["*"], "verbs": ["get", "list"]}],
    })  # fmt: skip
    user = f"viewer-{world.pool}"
    world.kubectl.run("create", "clusterrolebinding", user, f"--clusterrole=see-{world.pool}", f"--user={user}")
    viewer = plugin.as_user(user)
    shown = viewer.good("status", world.pool).out
    assert world.pool in shown and "Not shown: nodes: pods is forbidden" in shown
    refused = viewer.run("top", world.pool)
    assert refused.code == 1 and refused.errors.startswith("kubectl shoal: pods is forbidden") and refused.out == ""


def test_datasets(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_dataset("images", READY)
    world.make_dataset("new")
    header, images, new = plugin.good("datasets", "-n", world.team).out.splitlines()
    assert header.split("   ")[0] == "NAME"
    assert images.split()[:7] == ["images", world.pool, "True", "Ready", "1281167", "137.7Gi", "45%"]
    assert images.split()[-1] == "s3://bucket/images"
    assert new.split()[:4] == ["new", world.pool, "-", "-"]
    everywhere = plugin.good("datasets", "-A").out
    assert everywhere.startswith("NAMESPACE") and line_of(everywhere, world.team).split()[1] == "images"
    listed = plugin.good("datasets", "-n", world.team, "-o", "json").json()
    assert [each["metadata"]["name"] for each in listed["items"]] == ["images", "new"]
    assert plugin.good("datasets", "-n", world.team, "-o", "yaml").yaml() == [listed]
    assert plugin.good("datasets", "new", "-n", world.team, "-o", "json").json()["items"] == listed["items"][1:]


def test_the_namespace_is_the_contexts(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_dataset("images", READY)
    assert "images" not in plugin.good("datasets").out
    config = plugin.cluster.kubeconfig_of(f"other-{world.pool}", "system:masters")
    plugin.cluster.kubectl.run(
        "--kubeconfig", config, "config", "set-context", "--current", f"--namespace={world.team}"
    )
    assert "images" in Plugin(plugin.cluster, config).good("datasets").out


def test_watch_shows_what_changes(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_dataset("images", condition("Ready", "False", "Scanning", "is being listed"))
    with plugin.start("datasets", "-n", world.team, "--watch", "--interval", "0.2") as watching:
        waiting.until(lambda: "Scanning" in watching.text)
        world.say("Dataset", "images", READY)
        waiting.until(lambda: watching.text.count("NAME ") == 2 and "Ready" in watching.text.rpartition("NAME ")[2])
    assert watching.process.returncode == 0
    assert watching.text.count("Scanning") == 1, "what did not change is not said again"


def test_watch_outlives_the_api_server(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_dataset("images", condition("Ready", "False", "Scanning", "is being listed"))
    with plugin.start("datasets", "-n", world.team, "--watch", "--interval", "0.2") as watching:
        waiting.until(lambda: "Scanning" in watching.text)
        plugin.cluster.stop_api()
        try:
            waiting.until(lambda: "kubectl shoal: " in watching.errors)
        finally:
            plugin.cluster.start_api()
        world.say("Dataset", "images", READY)
        waiting.until(lambda: watching.text.count("NAME ") == 2, seconds=30)
    assert "Ready" in watching.text.rpartition("NAME ")[2]


def test_text_from_the_cluster_cannot_command_the_terminal(plugin: Plugin, world: World) -> None:
    world.make_pool(condition("Ready", "False", "Bad", "line one\n\x1b[2Jtwo"), condition("Stalled", "True", "Bad", ""))
    shown = plugin.good("status", world.pool).out
    assert "\x1b" not in shown and "line one\\n\\x1b[2Jtwo" in shown
    assert "\x1b" in json.dumps(plugin.good("status", world.pool, "-o", "json").json()).encode().decode(
        "unicode_escape"
    )
