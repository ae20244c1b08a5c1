"""Commands that run in the pods of cache nodes: real pods, of the real image, on a real cluster.

There is no operator: the nodes have their data set from their own configuration, under the name that an operator would
give it, and each is a cache of its own. What an operator does to a whole pool is tested in tests/cluster.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.crds import schema
from tests.plugin.plugin import Plugin
from tests.plugin.worlds import World, condition
from tests.support import waiting
from tests.support.kubernetes import load_image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
NODES = "node-1", "node-2"
FILES, FILE_BYTES = 3, 5 << 20
BLOCK_BYTES = 4 << 20
MAKE_FILES = (
    "import os, pathlib; p = pathlib.Path('/mnt/data/train'); p.mkdir(); "
    f"[(p / f'{{n}}.bin').write_bytes(os.urandom({FILE_BYTES})) for n in range({FILES})]"
)


class Running(World):
    """A pool whose nodes run."""

    def __init__(self, cluster: Cluster, image: str) -> None:
        super().__init__(cluster)
        self.make_pool()
        self.make_dataset("images", condition("Ready", "True", "Ready"))
        self.url = f"shoal://{self.team}.images/train/0.bin"
        config = f"""
            node_name = "${{NODE_NAME}}"
            tenant = "shoal"
            [doors]
            unix = "/run/shoal.dev/{self.pool}/node.sock"
            control = "${{POD_IP}}:7441"
            [dram]
            budget_bytes = "128MiB"
            [datasets."{self.team}.images"]
            url = "file:///mnt/data"
        """
        meta = {"namespace": self.system}
        self.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {**meta, "name": "config"},
                    "data": {"node.toml": "\n".join(map(str.strip, config.splitlines()))}})  # fmt: skip
        self.apply(*(self._pod(node, image) for node in NODES))
        for node in NODES:
            self.kubectl.wait("pod", f"shoal-{node}", "condition=Ready", self.system, 120)

    def _pod(self, node: str, image: str) -> dict[str, Any]:
        labels = {
            "app.kubernetes.io/name": "shoal", "app.kubernetes.io/component": "node", "shoal.dev/pool": self.pool,
        }  # fmt: skip
        run = f"/run/shoal.dev/{self.pool}"
        mounts = {"config": "/etc/shoal", "run": run, "data": "/mnt/data", "scratch": "/tmp"}
        root = {"runAsUser": 0}
        fields = {"NODE_NAME": "spec.nodeName", "POD_IP": "status.podIP"}
        main = {
            "name": "node", "image": image, "imagePullPolicy": "IfNotPresent", "securityContext": root,
            "command": ["python", "-m", "shoal_node", "--config", "/etc/shoal/node.toml"],
            "env": [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()],
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": 7441}, "periodSeconds": 1},
            "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
        }  # fmt: skip
        first = {
            "name": "data", "image": image, "imagePullPolicy": "IfNotPresent", "securityContext": root,
            "command": ["python", "-c", MAKE_FILES], "volumeMounts": [{"name": "data", "mountPath": "/mnt/data"}],
        }  # fmt: skip
        volumes: list[dict[str, Any]] = [{"name": "config", "configMap": {"name": "config"}}]
        volumes += [{"name": name, "emptyDir": {}} for name in mounts if name != "config"]
        spec = {"nodeName": node, "initContainers": [first], "containers": [main], "volumes": volumes}
        meta = {"name": f"shoal-{node}", "namespace": self.system, "labels": labels}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


@pytest.fixture(scope="module")
def running(cluster: Cluster) -> Iterator[Running]:
    cluster.kubectl.run("apply", "--server-side", "--force-conflicts", "-f", schema.FOLDER)
    for crd in schema.definitions().values():
        cluster.kubectl.wait("crd", crd["metadata"]["name"], "condition=Established")
    made = Running(cluster, load_image(cluster, "shoal", ROOT, ROOT / "images/shoal/Dockerfile"))
    yield made
    for node in NODES:  # they would be nodes of a pool to whoever uses this cluster next
        cluster.kubectl.delete("pod", f"shoal-{node}", made.system)
    cluster.kubectl.delete("cachepool", made.pool)


@pytest.fixture
def plugin(running: Running) -> Plugin:
    return Plugin(running.cluster)


def test_explain_reads_through_the_node_that_is_named(plugin: Plugin, running: Running) -> None:
    words = ("explain", running.url, "--block", "1", "--node", "node-2")
    first = plugin.good(*words).out
    assert "The read took" in first and "node-2" in first and "from the origin" in first
    values = plugin.good(*words, "-o", "json").json()
    assert values["read"]["node_id"] == "node-2" and values["read"]["tier"] == "dram"
    assert plugin.good(*words, "-o", "yaml").yaml()[0]["url"] == running.url


def test_a_data_set_of_the_namespace_at_hand(plugin: Plugin, running: Running) -> None:
    short = plugin.good("locate", "shoal://images/train/0.bin", "-n", running.team, "--node", "node-1", "-o", "json")
    long = plugin.good("locate", running.url, "--node", "node-1", "-o", "json")
    assert short == long
    assert [block["size"] for block in long.json()] == [BLOCK_BYTES, FILE_BYTES - BLOCK_BYTES]


def test_evict(plugin: Plugin, running: Running) -> None:
    words = ("--node", "node-1")
    plugin.good("bench", f"shoal://{running.team}.images/train", *words)
    said = plugin.good("evict", f"shoal://{running.team}.images/train", *words).out
    assert said.endswith(f": {FILES * 2} blocks dropped\n")
    assert plugin.good("evict", running.url, *words, "-o", "json").json() == {"url": running.url, "blocks": 0}


def test_what_the_node_refuses_is_said_once_with_its_exit_code(plugin: Plugin, running: Running) -> None:
    done = plugin.run("explain", f"shoal://{running.team}.images/none.bin")
    assert done.code == 1 and done.errors.startswith("shoal: ") and "none.bin" in done.errors
    assert "command terminated" not in done.errors and done.errors.count("\n") == 1
    done = plugin.run("explain", running.url, "--node", "node-3")
    assert done.code == 2 and f"--node node-3: pool {running.pool} has no pod there" in done.errors


def test_bench_says_where_the_bytes_came_from(plugin: Plugin, running: Running) -> None:
    url = f"shoal://{running.team}.images/train"
    plugin.good("evict", url, "--node", "node-1")
    values = plugin.good("bench", url, "--node", "node-1", "-o", "json").json()
    cold, warm = values["passes"]
    assert (values["node"], values["objects"]) == ("node-1", FILES)
    assert cold["bytes"] == warm["bytes"] == FILES * FILE_BYTES
    assert warm["doors"] == {"shared memory": FILES * 2} and "origin" in cold["doors"]
    shown = plugin.good("bench", url, "--node", "node-1", "--bytes", 1 << 20).out
    assert f"beside node-1 of pool {running.pool}" in shown and "1.00 MiB" in shown


def test_top_has_a_line_for_each_node(plugin: Plugin, running: Running) -> None:
    plugin.good("bench", running.url, "--node", "node-1")
    shown = plugin.good("top", running.pool).out.splitlines()
    assert shown[0].startswith("POOL") and [line.split()[1] for line in shown[1:]] == list(NODES)
    values = plugin.good("top", running.pool, "-o", "json").json()
    assert [each["node"] for each in values] == list(NODES)
    assert values[0]["values"]["tiers"]["dram"]["used_bytes"] >= FILE_BYTES and "reads_per_s" in values[0]["rates"]


def test_top_goes_on(plugin: Plugin, running: Running) -> None:
    with plugin.start("top", running.pool, "--watch", "--interval", "0.5") as watching:
        waiting.until(lambda: watching.text.count("POOL ") >= 3, seconds=60)
    assert watching.process.returncode == 0 and watching.errors == ""
    assert "node-2" in watching.text.rpartition("POOL ")[2]


def test_top_says_which_node_is_silent(plugin: Plugin, running: Running) -> None:
    """The pod is ready for a moment longer than its node's socket is there."""
    socket = f"/run/shoal.dev/{running.pool}/node.sock"
    move = ("exec", "-n", running.system, "shoal-node-2", "-c", "node", "--", "mv")
    running.kubectl.run(*move, socket, f"{socket}.away")
    try:
        done = plugin.run("top", running.pool)
    finally:
        running.kubectl.run(*move, f"{socket}.away", socket)
    line = next(line for line in done.out.splitlines() if "node-2" in line)
    assert done.code == 0 and "node.sock" in line


