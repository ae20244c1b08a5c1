"""Grants are applied for real, and the API server is asked what they allow."""

from __future__ import annotations

from typing import Any

from tests.cluster.cluster import Cluster
from tests.plugin.plugin import Plugin
from tests.plugin.worlds import World


def can(cluster: Cluster, account: str, *words: str) -> bool:
    """`kubectl auth can-i`, as that service account: NAMESPACE:NAME."""
    answer = cluster.kubectl.run("auth", "can-i", *words, f"--as=system:serviceaccount:{account}", check=False)
    return answer.strip().splitlines()[-1] == "yes"


def granted(world: World, plugin: Plugin, *words: object) -> list[dict[str, Any]]:
    """What was printed, and applied."""
    done = plugin.good("grant", *words)
    world.kubectl.apply(done.out)
    return done.yaml()


def test_the_pool_may_read_one_secret_and_no_other(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_nodes(f"{world.pool}-a")
    world.make_dataset("images", secretRef={"name": "keys"})
    account = f"{world.system}:shoal-{world.pool}"
    assert not can(plugin.cluster, account, "get", "secrets/keys", "-n", world.team)
    found = granted(world, plugin, "dataset", "images", "-n", world.team)
    assert [each["kind"] for each in found] == ["Role", "RoleBinding"]
    assert can(plugin.cluster, account, "get", "secrets/keys", "-n", world.team)
    for words in (("get", "secrets/other"), ("list", "secrets"), ("watch", "secrets"), ("update", "secrets/keys")):
        assert not can(plugin.cluster, account, *words, "-n", world.team), words
    assert not can(plugin.cluster, account, "get", "secrets/keys", "-n", world.system)
    assert not can(plugin.cluster, f"{world.system}:shoal-other", "get", "secrets/keys", "-n", world.team)


def test_the_account_is_where_shoal_is(plugin: Plugin, world: World) -> None:
    """Found by the pool's pods; else said; else shoal-system."""
    world.make_pool()
    world.make_dataset("images", secretRef={"name": "keys"})
    words = ("grant", "dataset", "images", "-n", world.team)

    def subject(*more: str) -> dict[str, str]:
        return plugin.good(*words, *more).yaml()[1]["subjects"][0]

    assert subject() == {"kind": "ServiceAccount", "name": f"shoal-{world.pool}", "namespace": "shoal-system"}
    assert subject("--system-namespace", "elsewhere")["namespace"] == "elsewhere"
    world.make_nodes(f"{world.pool}-a")
    assert subject()["namespace"] == world.system


def test_a_grant_without_a_cluster(plugin: Plugin) -> None:
    nobody = plugin.as_user("nobody-at-all")
    done = nobody.good("grant", "dataset", "images", "-n", "team-a", "--secret", "keys", "--pool", "main", "-o", "json")
    role, binding = done.json()["items"]
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["keys"], "verbs": ["get"]}
    ]  # fmt: skip
    assert binding["subjects"][0]["name"] == "shoal-main"


def test_a_data_set_without_a_secret(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_dataset("images")
    done = plugin.run("grant", "dataset", "images", "-n", world.team)
    assert done.code == 2 and f"Dataset {world.team}/images: spec.source.secretRef names no secret" in done.errors


def test_an_account_may_use_one_data_set_and_no_other(plugin: Plugin, world: World) -> None:
    train = f"{world.team}:train"
    granted(world, plugin, "use", "images", "-n", world.team, "--to", f"{world.team}/train")
    assert can(plugin.cluster, train, "use", "datasets.shoal.dev/images", "-n", world.team)
    for words in (("use", "datasets.shoal.dev/other"), ("get", "datasets.shoal.dev/images"), ("get", "secrets/keys")):
        assert not can(plugin.cluster, train, *words, "-n", world.team), words
    assert not can(plugin.cluster, f"{world.team}:default", "use", "datasets.shoal.dev/images", "-n", world.team)


def test_a_second_account_takes_nothing_from_the_first(plugin: Plugin, world: World) -> None:
    """One of the same namespace, one of another; both spellings."""
    granted(world, plugin, "use", "images", "-n", world.team, "--to", f"{world.team}/train")
    granted(world, plugin, "use", "images", "-n", world.team, "--serviceaccount", "elsewhere:train")
    for account in (f"{world.team}:train", "elsewhere:train"):
        assert can(plugin.cluster, account, "use", "datasets.shoal.dev/images", "-n", world.team)
