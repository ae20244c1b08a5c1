"""The objects of a pool, and when they are applied again."""

import copy
import tomllib
from typing import Any

import pytest

from shoal_core import config
from shoal_operator import desired, names, node_config
from tests.operator import worlds

FULL: dict[str, Any] = {
    "nodeSelector": {"disk": "nvme"}, "tolerations": [{"key": "gpu", "operator": "Exists"}], "hostNetwork": True,
    "imagePullSecrets": [{"name": "s"}], "priorityClassName": "high", "ports": {"data": 7000, "control": 7001},
    "resources": {"limits": {"memory": "2Gi"}}, "sharedMemory": {"namespaces": ["team-a"]},
}  # fmt: skip


def objects(pool: Any) -> dict[str, Any]:
    return {one["kind"]: one for one in desired.objects(pool, pool.spec, worlds.SETTINGS)}


def pod_spec(pool: Any) -> Any:
    return objects(pool)["DaemonSet"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("nvme", [True, False])
def test_a_node_can_be_started_with_what_it_is_told(nvme: bool):
    pool = worlds.pool(nvme=nvme, sharedMemory={"namespaces": ["team-a"]}, blockSize="1Mi")
    text = objects(pool)["ConfigMap"]["data"]["node.toml"]
    assert '"${NODE_NAME}"' in text and '"${POD_IP}:7440"' in text
    told = config.parse(tomllib.loads(text.replace("${NODE_NAME}", "n1").replace("${POD_IP}", "10.0.0.1")))
    assert told.node_name == "n1" and told.tenant == "shoal"
    assert told.doors == config.Doors("/run/shoal.dev/p/node.sock", "10.0.0.1:7440", "10.0.0.1:7441")
    assert told.dram == config.Dram(1 << 30) and told.fill.block_size_bytes == 1 << 20
    assert told.cluster is not None and told.cluster.view == "kubernetes:shoal-system/shoal-p"
    assert told.access == config.Access("/etc/shoal/key/key", "p", "/run/shoal.dev/p/volumes", ("team-a",))
    disk = config.Nvme("/var/lib/shoal/nvme", 100 << 30, 0, True)
    assert told.nvme == ((disk,) if nvme else ())
    # What it writes is on a volume, as its root file system is read-only.
    mounts = {mount["mountPath"] for mount in pod_spec(pool)["containers"][0]["volumeMounts"]}
    assert told.state_directory is not None
    assert any(told.state_directory == path or told.state_directory.startswith(f"{path}/") for path in mounts)


def test_all_objects_belong_to_the_pool():
    made = objects(worlds.pool())
    assert list(made) == ["ServiceAccount", "Role", "RoleBinding", "Service", "ConfigMap", "DaemonSet"]
    for one in made.values():
        metadata = one["metadata"]
        assert metadata["namespace"] == "shoal-system" and metadata["labels"][names.POOL_LABEL] == "p"
        assert metadata["ownerReferences"][0]["uid"] == "uid-p"
    assert made["Role"]["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": ["shoal-p"],
            "verbs": ["get", "list", "watch"],
        }
    ]
    assert made["Service"]["spec"]["clusterIP"] == "None"
    daemons = made["DaemonSet"]["spec"]
    assert daemons["updateStrategy"] == {"type": "OnDelete"}
    assert daemons["selector"]["matchLabels"].items() <= daemons["template"]["metadata"]["labels"].items()


