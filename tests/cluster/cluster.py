"""One cluster: `up` makes it or completes it, `down` leaves nothing, and what goes wrong in between can be ordered.

It is a directory with everything in it (`settings.json`, keys, etcd's data, logs, the nodes' disks), so that any
process can go on with a cluster that another one started: `Cluster(directory)`. Outside the directory it has only what
`down` can find by the cluster's name.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.cluster import binaries, cgroups, control_plane, dns, network, packages, pki, static_image
from tests.cluster.api import Api
from tests.cluster.kubectl import Kubectl
from tests.cluster.layout import (
    Layout,
    Settings,
    abandoned,
    claim_number,
    free_ports,
    load,
    make_directory,
    release_number,
)
from tests.cluster.nodes import PAUSE_IMAGE, Nodes
from tests.cluster.processes import ClusterError, Processes, run, wait

PREFIX = "shoal-cluster-"
"""Of the temporary directories of clusters that belong to a process."""
CONTROL_PLANE = "etcd,kubernetes"
"""What a control plane alone is built from; Kubernetes' programs come together."""
WITH_NODES = "pause,etcd,kubernetes,coredns"


def _quiet(_: str) -> None:
    pass


class Cluster:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes = Processes(directory)
        self._layout = load(directory)

    @property
    def layout(self) -> Layout:
        if self._layout is None:
            raise ClusterError(f"no cluster in {self.directory}: `up` makes one")
        return self._layout

    @property
    def kubeconfig(self) -> Path:
        return self.layout.kubeconfig()

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(binaries.folder("kubernetes") / "kubectl", self.kubeconfig)

    @property
    def helm(self) -> Path:
        """The program; give it KUBECONFIG."""
        return binaries.folder("helm") / "helm"

    @property
    def api(self) -> Api:
        """A connection of its own, for a `with`."""
        return Api.of(self.layout)

    def kubeconfig_of(self, user: str, *groups: str) -> Path:
        """The kubeconfig of somebody with a certificate: name and groups are what RBAC knows of them."""
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
        who = f"user-{user.replace(':', '-').replace('/', '-')}"
        pki.client(self.layout, who, subject)
        return self.layout.kubeconfig(who)

    def up(
        self,
        *,
        nodes: int = 0,
        owner: Sequence[str] = (),
        stock_timeouts: bool = False,
        disks: Mapping[str, str] | None = None,
        without_nvme: Sequence[int] = (),
        say: Callable[[str], None] = _quiet,
    ) -> None:
        """Brings up what is missing. The arguments are those of the first time; later ones have no say.

        `disks`: path on each node -> size of the ext4 file system there ("512M"), or "" for one without limit.
        """
        programs = binaries.folder(WITH_NODES if nodes else CONTROL_PLANE)
        if nodes:
            packages.require()
        make_directory(self.directory)
        if self._layout is None:
            api_port, etcd_port = free_ports(2)
            settings = Settings(
                api_port=api_port,
                etcd_port=etcd_port,
                number=claim_number(self.directory) if nodes else None,
                nodes=nodes,
                stock_timeouts=stock_timeouts,
                disks=dict(disks or {"/var/lib/shoal": ""}),
                without_nvme=list(without_nvme),
                owner=list(owner),
            )
            self._layout = Layout(self.directory, settings)
            self._layout.save()
        pki.prepare(self.layout)
        say("certificates")
        if self.layout.nodes:
            self._start_all(programs, say)
        else:
            control_plane.start(self.layout, self.processes, programs)
            say("control plane ready")

    def _start_all(self, programs: Path, say: Callable[[str], None]) -> None:
        """Nodes boot while the control plane starts: neither needs the other until kubelets do."""
        layout, nodes = self.layout, self.nodes
        began = datetime.now(UTC)
        network.make(layout)
        for node in layout.nodes:
            pki.client(layout, f"node-{node}", f"/O=system:nodes/CN=system:node:node-{node}")
        own = [self._static_image(PAUSE_IMAGE, "pause"), self._static_image(dns.IMAGE, "coredns")]
        with ThreadPoolExecutor() as threads:
            booted = [threads.submit(self._boot, node, own) for node in layout.nodes]
            control_plane.start(layout, self.processes, programs)
            say("control plane ready")
            stopped = {f"node-{node}" for node in layout.nodes if not self.processes.pid(f"kubelet-{node}")}
            for node, each in zip(layout.nodes, booted, strict=True):
                each.result()
                nodes.start(node)
        say("nodes started")
        with self.api as api:
            running = {f"node-{node}" for node in layout.nodes} - stopped
            # What etcd kept of nodes from before says Ready too.
            wait("nodes Ready", lambda: self._ready(api) >= running and self._ready(api, began) >= stopped, 120)
        say("all nodes Ready")
        self.kubectl.apply(dns.manifests(layout))
        self.kubectl.run("--namespace=kube-system", "rollout", "status", "deployment/coredns", "--timeout=90s")
        say("DNS answers")

    def _boot(self, node: int, images: Sequence[Path]) -> None:
        self.nodes.boot(node)
        for image in images:
            self.nodes.load(node, image)

    def _static_image(self, reference: str, program: str) -> Path:
        target = binaries.folder(program).parent / f"{program}-image.tar"
        if not target.exists():
            static_image.write(binaries.folder(program) / program, reference, target)
        return target

    def down(self, *, keep: bool = False) -> None:
        """Ends everything, and unless `keep` removes the directory: what etcd holds, images, disks."""
        if self._layout is not None:
            for node in self._layout.nodes:
                self.nodes.crash(node)
            control_plane.stop(self.processes, gently=keep)
            for name in self.processes.names():
                self.processes.stop(name)
            if self._layout.settings.number is not None:
                network.remove(self._layout)
                cgroups.remove(self._layout.name)
        if keep:
            return
        number = self._layout.settings.number if self._layout is not None else None
        if self.directory.exists():
            shutil.rmtree(self.directory)
        if number is not None:
            release_number(number)
        self._layout = None

    @property
    def nodes(self) -> Nodes:
        """Its nodes by number, from 1: `crash`, `enter`, `stop_kubelet`, ..."""
        return Nodes(self.layout, self.processes)

    def load(self, *images: Path) -> None:
        """Imports images on every node, all nodes at once."""
        with ThreadPoolExecutor() as threads:
            for each in [threads.submit(self._load, node, images) for node in self.layout.nodes]:
                each.result()

    def _load(self, node: int, images: Sequence[Path]) -> None:
        for image in images:
            self.nodes.load(node, image)

    def run_in(self, node: int, *argv: object, check: bool = True) -> str:
        """What a command inside a node printed."""
        return run(*self.nodes.enter(node, *argv), check=check)

    def crash(self, node: int) -> None:
        """As a power cut: everything in the node ends at once, its disks stay."""
        self.nodes.crash(node)

    def boot(self, node: int) -> None:
        """After `crash`: the same node with the same disks; does not wait until it is Ready."""
        self.nodes.boot(node)
        self.nodes.start(node)

    def disconnect(self, node: int) -> None:
        """As a pulled cable: everything in the node goes on, and hears of nobody."""
        network.switch(self.layout, node, "down")

    def connect(self, node: int) -> None:
        network.switch(self.layout, node, "up")

    def wait_ready(self, node: int, *, ready: bool = True, seconds: float = 60) -> None:
        """Until the API server says so of the node."""
        name = f"node-{node}"
        with self.api as api:
            wait(f"{name} {'Ready' if ready else 'NotReady'}", lambda: (name in self._ready(api)) == ready, seconds)

    @staticmethod
    def _ready(api: Api, since: datetime | None = None) -> set[str]:
        """Names of the nodes that are Ready and, given a time, have said so since."""
        nodes = [item for item in api.get("/api/v1/nodes")["items"] if is_ready(item)]
        earliest = since.strftime("%Y-%m-%dT%H:%M:%SZ") if since else ""
        return {node["metadata"]["name"] for node in nodes if _heartbeat(node) >= earliest}

    def stop_api(self) -> None:
        """Kills the API server; everything else goes on."""
        control_plane.stop_api(self.processes)

    def start_api(self) -> None:
        control_plane.restart(self.layout, self.processes, binaries.folder(CONTROL_PLANE))

    def audit(self) -> list[dict[str, Any]]:
        """The requests so far, as Kubernetes' audit events, without those of Kubernetes' own parts."""
        return control_plane.audit(self.layout)

    def status(self) -> dict[str, Any]:
        """What runs, and what the API server says of the nodes."""
        state: dict[str, Any] = {
            "directory": str(self.directory),
            "server": self.layout.api_url,
            "kubeconfig": str(self.kubeconfig),
            "running": [name for name in self.processes.names() if self.processes.pid(name)],
            "ended": [name for name in self.processes.names() if not self.processes.pid(name)],
        }
        with self.api as api:
            try:
                state["nodes"] = {
                    item["metadata"]["name"]: is_ready(item) for item in api.get("/api/v1/nodes")["items"]
                }
            except (OSError, ClusterError) as error:
                state["error"] = str(error)
        return state


def is_ready(item: dict[str, Any]) -> bool:
    """Whether a node, pod or resource of ours says Ready."""
    conditions = item.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _heartbeat(node: dict[str, Any]) -> str:
    conditions: list[dict[str, str]] = node["status"]["conditions"]
    return next((each.get("lastHeartbeatTime", "") for each in conditions if each["type"] == "Ready"), "")


def temporary_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix=PREFIX))


def sweep_abandoned() -> None:
    """Takes down clusters of processes that ended without doing so."""
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        layout = load(directory)
        if layout is not None and abandoned(layout.settings):
            Cluster(directory).down()
