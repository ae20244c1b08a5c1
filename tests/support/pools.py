"""Nodes in this process that follow the state of a pool in a real API server, as an operator would write it.

`make_pool()` gives a pool in a namespace of its own: a service account that may read its one ConfigMap and nothing
else, and a token of it. `pool.start(3)` starts nodes and publishes; `pool.datasets`, `pool.preloads` and `pool.rows`
are what the next `publish` says. Secrets, and who may read them, are real as well.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from shoal_node.kubernetes import api
from tests.cluster.cluster import Cluster
from tests.support import waiting
from tests.support.running_node import InProcessNode, MakeInProcess, merged

GIB = 1 << 30
NAME = "shoal-pool"
BLOCK = 64 << 10


class Pool:
    """Made by the fixture `make_pool`."""

    def __init__(self, control_plane: Cluster, make: MakeInProcess, directory: Path) -> None:
        self.control_plane = control_plane
        self.namespace = control_plane.kubectl.namespace("pool")
        self.running: dict[str, InProcessNode] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.datasets: dict[str, Any] = {}
        self.preloads: dict[str, Any] = {}
        self.epoch = 0
        self.replica_count = 1
        self._make = make
        self._written = False
        self._last_rows: object = None
        rules = [
            {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME], "verbs": ["get", "list", "watch"]}
        ]
        self.create("serviceaccounts", {"metadata": {"name": NAME}})
        self.allow(NAME, rules)
        token = control_plane.kubectl.run("--namespace", self.namespace, "create", "token", NAME).strip()
        self.token_file = directory / "token"
        self.token_file.write_text(token)
        self.api_file = directory / "api.json"
        layout = control_plane.layout
        server = f"https://{layout.api_address}:{layout.settings.api_port}"
        self.api_file.write_text(
            json.dumps({"server": server, "ca_file": str(layout.certificate("ca")), "token_file": str(self.token_file)})
        )

    def __getitem__(self, number: int) -> InProcessNode:
        return self.running[f"node-{number}"]

    # What an administrator does

    def create(self, kind: str, body: Mapping[str, Any], group: str = "/api/v1") -> None:
        """An object, in place of one of that name."""
        path = f"{group}/namespaces/{self.namespace}/{kind}"
        with self.control_plane.api as admin:  # a new connection: the server may be another one
            status, answer = admin.request("POST", path, body)
            if status == 409:
                status, answer = admin.request("PUT", f"{path}/{body['metadata']['name']}", body)
        assert status in (200, 201), answer

    def delete(self, kind: str, name: str, group: str = "/api/v1") -> None:
        with self.control_plane.api as admin:
            status, answer = admin.request("DELETE", f"{group}/namespaces/{self.namespace}/{kind}/{name}")
        assert status in (200, 202), answer

    def allow(self, name: str, rules: list[dict[str, Any]]) -> None:
        """The pool's account may do that."""
        group = "/apis/rbac.authorization.k8s.io/v1"
        self.create("roles", {"metadata": {"name": name}, "rules": rules}, group)
        binding = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": self.namespace}],
        }
        self.create("rolebindings", binding, group)

    def grant(self, secret: str) -> None:
        """As the tenant grants one secret."""
        self.allow(
            f"read-{secret}",
            [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": [secret], "verbs": ["get"]}],
        )

    def put_secret(self, name: str, values: Mapping[str, str]) -> dict[str, str]:
        """A data set's `secret`."""
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        self.create("secrets", {"metadata": {"name": name}, "data": data})
        return {"namespace": self.namespace, "name": name}

    # What an operator does

    def start(
        self, count: int, *, replica_count: int = 1, zones: int = 1, overrides: Mapping[str, Any] | None = None
    ) -> Pool:
        self.replica_count = replica_count
        self.write()
        for number in range(1, count + 1):
            self.add(number, zone=f"zone-{number % zones}", overrides=overrides)
        self.publish()
        return self

    def add(self, number: int, *, zone: str = "zone-0", overrides: Mapping[str, Any] | None = None) -> InProcessNode:
        """One more, which is in the view from the next `publish` on."""
        name = f"node-{number}"
        view = f"kubernetes:{self.namespace}/{NAME}"
        node = self.running[name] = self._make(
            merged({"node_name": name, "tenant": "shoal", "cluster": {"view": view}}, overrides or {})
        )
        self.rows[name] = {
            "id": name, "addresses": [node.tcp_address], "capacity_bytes": GIB, "zone": zone, "rack": "",
            "status": "ready",
        }  # fmt: skip
        return node

    def write(self, **documents: str) -> None:
        """What it says now; `documents` go before."""
        if self._last_rows != (rows := json.dumps([self.replica_count, self.rows])):
            self.epoch += 1
            self._last_rows = rows
        view = {"epoch": self.epoch, "replica_count": self.replica_count, "nodes": list(self.rows.values())}
        data = {
            "view.json": json.dumps(view),
            "datasets.json": json.dumps(self.datasets),
            "preloads.json": json.dumps(self.preloads),
            "operator.json": json.dumps({"update": None}),
        } | documents
        self.create("configmaps", {"metadata": {"name": NAME}, "data": data})

    def publish(self) -> None:
        """Write, and wait until every node that runs has it."""
        self.write()
        waiting.until(self.is_known, "every node holds the view and the data sets")

    def is_known(self) -> bool:
        return all(
            node.node.epoch == self.epoch
            and set(node.node.datasets.names) == set(self.datasets)
            and set(status(node)["preloads"]) == set(self.preloads)
            for node in self.running.values()
        )

    def dataset(self, name: str) -> dict[str, Any]:
        """What the node that scanned it says; else any that says an error; else {}."""
        said = [status(node)["datasets"].get(name, {}) for node in self.running.values()]
        scanned = [each for each in said if each.get("manifest")]
        wrong = [each for each in said if each.get("error")]
        return (scanned or wrong or [{}])[0]

    def error(self, name: str) -> str:
        """The code of what any node says is wrong with it; '' while nothing is."""
        said = [status(node)["datasets"].get(name, {}).get("error") for node in self.running.values()]
        return next((error["code"] for error in said if error), "")

    def preload(self, name: str) -> list[dict[str, Any]]:
        """What each node says of it."""
        return [status(node)["preloads"].get(name, {"state": "listing"}) for node in self.running.values()]


def status(node: InProcessNode) -> dict[str, Any]:
    return node.node.status()


MakePool = Callable[[], Pool]


@pytest.fixture
def make_pool(
    control_plane: Cluster, in_process_node: MakeInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> MakePool:
    """make_pool() -> Pool: one in a test, as nodes of this process share its environment."""

    def make() -> Pool:
        pool = Pool(control_plane, in_process_node, tmp_path)
        monkeypatch.setenv(api.OVERRIDE, str(pool.api_file))
        return pool

    return make