def test_doctor_asks_every_node(plugin: Plugin, running: Running) -> None:
    words = ("doctor", running.pool, "--system-namespace", running.system)
    checks = plugin.run(*words, "-o", "json").json()
    own = {check["name"] for check in checks if check["node"] == "node-1"}
    assert {"node-1 sealed memory", "node-1 locked memory", "node-1 huge pages", "node-1 free memory"} <= own, own
    shown = plugin.run(*words).out
    assert f"node-2                    pool {running.pool}: " in shown and "sealed memory" not in shown
    assert "sealed memory" in plugin.run(*words, "-v").out


def test_drain_follows_until_the_node_has_handed_over(plugin: Plugin, running: Running) -> None:
    """The test does what the operator does: it tells the node that the pool's spec names."""

    def operate() -> None:
        running.kubectl.until("cachepool", running.pool, lambda pool: pool["spec"]["drainNodes"] == ["node-2"])
        address = f"--address=unix:/run/shoal.dev/{running.pool}/node.sock"
        place = ("exec", "-n", running.system, "shoal-node-2", "-c", "node", "--")
        running.kubectl.run(*place, "shoal", "drain", "node-2", "--no-wait", address)

    operator = threading.Thread(target=operate)
    operator.start()
    done = plugin.run("drain", "node-2", "--pool", running.pool)
    operator.join()
    assert done.code == 0 and f"pool {running.pool}: node-2 is drained" in done.out, done
    assert "drain node-2: waits for the operator" in done.errors
    plugin.good("drain", "node-2", "--cancel")
    assert json.loads(running.kubectl.run("get", "cachepool", running.pool, "-o", "json"))["spec"]["drainNodes"] == []


def test_drain_without_an_operator_says_so(plugin: Plugin, running: Running) -> None:
    done = plugin.run("drain", "node-1", "--pool", running.pool)
    plugin.good("drain", "node-1", "--cancel")
    assert done.code == 1 and "node-1 was not told to drain within 30 s" in done.errors and "doctor" in done.errors
