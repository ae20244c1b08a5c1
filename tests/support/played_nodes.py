"""Nodes without machines, for an API server without kubelets: Node objects whose kubelet is played by a thread.

The thread renews each node's Lease, binds the pods that controllers made for a node (there is no scheduler either),
and says of them what a kubelet would: running, ready, this address. A node that is `stopped` says nothing more, and the
real node controller finds it NotReady. The addresses are of this machine's loopback, one for each node, so that a
`Door` can answer there as the cache node's control door would: what it says is set by the test, and a call without a
token of the pool's key is refused.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from shoal_core import access
from shoal_core.errors import Forbidden
from tests.cluster.cluster import Cluster, is_ready
from tests.cluster.processes import ClusterError

_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_BEAT_S = 0.25
_RENEW_EVERY_BEATS = 4
_MERGE = "application/merge-patch+json"


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _seconds() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class PlayedNodes:
    """Nodes NAME-1 .. NAME-n, ready until told otherwise; pods of `namespace` run on them."""

    def __init__(self, cluster: Cluster, prefix: str, count: int, namespace: str, net: int) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.names = [f"{prefix}-{number}" for number in range(1, count + 1)]
        self.addresses = {name: f"127.0.{net}.{number}" for number, name in enumerate(self.names, 1)}
        self.stopped: set[str] = set()
        self.unready_pods: set[str] = set()
        """Nodes whose pods do not become ready."""
        self._thread = threading.Thread(target=self._play, name=f"kubelets of {prefix}")

    def __enter__(self) -> Self:
        with self._cluster.api as api:
            for number, name in enumerate(self.names):
                labels = {
                    "kubernetes.io/hostname": name,
                    "topology.kubernetes.io/zone": f"zone-{'abc'[number % 3]}",
                    "pool": self.names[0].rsplit("-", 1)[0],
                }
                body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
                api.request("POST", "/api/v1/nodes", body)
                self._say_ready(api, name)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with self._cluster.api as api:
            for name in self.names:
                api.request("DELETE", f"/api/v1/nodes/{name}")
                api.request("DELETE", f"{_LEASES}/{name}")

    def stop(self, name: str) -> None:
        """Its kubelet says nothing more."""
        self.stopped.add(name)

    def say_not_ready(self, name: str) -> None:
        """At once, as kubelet itself does when its runtime is gone."""
        self.stopped.add(name)
        with self._cluster.api as api:
            self._say_ready(api, name, status="False")

    def start(self, name: str) -> None:
        with self._cluster.api as api:
            self._renew(api, name)
            self._say_ready(api, name)
        self.stopped.discard(name)

    def _say_ready(self, api: Any, name: str, status: str = "True") -> None:
        condition = {
            "type": "Ready",
            "status": status,
            "reason": "Played",
            "message": "",
            "lastHeartbeatTime": _seconds(),
            "lastTransitionTime": _seconds(),
        }
        capacity = {"cpu": "8", "memory": "64Gi", "pods": "110"}
        body = {"status": {"conditions": [condition], "capacity": capacity, "allocatable": capacity}}
        api.request("PATCH", f"/api/v1/nodes/{name}/status", body, "application/strategic-merge-patch+json")
        if status == "True":  # what the node controller says of nodes it lost
            api.request("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, _MERGE)

    def _play(self) -> None:
        beat = 0
        with self._cluster.api as api:
            while not self._stop.wait(_BEAT_S):
                with contextlib.suppress(OSError, ClusterError):
                    if beat % _RENEW_EVERY_BEATS == 0:
                        self._beat(api)
                    self._run_pods(api)
                beat += 1

    def _beat(self, api: Any) -> None:
        """Leases, and what a kubelet does that finds itself called lost: it says that it is ready."""
        ready = {item["metadata"]["name"] for item in api.get("/api/v1/nodes")["items"] if is_ready(item)}
        for name in self.names:
            if name not in self.stopped:
                self._renew(api, name)
                if name not in ready:
                    self._say_ready(api, name)

    def _renew(self, api: Any, name: str) -> None:
        spec = {"holderIdentity": name, "leaseDurationSeconds": 4, "renewTime": _now()}
        status, _ = api.request("PATCH", f"{_LEASES}/{name}", {"spec": spec}, _MERGE)
        if status == 404:
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name},
                "spec": spec,
            }
            api.request("POST", _LEASES, body)

    def _run_pods(self, api: Any) -> None:
        status, answer = api.request("GET", f"/api/v1/namespaces/{self._namespace}/pods")
        if status != 200:
            return
        for pod in answer["items"]:
            node = pod["spec"].get("nodeName") or _meant_for(pod)
            if node in self.names and node not in self.stopped:
                self._run_pod(api, pod, node)

    def _run_pod(self, api: Any, pod: dict[str, Any], node: str) -> None:
        path = f"/api/v1/namespaces/{self._namespace}/pods/{pod['metadata']['name']}"
        if pod["metadata"].get("deletionTimestamp"):
            api.request("DELETE", path, {"gracePeriodSeconds": 0})
            return
        if not pod["spec"].get("nodeName"):
            target = {"apiVersion": "v1", "kind": "Node", "name": node}
            meta = {"name": pod["metadata"]["name"]}
            api.request(
                "POST", f"{path}/binding", {"apiVersion": "v1", "kind": "Binding", "metadata": meta, "target": target}
            )
            return
        ready = node not in self.unready_pods
        before = {item["type"]: item["status"] for item in pod["status"].get("conditions", [])}
        if pod["status"].get("podIP") and before.get("Ready") == str(ready):
            return
        conditions = [
            {"type": kind, "status": str(ready), "lastTransitionTime": _seconds()}
            for kind in ("Initialized", "ContainersReady", "Ready", "PodScheduled")
        ]
        container = pod["spec"]["containers"][0]
        state = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": ready,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": _seconds()}},
        }
        address = self.addresses[node]
        body = {
            "status": {
                "phase": "Running",
                "podIP": address,
                "podIPs": [{"ip": address}],
                "hostIP": address,
                "startTime": _seconds(),
                "conditions": conditions,
                "containerStatuses": [state],
            }
        }
        api.request("PATCH", f"{path}/status", body, "application/strategic-merge-patch+json")


def _meant_for(pod: dict[str, Any]) -> str:
    """The node that the DaemonSet controller made it for."""
    required = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    for term in required.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", []):
        for field in term.get("matchFields", []):
            if field["key"] == "metadata.name":
                return field["values"][0]
    return ""


class Door:
    """The control door of one played cache node."""

    def __init__(self, address: str, port: int) -> None:
        self.status: dict[str, Any] = {}
        self.drain: dict[str, Any] = {}
        self.key: bytes | None = None
        """Of the pool; with it, calls must carry an operator's token."""
        self.asked: list[tuple[str, str]] = []
        door = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                door.asked.append((self.command, self.path))
                wrong = door.wrong(self.headers.get("Authorization", ""))
                body = {"error": wrong} if wrong else door.status if self.path == "/status" else door.drain
                content = json.dumps(body).encode()
                self.send_response(401 if wrong else 202 if self.command == "POST" else 200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = _answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
                pass

        self._server = ThreadingHTTPServer((address, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def wrong(self, authorization: str) -> str:
        if self.key is None:
            return ""
        try:
            claims = access.verify(self.key, authorization.removeprefix("Bearer "), dt.datetime.now(dt.UTC).timestamp())
        except Forbidden as error:
            return str(error)
        return "" if claims.role == "operator" else f"role {claims.role}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def doors(nodes: PlayedNodes, port: int) -> Iterator[dict[str, Door]]:
    """One for each node, all open."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Door(address, port)) for name, address in nodes.addresses.items()}
