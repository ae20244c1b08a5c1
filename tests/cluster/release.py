"""Shoal as its users have it: installed by helm on a real cluster, with the project's own images and a bucket.

The bucket is served by an S3 server of this machine, at the address of the nodes' bridge, which pods reach. What the
tests apply are the manifests of the example, with the few values changed that a user changes: where the bucket is, its
credentials, and sizes that three nodes on one small machine can have.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.support import s3_server, waiting
from tests.support.kubernetes import load_image
from tests.support.s3_server import S3Server

NAMESPACE = "shoal-system"
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/04-cluster"
BUCKET = "data"
DISK = "/var/lib/shoal/disk"
"""On every node: a file system of its own, of DISK_SIZE."""
DISK_SIZE = "1G"


class Release:
    """What a test has of it."""

    def __init__(self, cluster: Cluster, bucket: S3Server, image: str) -> None:
        self.cluster = cluster
        self.kubectl = cluster.kubectl
        self.bucket = bucket
        self.image = image

    def helm(self, *argv: str) -> str:
        """Helm against this cluster; its output."""
        done = subprocess.run(
            [self.cluster.helm, *argv], env={**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)},
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self) -> None:
        """As the README says, and pods of privileged kinds allowed in the release's namespace."""
        repository, _, tag = self.image.rpartition(":")
        self.kubectl.run("create", "namespace", NAMESPACE)
        self.kubectl.run("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=privileged")
        self.helm(
            "install", "shoal", str(ROOT / "charts/shoal"), "--namespace", NAMESPACE,
            "--set", f"image.repository={repository}", "--set", f"image.tag={tag}", "--wait", "--timeout", "120s",
        )  # fmt: skip

    def uninstall(self) -> None:
        """As docs/operations.md says: what users made first, while the operator that ends it is there."""
        for kind in ("preloads", "datasets", "cachepools"):
            self.kubectl.run("delete", kind, "--all", "--all-namespaces", "--timeout=120s", timeout_s=150)
        self.helm("uninstall", "shoal", "--namespace", NAMESPACE, "--wait", "--timeout", "120s")
        self.kubectl.delete("namespace", NAMESPACE)

    # Shapes of what users write

    def pool(self, name: str, **spec: Any) -> dict[str, Any]:
        """A small pool; `spec` replaces whole fields."""
        fields = {"dram": {"budget": "96Mi"}, "blockSize": "1Mi", **spec}
        return {
            "apiVersion": "shoal.dev/v1alpha1",
            "kind": "CachePool",
            "metadata": {"name": name},
            "spec": fields,
        }

    def dataset(self, namespace: str, name: str, pool: str, prefix: str, **spec: Any) -> dict[str, Any]:
        """A data set below a prefix of the bucket, with the secret `s3`."""
        source = {
            "uri": f"s3://{BUCKET}/{prefix}",
            "endpoint": self.bucket.endpoint,
            "secretRef": {"name": "s3"},
        }
        return {
            "apiVersion": "shoal.dev/v1alpha1",
            "kind": "Dataset",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"pool": pool, "source": source, **spec},
        }

    def secret(self, namespace: str, **values: str) -> dict[str, Any]:
        """The credentials of the bucket, or other ones."""
        given = {"AWS_ACCESS_KEY_ID": s3_server.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": s3_server.SECRET_KEY, **values}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s3", "namespace": namespace},
            "stringData": given,
        }

    def ready(self, kind: str, name: str, namespace: str = "", seconds: float = 60) -> None:
        self.kubectl.wait(kind, name, "condition=Ready", namespace, seconds)

    def condition(self, kind: str, name: str, wanted: str, namespace: str = "") -> dict[str, Any]:
        """One condition; empty while there is none."""
        found = self.kubectl.get(kind, name, namespace).get("status", {}).get("conditions", [])
        return next((each for each in found if each["type"] == wanted), {})

    def says(self, kind: str, name: str, reason: str, namespace: str = "", seconds: float = 60) -> str:
        """The message of Ready, once its reason is this one."""
        waiting.until(
            lambda: self.condition(kind, name, "Ready", namespace).get("reason") == reason,
            f"{kind} {name}: Ready for the reason {reason}", seconds,
        )  # fmt: skip
        return str(self.condition(kind, name, "Ready", namespace)["message"])

    def example(self, *files: str, images: str = "images") -> str:
        """The manifests of the example as a user of this cluster would have changed them."""
        text = "\n---\n".join((EXAMPLE / file).read_text() for file in files)
        for before, after in (
            ("s3://my-bucket/images", f"s3://{BUCKET}/{images}"),
            ("# endpoint: https://s3.example.com", f"endpoint: {self.bucket.endpoint}"),
            ('AWS_ACCESS_KEY_ID: ""', f"AWS_ACCESS_KEY_ID: {s3_server.ACCESS_KEY}"),
            ('AWS_SECRET_ACCESS_KEY: ""', f"AWS_SECRET_ACCESS_KEY: {s3_server.SECRET_KEY}"),
            ("budget: 2Gi", "budget: 128Mi"),
            ("capacity: 20Gi", "capacity: 256Mi"),
            ("path: /var/lib/shoal", f"path: {DISK}"),
            ('cpu: "1"', "cpu: 100m"),
            ("memory: 1Gi", "memory: 256Mi"),
        ):
            text = text.replace(before, after)
        return re.sub(r"image: shoal-trainer:\S+", "image: docker.io/local/shoal-trainer:test", text)


@pytest.fixture(scope="session")
def bucket(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that pods reach, with an empty bucket."""
    directory = tmp_path_factory.mktemp("s3")
    try:
        with s3_server.start(directory, cluster.layout.node_address(0)) as server:
            server.make_bucket(BUCKET)
            yield server
    except s3_server.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="package")
def release(cluster: Cluster, bucket: S3Server) -> Iterator[Release]:
    """Shoal, installed; no pool yet. At the end it is taken away: the tests of other folders use the same cluster."""
    image = load_image(cluster, "shoal", ROOT, ROOT / "images/shoal/Dockerfile")
    made = Release(cluster, bucket, image)
    for node in cluster.layout.nodes:
        cluster.nodes.add_disk(node, DISK, DISK_SIZE)
    made.install()
    yield made
    made.uninstall()
