"""What the tests of the CSI driver put into a real API server: pools, data sets, pods, their tokens, and permissions.

The driver runs under an account that may do only what DRIVER_RULES and RELEASE_RULES say, so that each test also shows
that nothing more is needed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster

CRDS = Path(__file__).resolve().parents[2] / "crds"
DRIVER = "shoal-csi"
DRIVER_RULES = [
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    {"apiGroups": ["shoal.dev"], "resources": ["datasets", "cachepools"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
]
RELEASE_RULES = [{"apiGroups": [""], "resources": ["configmaps", "secrets"], "verbs": ["get"]}]
KEY = hashlib.sha256(b"the pool's key").digest()
_RBAC = "rbac.authorization.k8s.io"


class Tenants:
    """One release of Shoal, without its operator, and whoever uses it."""

    def __init__(self, control_plane: Cluster) -> None:
        self.cluster = control_plane
        self.kubectl = control_plane.kubectl
        self.kubectl.apply(CRDS)
        for kind in "datasets", "cachepools":
            self.kubectl.wait("crd", f"{kind}.shoal.dev", "condition=Established")
        self.release = self.kubectl.namespace("shoal")
        account = {"kind": "ServiceAccount", "name": DRIVER, "namespace": self.release}
        name = f"{DRIVER}-{self.release}"
        self.apply(
            {"kind": "ServiceAccount", "apiVersion": "v1", "metadata": _meta(DRIVER, self.release)},
            {"kind": "ClusterRole", "apiVersion": f"{_RBAC}/v1", "metadata": _meta(name), "rules": DRIVER_RULES},
            _binding("ClusterRole", name, "", account),
            {
                "kind": "Role",
                "apiVersion": f"{_RBAC}/v1",
                "metadata": _meta(DRIVER, self.release),
                "rules": RELEASE_RULES,
            },
            _binding("Role", DRIVER, self.release, account),
        )
        groups = "system:serviceaccounts", f"system:serviceaccounts:{self.release}", "system:authenticated"
        self.kubeconfig = control_plane.kubeconfig_of(f"system:serviceaccount:{self.release}:{DRIVER}", *groups)

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def pool(self, *nodes: dict[str, Any], ready: bool = True) -> str:
        """A new pool, as the operator would have it."""
        name = f"pool-{secrets.token_hex(4)}"
        self.apply(
            {
                "apiVersion": "shoal.dev/v1alpha1",
                "kind": "CachePool",
                "metadata": _meta(name),
                "spec": {"dram": {"budget": "1Gi"}},
            }
        )
        if ready:
            key = base64.b64encode(KEY).decode()
            self.apply(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": _meta(f"shoal-{name}-key", self.release),
                    "data": {"key": key},
                }
            )
            self.view(name, *nodes)
        return name

    def view(self, pool: str, *nodes: dict[str, Any], epoch: int = 1) -> None:
        """Who is in the pool."""
        view = {"epoch": epoch, "replica_count": 1, "nodes": nodes}
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": _meta(f"shoal-{pool}", self.release),
                "data": {"view.json": json.dumps(view)},
            }
        )

    def team(self) -> Team:
        return Team(self)


class Team:
    """A namespace with data sets and pods."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._kubectl = tenants.kubectl
        self.namespace = self._kubectl.namespace("team")

    def dataset(self, name: str, pool: str) -> None:
        self._tenants.apply(
            {
                "apiVersion": "shoal.dev/v1alpha1",
                "kind": "Dataset",
                "metadata": _meta(name, self.namespace),
                "spec": {"pool": pool, "source": {"uri": f"s3://bucket/{name}"}},
            }
        )

    def allow(self, dataset: str, account: Account) -> None:
        """What `kubectl shoal grant use` makes."""
        name = f"use-{dataset}-{account.namespace}"
        rule = {"apiGroups": ["shoal.dev"], "resources": ["datasets"], "resourceNames": [dataset], "verbs": ["use"]}
        subject = {"kind": "ServiceAccount", "name": account.name, "namespace": account.namespace}
        self._tenants.apply(
            {
                "kind": "Role",
                "apiVersion": f"{_RBAC}/v1",
                "metadata": _meta(name, self.namespace),
                "rules": [rule],
            },
            _binding("Role", name, self.namespace, subject),
        )

    def forbid(self, dataset: str, account: Account) -> None:
        """The permission is taken back."""
        self._kubectl.delete("rolebinding", f"use-{dataset}-{account.namespace}", self.namespace)

    def account(self, name: str = "trainer") -> Account:
        self._kubectl.run("--namespace", self.namespace, "create", "serviceaccount", name)
        return Account(self._tenants, self.namespace, name)


