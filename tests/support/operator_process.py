"""The operator as a real process against a real API server, with the rights of the chart and no more.

`Release` makes what the chart would make: a namespace, a service account, its roles. `Release.start()` runs
`python -m shoal_operator` as that account. Each process has a port of its own for health and metrics.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import processes
from tests.cluster.cluster import Cluster
from tests.cluster.processes import ClusterError
from tests.support import waiting

ACCOUNT = "shoal-operator"
IMAGE = "example.test/shoal:1"
_REPOSITORY = Path(__file__).resolve().parents[2]
_CRDS = _REPOSITORY / "crds"
_CHART = _REPOSITORY / "charts" / "shoal"
_RIGHTS = "templates/operator/rbac.yaml"

_CRD_NAMES = ("cachepools.shoal.dev", "datasets.shoal.dev", "preloads.shoal.dev")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class OperatorProcess:
    """One replica."""

    def __init__(self, release: Release, name: str, *flags: str) -> None:
        self.name = name
        self.port = free_port()
        self.log = release.directory / f"{name}.log"
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SHOAL_", "KUBERNETES_"))},
            "SHOAL_KUBERNETES_API": str(release.api_file),
            "POD_NAMESPACE": release.namespace,
            "POD_NAME": name,
            "SHOAL_IMAGE": IMAGE,
        }
        words = [sys.executable, "-m", "shoal_operator", "--metrics-port", str(self.port), *flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def ask(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def answers(self, path: str, status: int = 200) -> bool:
        try:
            return self.ask(path)[0] == status
        except OSError:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}") from None
            return False

    def metric(self, name: str, **labels: str) -> float | None:
        """The value of the first series of that name with these labels."""
        for line in self.ask("/metrics")[1].splitlines():
            match = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == name:
                found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                if labels.items() <= found.items():
                    return float(match[3])
        return None

    def leads(self) -> bool:
        return self.answers("/readyz") and self.metric("shoal_operator_leader") == 1

    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def tail(self, size: int = 4000) -> str:
        return self.log.read_text(errors="replace")[-size:]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def end(self) -> int:
        """By SIGTERM, as kubelet does it; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end:\n{self.tail()}") from None


class Release:
    """A namespace with an account that may do what the chart lets the operator do."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.running: list[OperatorProcess] = []
        kubectl = cluster.kubectl
        kubectl.run("apply", "--server-side", "--force-conflicts", "-f", _CRDS)
        for name in _CRD_NAMES:
            kubectl.wait("crd", name, "condition=Established")
        self.namespace = kubectl.namespace("shoal")
        kubectl.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": self._rights()}))
        token = directory / "token"
        token.write_text(kubectl.run("--namespace", self.namespace, "create", "token", ACCOUNT, "--duration=10h"))
        authority = cluster.layout.certificate("ca")
        self.api_file = directory / "api.json"
        self.api_file.write_text(
            json.dumps({"server": cluster.layout.api_url, "ca_file": str(authority), "token_file": str(token)})
        )

    def start(self, name: str = "operator-0", *flags: str, ready: bool = True) -> OperatorProcess:
        process = OperatorProcess(self, name, *flags)
        self.running.append(process)
        if ready:
            waiting.until(lambda: process.answers("/readyz"), f"{name} is ready", 30)
        return process

    def end(self) -> None:
        for process in self.running:
            if process.process.poll() is None:
                process.kill()

    def _rights(self) -> list[dict[str, Any]]:
        """The chart's own. What belongs to no namespace gets a name of this release's: several may be there."""
        place = ("--namespace", self.namespace)
        text = processes.run(self.cluster.helm, "template", "shoal", _CHART, *place, "--show-only", _RIGHTS)
        items: list[dict[str, Any]] = [item for item in yaml.safe_load_all(text) if item]
        for item in items:
            if item["kind"].startswith("Cluster"):
                item["metadata"]["name"] += f"-{self.namespace}"
            if item["kind"] == "ClusterRoleBinding":
                item["roleRef"]["name"] += f"-{self.namespace}"
        account = {"name": ACCOUNT, "namespace": self.namespace}
        return [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}, *items]


def events_of(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    """Kubernetes Events on the objects of that name."""
    try:
        return cluster.kubectl.items("events", fields=f"involvedObject.name={name}")
    except ClusterError:
        return []
