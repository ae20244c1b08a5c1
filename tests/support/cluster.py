"""A real cluster for tests: node processes on hosts of a network of their own, one view file, and one origin.

`cluster.add("a", zone="west")` puts a host into the network and says what its node is told; `cluster.start()` runs the
nodes that do not run yet, all at once, and publishes the view. Each node has a TCP door on its host's address, a Unix
door and a disk directory on the machine's own file system, so the test process and a reader on the same host can use
them. What happens to processes is here (`kill`, `freeze`, `thaw`), and what happens to the view (`set_status`,
`remove`, `publish`); what happens to cables is the network's (`cluster.net`), and what happens to bytes on the way is a
proxy's: the one before the origin (`cluster.origin_door`), and one before each node that was added with `proxied=True`.

The view file is replaced, never written in place, with a higher epoch each time. The origin is an HttpOrigin in a
thread of the test process, on a host named "origin", so it can be cut off and slowed like any other host.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from shoal_core import limits, verbs, view
from shoal_core.errors import ShoalError
from shoal_core.verbs import drain, hello
from shoal_transport import links, unix
from tests.support import namespaces, running_node, waiting
from tests.support.fault_proxy import FaultProxy
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.namespaces import Network
from tests.support.running_node import NodeProcess

ORIGIN = "origin"
CALL_S = 10.0
NODE_PORT = 7400
PROXY_PORT = 7401
ORIGIN_PORT = 8000

DEFAULTS: dict[str, Any] = {
    "dram": {"budget_bytes": 24 * limits.MIB, "huge_pages": "never"},
    "fill": {"block_size_bytes": 64 * limits.KIB, "timeout_s": 10.0, "retries": 1},
    "cluster": {"poll_s": 0.1, "repair_after_s": 5.0, "scrub_s": 5.0},
}
"""Laid over running_node's own; the view's path comes to it."""
DISK_BYTES = 64 * limits.MIB


class ClusterNode:
    """One member: its place in the network and in the view, and its process."""

    def __init__(self, name: str, entry: view.Node, process: NodeProcess, proxy: FaultProxy | None) -> None:
        self.name = name
        self.entry = entry
        """As the view names it."""
        self.process = process
        self.proxy = proxy
        """Through which everybody else reaches it, where it was asked for."""
        self.in_view = True
        self.started = False
        self.frozen = False

    @property
    def unix_address(self) -> str:
        return self.process.address

    @property
    def tcp_address(self) -> str:
        """As the view names it: the proxy's, if there is one."""
        return self.entry.addresses[0]

    @property
    def disk(self) -> Path:
        return Path(self.process.config["nvme"][0]["directory"])

    @property
    def runs(self) -> bool:
        """And answers: a frozen one does not."""
        return self.started and self.process.process.poll() is None and not self.frozen