class Account:
    """A service account, and pods that run under it."""

    def __init__(self, tenants: Tenants, namespace: str, name: str) -> None:
        self.tenants = tenants
        self.namespace = namespace
        self.name = name

    @property
    def user(self) -> str:
        return f"system:serviceaccount:{self.namespace}:{self.name}"

    def pod(self, name: str = "job-0") -> Pod:
        self.tenants.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": _meta(name, self.namespace),
                "spec": {"serviceAccountName": self.name, "containers": [{"name": "main", "image": "none"}]},
            }
        )
        uid = self.tenants.kubectl.get("pod", name, self.namespace)["metadata"]["uid"]
        return Pod(self, name, uid)


class Pod:
    """A pod that nothing runs; what kubelet would say of it."""

    def __init__(self, account: Account, name: str, uid: str) -> None:
        self.account = account
        self.name = name
        self.uid = uid

    @property
    def volume_id(self) -> str:
        return f"csi-{self.uid}"

    def token(self, audience: str = "shoal.dev") -> str:
        """A token as kubelet gets it: bound to the pod."""
        kubectl = self.account.tenants.kubectl
        bound = "--bound-object-kind=Pod", f"--bound-object-name={self.name}", f"--bound-object-uid={self.uid}"
        words = ("create", "token", self.account.name, f"--audience={audience}", "--duration=1h", *bound)
        return kubectl.run("--namespace", self.account.namespace, *words).strip()

    def context(self, dataset: str, token: str | None = None, **more: str) -> dict[str, str]:
        """volume_context as kubelet fills it in."""
        about = {
            "pod.name": self.name,
            "pod.namespace": self.account.namespace,
            "pod.uid": self.uid,
            "serviceAccount.name": self.account.name,
            "ephemeral": "true",
            "serviceAccount.tokens": tokens(self.token() if token is None else token),
        }
        return {"dataset": dataset, **{f"csi.storage.k8s.io/{key}": value for key, value in about.items()}, **more}

    def events(self) -> list[dict[str, Any]]:
        return self.account.tenants.kubectl.items(
            "events", self.account.namespace, fields=f"involvedObject.uid={self.uid}"
        )


def tokens(token: str) -> str:
    return json.dumps({"shoal.dev": {"token": token, "expirationTimestamp": "2100-01-01T00:00:00Z"}})


def node(name: str, zone: str = "", rack: str = "", status: str = "ready") -> dict[str, Any]:
    """A node of a view."""
    address = f"tcp:10.0.0.{int(name.rpartition('-')[2])}:7440"
    return {
        "id": name,
        "addresses": [address],
        "capacity_bytes": 1 << 30,
        "zone": zone,
        "rack": rack,
        "status": status,
    }


def _meta(name: str, namespace: str = "") -> dict[str, str]:
    return {"name": name, **({"namespace": namespace} if namespace else {})}


def _binding(kind: str, role: str, namespace: str, subject: dict[str, str]) -> dict[str, Any]:
    return {
        "kind": f"{kind}Binding",
        "apiVersion": f"{_RBAC}/v1",
        "metadata": _meta(role, namespace),
        "roleRef": {"apiGroup": _RBAC, "kind": kind, "name": role},
        "subjects": [subject],
    }
