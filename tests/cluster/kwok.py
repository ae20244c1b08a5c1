"""Fake nodes beside the real ones, or beside none: what 1,000 nodes ask of an operator, without 1,000 machines.

KWOK says Ready for its nodes and Running for the pods on them; no container runs and nothing answers at a pod's
address. A fake node's lease lasts 40 s and is renewed every 10 s, so a cluster that is quick to give a node up calls
all of them NotReady: use stock timeouts. Fake nodes are tainted: what should run on them tolerates it.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.cluster import binaries, control_plane
from tests.cluster.cluster import Cluster, is_ready
from tests.cluster.layout import free_ports
from tests.cluster.processes import ClusterError, wait

TAINT = {"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}
TOLERATION = {"key": "kwok.x-k8s.io/node", "operator": "Exists"}
_FAKE = {"kwok.x-k8s.io/node": "fake"}
_NODES_PER_RACK = 20
_CONNECTIONS = 4
_RESOURCES = {"cpu": "32", "memory": "256Gi", "pods": "110"}


def start(cluster: Cluster) -> None:
    """Runs with the cluster until `down` or `stop`; a control plane alone gets a scheduler for them."""
    layout = cluster.layout
    if not layout.settings.stock_timeouts:
        raise ClusterError("fake nodes need a cluster with stock timeouts: `up(stock_timeouts=True)`")
    stages = binaries.stages()
    if not stages:
        raise ClusterError("KWOK's stages are missing beside its program")
    control_plane.start_scheduler(layout, cluster.processes, binaries.folder("kubernetes"))
    port = free_ports(1)[0]
    cluster.processes.spawn(
        "kwok",
        [
            *(binaries.folder("kwok") / "kwok", f"--kubeconfig={layout.kubeconfig()}"),
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            *("--cidr=10.200.0.0/16", "--node-ip=10.99.0.1", "--node-lease-duration-seconds=40"),
            *(f"--server-address=127.0.0.1:{port}", *(f"--config={stage}" for stage in stages)),
        ],
    )


def stop(cluster: Cluster) -> None:
    cluster.processes.stop("kwok")


def name(number: int) -> str:
    return f"fake-{number:04}"


def nodes(cluster: Cluster, count: int, seconds: float = 180) -> None:
    """Makes the fake nodes 0 to `count` - 1, and returns when all of them are Ready."""
    create(cluster, range(count))
    wanted = {name(number) for number in range(count)}
    with cluster.api as api:

        def all_ready() -> bool:
            cluster.processes.alive("kwok")
            return wanted <= {item["metadata"]["name"] for item in api.get("/api/v1/nodes")["items"] if is_ready(item)}

        wait(f"{count} fake nodes Ready", all_ready, seconds, 2)


def create(cluster: Cluster, numbers: Iterable[int]) -> None:
    """Over connections of its own: kubectl takes a tenth of a second a node."""
    manifests = [_node(number) for number in numbers]

    def post(part: list[dict[str, object]]) -> None:
        with cluster.api as api:
            for manifest in part:
                status, answer = api.request("POST", "/api/v1/nodes", manifest)
                if status not in (201, 409):
                    raise ClusterError(f"a fake node: {status} {answer}")

    with ThreadPoolExecutor(_CONNECTIONS) as threads:
        list(threads.map(post, (manifests[offset::_CONNECTIONS] for offset in range(_CONNECTIONS))))


def _node(number: int) -> dict[str, object]:
    labels = {
        **_FAKE,
        "type": "kwok",
        "kubernetes.io/hostname": name(number),
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "topology.kubernetes.io/zone": f"zone-{'abc'[number % 3]}",
        "shoal.dev/rack": f"rack-f{number // _NODES_PER_RACK}",
        "shoal.dev/nvme": "true",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name(number), "annotations": _FAKE, "labels": labels},
        "spec": {"taints": [TAINT]},
        "status": {"allocatable": _RESOURCES, "capacity": _RESOURCES},
    }
