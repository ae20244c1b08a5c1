"""Nodes: each is a set of namespaces with its own containerd, kubelet and kube-proxy, and can be killed as a whole.

The node's pid 1 is tests/cluster/node_init.py; killing it makes the kernel end everything in the node at once, as a
power cut would. What the node has on its disks stays in the node's directory, and `boot` goes on from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from tests.cluster import binaries, cgroups, network, node_init
from tests.cluster.layout import Layout, make_mount_points
from tests.cluster.processes import ClusterError, Processes, children, run, wait

INIT = Path(node_init.__file__)
PAUSE_IMAGE = "docker.io/local/pause:1"
_PARTS = ("kubelet", "proxy", "containerd", "node")
"""The programs of a node, in the order in which they end."""


class Nodes:
    def __init__(self, layout: Layout, processes: Processes) -> None:
        self._layout = layout
        self._processes = processes

    def init_pid(self, node: int) -> int | None:
        """Of the node's pid 1, in the machine's numbers."""
        pid = self._processes.pid(f"node-{node}")
        return next(iter(children(pid)), None) if pid else None

    def enter(self, node: int, *argv: object) -> list[str]:
        """The words that run a command inside a node."""
        pid = self.init_pid(node)
        if pid is None:
            raise ClusterError(f"node-{node} is not up")
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid")
        return ["nsenter", "--target", str(pid), *spaces, *(str(word) for word in argv)]

    def boot(self, node: int) -> None:
        """Namespaces, mounts and containerd."""
        layout, directory = self._layout, self._layout.node_directory(node)
        (directory / "fs").mkdir(parents=True, exist_ok=True)
        cgroups.make(f"{layout.name}-{node}")
        self._write_configuration(node)
        make_mount_points([*node_init.BINDS, *layout.settings.disks])
        if not self._processes.pid(f"node-{node}"):
            (directory / "ready").unlink(missing_ok=True)
            spaces = ("--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
            place = f"--net={network.namespace(layout, node)}"
            self._processes.spawn(
                f"node-{node}", ["nsenter", place, "unshare", *spaces, sys.executable, INIT, directory]
            )
            wait(f"node-{node}: its mounts", lambda: self._has_mounts(node), 30, 0.05)
        containerd = self.enter(node, "containerd", "--config", directory / "containerd.toml")
        self._processes.spawn(f"containerd-{node}", containerd)
        wait(f"containerd of node-{node}", lambda: "Server:" in run(*self.enter(node, "ctr", "version")), 30)

    def start(self, node: int) -> None:
        """What makes it a node of Kubernetes."""
        self.start_kubelet(node)
        proxy = self.enter(
            node,
            binaries.folder("kubernetes") / "kube-proxy",
            "--config",
            self._layout.node_directory(node) / "proxy.json",
        )
        self._processes.spawn(f"proxy-{node}", proxy)

    def start_kubelet(self, node: int) -> None:
        layout = self._layout
        labels = {
            "topology.kubernetes.io/zone": f"zone-{'abc'[(node - 1) % 3]}",
            "topology.kubernetes.io/region": "lab",
            "shoal.dev/rack": f"rack-{(node + 1) // 2}",
        }
        if node not in layout.settings.without_nvme:
            labels["shoal.dev/nvme"] = "true"
        kubelet = self.enter(
            node,
            *(binaries.folder("kubernetes") / "kubelet", "--config", layout.node_directory(node) / "kubelet.json"),
            *("--kubeconfig", layout.kubeconfig(f"node-{node}"), f"--node-ip={layout.node_address(node)}"),
            f"--hostname-override=node-{node}",
            "--node-labels=" + ",".join(f"{name}={value}" for name, value in labels.items()),
        )
        self._processes.spawn(f"kubelet-{node}", kubelet)

    def stop_kubelet(self, node: int) -> None:
        self._processes.stop(f"kubelet-{node}", signal.SIGKILL)

    def load(self, node: int, image: Path) -> None:
        """Imports an image, unless this node has had the file of this name and size."""
        mark = self._layout.node_directory(node) / "loaded" / f"{image.name}-{image.stat().st_size}"
        if mark.exists():
            return
        run(*self.enter(node, "ctr", "--namespace", "k8s.io", "images", "import", image.resolve()))
        mark.parent.mkdir(exist_ok=True)
        mark.touch()

    def add_disk(self, node: int, path: str, size: str) -> None:
        """A file system of its own at this path, now and after each boot."""
        file = self._layout.node_directory(node) / "disks.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {path: size}))
        run(*self.enter(node, sys.executable, INIT, file.parent, path, size))

    def crash(self, node: int) -> None:
        """Everything in the node ends at once; its disks stay."""
        pid = self.init_pid(node)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for part in _PARTS:
            self._processes.stop(f"{part}-{node}", signal.SIGKILL)
        name = f"{self._layout.name}-{node}"
        wait(f"the end of everything in node-{node}", lambda: not cgroups.pids(name), 20, 0.02)

    def _has_mounts(self, node: int) -> bool:
        self._processes.alive(f"node-{node}")
        return (self._layout.node_directory(node) / "ready").exists()

    def _write_configuration(self, node: int) -> None:
        directory = self._layout.node_directory(node)
        network_directory = directory / "fs" / "etc-cni-net.d"
        network_directory.mkdir(exist_ok=True)
        (network_directory / "10-pods.conflist").write_text(json.dumps(_pod_network(self._layout, node)))
        (directory / "containerd.toml").write_text(_CONTAINERD)
        (directory / "kubelet.json").write_text(json.dumps(_kubelet(self._layout, node)))
        (directory / "proxy.json").write_text(json.dumps(_proxy(self._layout, node)))
        if not (directory / "disks.json").exists():
            (directory / "disks.json").write_text(json.dumps(self._layout.settings.disks))


_CONTAINERD = f"""version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Lowering a process's score takes a capability that root in a container may lack.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
"""


def _pod_network(layout: Layout, node: int) -> dict[str, object]:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": layout.node_pods(node)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipMasq": False}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge | {"ipam": addresses}, ports]}


def _kubelet(layout: Layout, node: int) -> dict[str, object]:
    quick = {"nodeStatusUpdateFrequency": "1s", "nodeStatusReportFrequency": "1s", "nodeLeaseDurationSeconds": 4}
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "x509": {"clientCAFile": str(layout.certificate("ca"))},
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.name}-{node}",
        "clusterDNS": [layout.dns_service],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "100Mi"},
        "failCgroupV1": False,
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": False,  # it cannot tell which device is behind a bind mount
        "maxPods": 110,
        "serializeImagePulls": False,
        **({} if layout.settings.stock_timeouts else quick),
    }


def _proxy(layout: Layout, node: int) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": layout.settings.proxy_mode,
        "clusterCIDR": layout.pods,
        "hostnameOverride": f"node-{node}",
        "clientConnection": {"kubeconfig": str(layout.kubeconfig("proxy"))},
        # These switches are read-only outside the machine's own network.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