class Cluster:
    """Made by `cluster_of`. Every method returns when it is so."""

    def __init__(self, net: Network, directory: Path, replica_count: int, overrides: Mapping[str, Any]) -> None:
        self.net = net
        self.directory = directory
        self.replica_count = replica_count
        self.view_file = directory / "view.json"
        self.epoch = 0
        self.nodes: dict[str, ClusterNode] = {}
        self._overrides = overrides
        self._ending = contextlib.ExitStack()
        address = net.add(ORIGIN)
        with net.inside(ORIGIN):
            self.origin = HttpOrigin()
        self.origin.start()
        self._ending.callback(self.origin.close)
        port = int(self.origin.base_url.rpartition(":")[2])
        self.origin_door = FaultProxy((address, ORIGIN_PORT), ("127.0.0.1", port), net.namespace(ORIGIN))
        self._ending.callback(self.origin_door.close)
        self.origin_url = f"http://{address}:{ORIGIN_PORT}"

    # The origin

    def put(self, path: str, data: bytes) -> str:
        """Serves it; its URL as nodes and readers see it."""
        self.origin.put(path, data)
        return self.origin_url + quote(path)

    def fail_origin(self, paths: list[str], status: int) -> None:
        """The origin answers everything about these with a status, until `heal_origin`."""
        for path in paths:
            self.origin.fail(path, Fault(status=status, methods=("GET", "HEAD")))

    def heal_origin(self, paths: list[str]) -> None:
        for path in paths:
            self.origin.heal(path)

    def origin_gets(self) -> int:
        return sum(seen.method == "GET" for seen in list(self.origin.seen))

    # Members

    def add(
        self,
        name: str,
        zone: str = "",
        rack: str = "",
        *,
        capacity_bytes: int = DISK_BYTES,
        proxied: bool = False,
        overrides: Mapping[str, Any] | None = None,
    ) -> ClusterNode:
        """A new member, which `start` starts. `overrides` are laid over the configuration."""
        address = self.net.add(name, zone)
        directory = self.directory / name
        directory.mkdir()
        proxy = None
        if proxied:
            proxy = FaultProxy((address, PROXY_PORT), (address, NODE_PORT), self.net.namespace(name))
            self._ending.callback(proxy.close)
        config = running_node.configuration(directory, DEFAULTS)
        own = {
            "node_name": name,
            "doors": {"tcp": f"{address}:{NODE_PORT}"},
            "nvme": [{"directory": str(directory / "disk"), "budget_bytes": DISK_BYTES}],
            "cluster": {"view": str(self.view_file)},
        }
        for layer in (own, self._overrides, overrides or {}):
            config = running_node.merged(config, layer)
        port = PROXY_PORT if proxied else NODE_PORT
        entry = view.Node(name, (f"tcp:{address}:{port}",), capacity_bytes, zone, rack)
        node = self.nodes[name] = ClusterNode(name, entry, NodeProcess(directory, config, None), proxy)
        return node

    def start(self, *names: str) -> None:
        """These, or all that do not run; they answer then, and know the view that names them."""
        chosen = names or [name for name, node in self.nodes.items() if not node.runs]
        self.publish()

        def start(name: str) -> None:
            self.nodes[name].started = True
            with self.net.inside(name):
                self.nodes[name].process.start()

        with ThreadPoolExecutor(len(chosen)) as pool:
            for starting in [pool.submit(start, name) for name in chosen]:
                starting.result()

    def kill(self, name: str) -> None:
        """kill -9. The view goes on to name it."""
        self.nodes[name].process.kill()

    def freeze(self, name: str) -> None:
        """SIGSTOP: its connections stay, and are not answered."""
        node = self.nodes[name]
        node.process.signal(signal.SIGSTOP)
        waiting.until(lambda: _state(node.process.pid) == "T", f"{name} has stopped")
        node.frozen = True

    def thaw(self, name: str) -> None:
        self.nodes[name].process.signal(signal.SIGCONT)
        self.nodes[name].frozen = False

    def stop(self, name: str) -> int:
        """End it in order; its exit status."""
        return self.nodes[name].process.stop()

    def restart(self, name: str) -> None:
        """End it in order if it runs, and start it on what it left behind."""
        if self.nodes[name].runs:
            assert self.stop(name) == 0, self.nodes[name].process.log[-4000:]
        self.start(name)

    def status(self, name: str) -> dict[str, Any]:
        return self.nodes[name].process.status()

    def call(self, name: str, kind: int, request: Any, seconds: float = CALL_S) -> Any:
        """One verb, by the node's Unix door; its reply."""
        deadline = time.monotonic() + seconds
        channel = unix.connect(self.nodes[name].process.socket_path, deadline)
        try:
            links.greet(channel, os.urandom(16), hello.REQUESTS, "test", deadline)
            header, body = channel.call(kind, verbs.encode(request), deadline)
            return verbs.decode_reply(kind, header, body)
        finally:
            channel.close()

    def total(self, *path: str) -> int:
        """A number in every running node's status, added up: total("corrupt_pages", "disk"). Absent counts 0."""
        found = 0
        for node in self.nodes.values():
            if node.runs:
                value: Any = node.process.status()
                for name in path:
                    value = value.get(name, {})
                found += value or 0
        return found

    # The view

    def publish(self) -> int:
        """The members as they are now, under the next epoch; returns it."""
        self.epoch += 1
        nodes = [node.entry for node in self.nodes.values() if node.in_view]
        new = self.view_file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(view.make(self.epoch, nodes, self.replica_count)))
        os.replace(new, self.view_file)
        return self.epoch

    def set_status(self, name: str, status: view.NodeStatus) -> int:
        """As an operator would; the new epoch."""
        node = self.nodes[name]
        node.entry = msgspec.structs.replace(node.entry, status=status)
        return self.publish()

    def drain(self, name: str) -> int:
        """As an operator would: the view says so, and the node is told to hand over what it has; the new epoch."""
        epoch = self.set_status(name, "draining")
        self.await_epoch()
        self.call(name, drain.KIND, drain.Request(drain.START))
        return epoch

    def is_drained(self, name: str) -> bool:
        """It has handed over everything, and takes no more readers."""
        return bool(self.call(name, drain.KIND, drain.Request(drain.PROGRESS)).values["refusing"])

    def remove(self, name: str) -> int:
        """The view does not name it any more; its process is left as it is."""
        self.nodes[name].in_view = False
        return self.publish()

    def await_epoch(self, *names: str) -> None:
        """These, or all that run and are named, have the view that was published last."""
        for name in names or [name for name, node in self.nodes.items() if node.runs and node.in_view]:
            process = self.nodes[name].process

            def knows(process: NodeProcess = process) -> bool:
                with contextlib.suppress(ShoalError):
                    return process.status()["view_epoch"] >= self.epoch
                return False

            waiting.until(knows, f"{name} follows to epoch {self.epoch}")

    # Readers

    def client_file(self, *addresses: str, zone: str = "", rack: str = "") -> Path:
        """A file for SHOAL_CONFIG; without addresses, all members over TCP."""
        known = addresses or tuple(node.tcp_address for node in self.nodes.values() if node.in_view)
        number = sum(1 for _ in self.directory.glob("client-*.json"))
        file = self.directory / f"client-{number}.json"
        place = {name: value for name, value in (("zone", zone), ("rack", rack)) if value}
        file.write_text(json.dumps({"addresses": known, **place}))
        return file

    def logs(self) -> str:
        """The end of what each node wrote."""
        return "\n".join(f"--- {name}\n{node.process.log[-2000:]}" for name, node in self.nodes.items())

    def close(self) -> None:
        for node in self.nodes.values():
            if node.started:
                node.process.kill()
        self._ending.close()


MakeCluster = Callable[..., Cluster]


@contextlib.contextmanager
def cluster_of(
    members: Mapping[str, str], *, replica_count: int = 2, overrides: Mapping[str, Any] | None = None
) -> Iterator[Cluster]:
    """A cluster with these members, zone by name, not started yet; namespaces.Unavailable where there can be none."""
    with namespaces.network() as net, running_node.short_directory() as directory:
        cluster = Cluster(net, directory, replica_count, overrides or {})
        try:
            for name, zone in members.items():
                cluster.add(name, zone)
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def make_cluster() -> Iterator[MakeCluster]:
    """make_cluster({"a": "west", ...}, replica_count=2, overrides=...) -> Cluster, ended with the test."""
    with contextlib.ExitStack() as stack:

        def make(members: Mapping[str, str], **options: Any) -> Cluster:
            try:
                return stack.enter_context(cluster_of(members, **options))
            except namespaces.Unavailable as error:
                pytest.skip(str(error))

        yield make


def _state(pid: int) -> str:
    """Of the process, as in ps: T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