def test_a_plain_pod():
    spec = pod_spec(worlds.pool())
    (container,) = spec["containers"]
    assert container["image"] == "registry.example/shoal:1" and container["imagePullPolicy"] == "IfNotPresent"
    assert not {"nodeSelector", "tolerations", "hostNetwork", "dnsPolicy", "priorityClassName"} & set(spec)
    assert container["resources"] == {"requests": {"memory": "1408Mi"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["nvme"]["hostPath"] == {"path": "/mnt/cache", "type": "Directory"}
    assert volumes["run"]["hostPath"] == {"path": "/run/shoal.dev/p", "type": "DirectoryOrCreate"}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert container["command"][-1] == f"{node_config.CONFIG_DIRECTORY}/node.toml"


def test_a_pod_with_everything():
    spec = pod_spec(worlds.pool(nvme=False, image="mine:2", imagePullPolicy="Always", **FULL))
    (container,) = spec["containers"]
    assert spec["nodeSelector"] == {"disk": "nvme"} and spec["tolerations"] == FULL["tolerations"]
    assert spec["hostNetwork"] and spec["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert spec["priorityClassName"] == "high" and spec["imagePullSecrets"] == [{"name": "s"}]
    assert container["image"] == "mine:2" and container["imagePullPolicy"] == "Always"
    assert container["resources"] == {"limits": {"memory": "2Gi"}}
    assert [port["hostPort"] for port in container["ports"]] == [7000, 7001]
    assert {volume["name"] for volume in spec["volumes"]} == {"config", "key", "run", "scratch", "state"}


def test_requests_that_say_nothing_of_memory_are_completed():
    (container,) = pod_spec(worlds.pool(resources={"requests": {"cpu": "2"}, "limits": None}))["containers"]
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "1408Mi"}


@pytest.mark.parametrize(
    ("change", "is_new"),
    [
        ({"image": "other:2"}, True), ({"dram": {"budget": "2Gi"}}, True), ({"blockSize": "1Mi"}, True),
        ({"sharedMemory": {"namespaces": ["*"]}}, True), ({"nodeSelector": {"a": "b"}}, True),
        ({"replicas": 2}, False), ({"drainNodes": ["n1"]}, False), ({"drainTimeoutSeconds": 5}, False),
        ({"updateStrategy": {"type": "OnDelete"}}, False), ({"topology": {"rackKey": "r"}}, False),
    ],
)  # fmt: skip
def test_pods_are_replaced_only_for_what_they_are_told_when_they_start(change: Any, is_new: bool):
    assert (worlds.hash_of(worlds.pool(**change)) != worlds.hash_of(worlds.pool())) is is_new


def test_what_is_there_is_not_applied_again():
    pool = worlds.pool(**FULL)
    wanted = list(objects(pool).values())
    assert desired.to_apply(wanted, {}) == tuple(wanted)
    stored = copy.deepcopy(worlds.applied(pool))
    assert desired.to_apply(wanted, stored) == ()
    # The API server adds defaults, writes quantities its own way and leaves out what is empty.
    daemons = stored["DaemonSet", "shoal-p"]
    daemons["spec"]["minReadySeconds"] = 0
    daemons["status"] = {"numberReady": 3}
    daemons["metadata"]["labels"]["theirs"] = "x"
    container = daemons["spec"]["template"]["spec"]["containers"][0]
    container["resources"]["limits"]["memory"] = "2048Mi"
    container["terminationMessagePath"] = "/dev/termination-log"
    assert desired.to_apply(wanted, stored) == ()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda one: one["spec"].pop("template"),
        lambda one: one["spec"].update(updateStrategy="odd"),
        lambda one: one["spec"]["template"]["spec"]["containers"].append({"name": "intruder"}),
        lambda one: one["spec"]["template"]["spec"].update(volumes=3),
        lambda one: one["spec"]["template"]["spec"].update(enableServiceLinks=True),
        lambda one: one["spec"].update(revisionHistoryLimit=True),
        lambda one: one["spec"]["template"]["spec"]["containers"][0].update(image="other"),
        lambda one: one["metadata"]["annotations"].clear(),
    ],
)
def test_what_somebody_changed_is_applied_again(spoil: Any):
    pool = worlds.pool()
    stored = copy.deepcopy(worlds.applied(pool))
    spoil(stored["DaemonSet", "shoal-p"])
    assert [one["kind"] for one in desired.to_apply(objects(pool).values(), stored)] == ["DaemonSet"]


def test_a_field_that_is_wanted_no_more_is_noticed():
    wanted = list(objects(worlds.pool()).values())
    stored = worlds.applied(worlds.pool(nodeSelector={"disk": "nvme"}))
    assert [one["kind"] for one in desired.to_apply(wanted, stored)] == ["DaemonSet"]


def test_empty_is_as_good_as_left_out():
    wanted = {"kind": "ConfigMap", "metadata": {"name": "x", "annotations": {}, "finalizers": []}}
    assert desired.to_apply([wanted], {("ConfigMap", "x"): {"kind": "ConfigMap", "metadata": {"name": "x"}}}) == ()
