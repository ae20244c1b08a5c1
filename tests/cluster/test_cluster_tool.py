"""The tool itself: nodes with pods, names and disks, what can be done to them, and that `down` leaves nothing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import dns, images, kwok
from tests.cluster.cluster import Cluster, is_ready
from tests.cluster.nodes import PAUSE_IMAGE
from tests.cluster.processes import ClusterError
from tests.support.kubernetes import load_image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run may install packages and make base images

ASK_A_NAME = """
import socket, sys
question = b"".join(bytes([len(part)]) + part.encode() for part in sys.argv[2].split(".")) + b"\\0\\0\\1\\0\\1"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
    asking.settimeout(5)
    asking.sendto(b"\\0\\7\\1\\0\\0\\1" + bytes(6) + question, (sys.argv[1], 53))
    print(socket.inet_ntoa(asking.recv(512)[-4:]))
"""
DAEMONS = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {"name": "idle"},
    "spec": {
        "selector": {"matchLabels": {"app": "idle"}},
        "template": {
            "metadata": {"labels": {"app": "idle"}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "idle", "image": PAUSE_IMAGE}],
            },
        },
    },
}
DOCKERFILE = """
FROM python:3.12-slim
ARG WORD
RUN useradd --uid 10001 someone
COPY say.py /
USER 10001
ENV WORD=$WORD
ENTRYPOINT ["python3", "/say.py"]
"""


def test_three_nodes_stand_in_three_zones(cluster: Cluster) -> None:
    nodes = {node["metadata"]["name"]: node for node in cluster.kubectl.items("node")}
    assert sorted(nodes) == ["node-1", "node-2", "node-3"]
    assert all(map(is_ready, nodes.values()))
    labels = [nodes[name]["metadata"]["labels"] for name in sorted(nodes)]
    assert [node["topology.kubernetes.io/zone"] for node in labels] == ["zone-a", "zone-b", "zone-c"]
    assert [node["shoal.dev/rack"] for node in labels] == ["rack-1", "rack-1", "rack-2"]
    assert {node["shoal.dev/nvme"] for node in labels} == {"true"}


def test_a_daemon_runs_on_every_node_and_its_pods_have_addresses_of_their_node(cluster: Cluster) -> None:
    kubectl = cluster.kubectl
    namespace = kubectl.namespace()
    kubectl.apply(json.dumps(DAEMONS), namespace)
    kubectl.until("daemonset", "idle", lambda daemons: daemons["status"].get("numberReady") == 3, namespace)
    pods = kubectl.items("pod", namespace)
    for pod in pods:
        node = int(pod["spec"]["nodeName"].removeprefix("node-"))
        assert pod["status"]["podIP"].startswith(cluster.layout.node_pods(node).removesuffix("0/24"))
    kubectl.delete("daemonset", "idle", namespace)


def test_a_service_is_reached_by_its_name_and_address(cluster: Cluster) -> None:
    name, service = "kubernetes.default.svc.cluster.local", cluster.layout.dns_service
    for node in cluster.layout.nodes:
        found = cluster.run_in(node, sys.executable, "-c", ASK_A_NAME, service, name).strip()
        assert found == cluster.layout.api_service
    pod = cluster.kubectl.items("pod", "kube-system", "app=coredns")[0]  # the machine itself reaches pods by address
    socket.create_connection((pod["status"]["podIP"], 53), timeout=5).close()
    assert pod["spec"]["containers"][0]["image"] == dns.IMAGE


def test_a_node_that_crashed_is_noticed_and_comes_back_with_its_disks(cluster: Cluster) -> None:
    cluster.run_in(3, "sh", "-c", "echo kept > /var/lib/shoal/note; echo gone > /dev/shm/note-$(hostname)")
    cluster.crash(3)
    cluster.wait_ready(3, ready=False, seconds=20)
    with pytest.raises(ClusterError, match="node-3 is not up"):
        cluster.run_in(3, "true")
    cluster.boot(3)
    cluster.wait_ready(3)
    assert cluster.run_in(3, "cat", "/var/lib/shoal/note") == "kept\n"
    assert "No such file" in cluster.run_in(2, "cat", "/var/lib/shoal/note", check=False)  # nor had others ever
    cluster.run_in(3, "rm", "-f", "/dev/shm/note-node-3")


def test_a_kubelet_or_a_cable_can_fail_alone(cluster: Cluster) -> None:
    cluster.nodes.stop_kubelet(1)
    cluster.disconnect(2)
    try:
        for node in 1, 2:
            cluster.wait_ready(node, ready=False, seconds=20)
            assert cluster.run_in(node, "hostname") == f"node-{node}\n"
    finally:
        cluster.nodes.start_kubelet(1)
        cluster.connect(2)
    for node in 1, 2:
        cluster.wait_ready(node)


def test_a_disk_of_a_size_is_full_at_that_size(cluster: Cluster) -> None:
    cluster.nodes.add_disk(2, "/var/lib/shoal/small", "16M")
    full = cluster.run_in(2, "dd", "if=/dev/zero", "of=/var/lib/shoal/small/file", "bs=1M", "count=32", check=False)
    assert "No space left on device" in full
    assert cluster.run_in(2, "mountpoint", "/var/lib/shoal/small")
    assert "not a mountpoint" in cluster.run_in(1, "mountpoint", "/var/lib", check=False)


def test_an_image_is_built_once_and_runs(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "say.py").write_text("import os; print(os.environ['WORD'], os.getuid())")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    given = ("try-image", tmp_path, tmp_path / "Dockerfile", {"WORD": "hello"})
    reference = load_image(cluster, *given)
    archive = images.build(*given)
    file = archive.stat().st_ino
    assert (images.build(*given), archive.stat().st_ino) == (archive, file)
    namespace = cluster.kubectl.namespace()
    cluster.kubectl.run(
        *("--namespace", namespace, "run", "say", f"--image={reference}", "--restart=Never"),
        "--image-pull-policy=IfNotPresent",
    )
    cluster.kubectl.wait("pod", "say", "jsonpath={.status.phase}=Succeeded", namespace)
    assert cluster.kubectl.logs("say", namespace) == "hello 10001\n"
    (tmp_path / "say.py").write_text("print('other')")
    assert images.build(*given) != archive


def test_what_a_dockerfile_copies_decides_whether_it_is_built_again() -> None:
    text = "FROM a AS b\nCOPY core/ \\\n  client/ /src/\nCOPY --from=b /x /y\nADD --chmod=755 run /run\n"
    assert images.copied(text) == ["client", "core", "run"]
    assert images.copied("COPY . /src\n") == ["."]
    assert images.copied("ARG ROOM\nCOPY $ROOM /src\n") == ["."]
    assert images.copied("RUN true\n") == []


def test_fake_nodes_are_ready_and_run_fake_pods(kwok_control_plane: Cluster) -> None:
    kwok.nodes(kwok_control_plane, 12)
    kubectl = kwok_control_plane.kubectl
    namespace = kubectl.namespace()
    daemons = json.loads(json.dumps(DAEMONS))
    daemons["spec"]["template"]["spec"]["tolerations"] = [kwok.TOLERATION]
    kubectl.apply(json.dumps(daemons), namespace)
    kubectl.until("daemonset", "idle", lambda found: found.get("status", {}).get("numberReady") == 12, namespace)


def test_a_second_cluster_stands_beside_the_first_and_goes_without_a_trace(cluster: Cluster, tmp_path: Path) -> None:
    before = _traces()
    other = Cluster(tmp_path / "other")
    try:
        other.up(nodes=1, disks={"/var/lib/shoal": "32M"}, without_nvme=[1])
        assert other.layout.name != cluster.layout.name
        assert other.status()["nodes"] == {"node-1": True}
        assert "shoal.dev/nvme" not in other.kubectl.get("node", "node-1")["metadata"]["labels"]
        assert other.run_in(1, "df", "--output=fstype", "/var/lib/shoal").split() == ["Type", "ext4"]
        assert _traces() != before
        other.up(nodes=1)  # nothing is missing, so nothing happens
        running = other.status()["running"]
    finally:
        other.down()
    assert len(running) == 8
    assert _traces() == before
    assert not (tmp_path / "other").exists()
    assert all(map(is_ready, cluster.kubectl.items("node")))


def _traces() -> dict[str, list[str]]:
    """What a cluster has outside its directory."""
    shown = {
        "links": ["ip", "-brief", "link"],
        "routes": ["ip", "route"],
        "namespaces": ["ip", "netns"],
        "loops": ["losetup", "--all"],
        "mounts": ["sh", "-c", "grep shoal /proc/mounts || true"],
        "groups": ["sh", "-c", "find /sys/fs/cgroup -maxdepth 2 -name 'shoal-c*'"],
        "claims": ["ls", "/run/shoal-clusters"],
    }
    return {
        name: sorted(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines())
        for name, words in shown.items()
    }
