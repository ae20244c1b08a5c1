"""drain and warm: what they write, and how they follow it. The test plays the operator."""

from __future__ import annotations

import threading
from typing import Any

from tests.plugin.plugin import Plugin
from tests.plugin.worlds import World, condition
from tests.support import waiting


def drained(world: World) -> list[str]:
    return world.kubectl.get("cachepool", world.pool)["spec"].get("drainNodes", [])


def test_drain_names_the_node_and_cancel_takes_it_back(plugin: Plugin, world: World) -> None:
    world.make_pool(drainNodes=["other"])
    node = f"{world.pool}-a"
    world.make_nodes(node)
    assert plugin.good("drain", node, "--no-wait").out == f"pool {world.pool}: {node} is to be drained\n"
    assert drained(world) == ["other", node]
    assert "as was said before" in plugin.good("drain", node, "--no-wait").out
    assert drained(world) == ["other", node]
    assert plugin.good("drain", node, "--cancel").out == f"pool {world.pool}: {node} stays\n"
    assert drained(world) == ["other"]
    values = plugin.good("drain", node, "--cancel", "-o", "json").json()
    assert values == [{"pool": world.pool, "node": node, "drained": False, "changed": False}]


def test_drains_at_once_lose_nothing(plugin: Plugin, world: World) -> None:
    """Each patch holds for the pool as it was read: otherwise the last one would win."""
    nodes = [f"{world.pool}-{letter}" for letter in "abcd"]
    world.make_pool()
    world.make_nodes(*nodes)
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda node=node: codes.append(plugin.run("drain", node, "--no-wait").code))
        for node in nodes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 4 and sorted(drained(world)) == nodes


def test_drain_of_a_node_that_no_pool_has(plugin: Plugin, world: World) -> None:
    done = plugin.run("drain", f"{world.pool}-none")
    assert done.code == 2 and f"{world.pool}-none: no pool has a cache node there" in done.errors


def test_drain_without_the_right(plugin: Plugin, world: World) -> None:
    world.make_pool()
    user = f"reader-{world.pool}"
    world.kubectl.run("create", "clusterrole", user, "--verb=get,list", "--resource=cachepools.shoal.dev")
    world.kubectl.run("create", "clusterrolebinding", user, f"--clusterrole={user}", f"--user={user}")
    done = plugin.as_user(user).run("drain", "node-1", "--pool", world.pool, "--no-wait")
    assert done.code == 1 and f'cachepools.shoal.dev "{world.pool}" is forbidden' in done.errors
    assert done.errors.count("\n") == 1


def made(world: World) -> dict[str, Any]:
    (preload,) = world.kubectl.items("preload", world.team)
    return preload


def test_warm_makes_a_preload(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_dataset("images")
    words = ("warm", "images", "train/", "val/", "-n", world.team, "--bytes-per-second", "500Mi", "--ttl", "60")
    said = plugin.good(*words).out
    preload = made(world)
    assert preload["metadata"]["name"] in said and preload["metadata"]["name"].startswith("images-")
    spec = preload["spec"]
    assert (spec["dataset"], spec["paths"], spec["policy"]) == ("images", ["train/", "val/"], "Once")
    assert (spec["bytesPerSecond"], spec["verify"], spec["ttlSecondsAfterFinished"]) == ("500Mi", True, 60)


def test_what_the_api_server_refuses_is_said_in_its_words(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_dataset("images")
    done = plugin.run("warm", "images", "-n", world.team, "--bytes-per-second", "fast")
    assert done.code == 1 and "spec.bytesPerSecond" in done.errors and done.errors.count("\n") == 1, done


def test_warm_follows_to_the_end(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_dataset("images")
    with plugin.start("warm", "images", "-n", world.team, "--wait") as watching:
        waiting.until(lambda: world.kubectl.items("preload", world.team))
        name = made(world)["metadata"]["name"]
        waiting.until(lambda: f"{name}: Pending" in watching.errors)
        under_way = condition("Ready", "False", "Filling", "")
        world.say("Preload", name, under_way, phase="Filling", bytesDone=61, bytesTotal=100, rate="1.1Gi/s", eta="3m")
        waiting.until(lambda: "61 % of 100 B, Filling, 1.1Gi/s, 3m left" in watching.errors)
        done = condition("Complete", "True", "Complete", "all 7 objects are held and verified")
        world.say("Preload", name, done, phase="Complete", bytesDone=100, bytesTotal=100, bytesVerified=100, errors=[])
        assert watching.join() == 0
    assert watching.text.startswith("Complete: ") and "all 7 objects are held and verified" in watching.text


def test_warm_fails_with_the_preload(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_dataset("images")
    with plugin.start("warm", "images", "-n", world.team, "--wait", "-o", "json") as watching:
        waiting.until(lambda: world.kubectl.items("preload", world.team))
        failed = condition("Failed", "True", "Failed", "2 objects failed")
        world.say("Preload", made(world)["metadata"]["name"], failed, phase="Failed", errors=["a.jpg: gone"])
        assert watching.join() == 1
    assert '"phase": "Failed"' in watching.text and watching.errors == ""


def test_warm_notices_that_its_preload_is_gone(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_dataset("images")
    with plugin.start("warm", "images", "-n", world.team, "--wait") as watching:
        waiting.until(lambda: world.kubectl.items("preload", world.team))
        world.kubectl.delete("preload", made(world)["metadata"]["name"], world.team)
        assert watching.join() == 1
    assert "somebody deleted it" in watching.errors
