"""A real API server that serves the custom resource definitions as they are in crds/."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.api import Api
from tests.cluster.cluster import Cluster
from tests.crds import schema
from tests.support.kubernetes import control_plane

__all__ = ["control_plane"]


@pytest.fixture(scope="module")
def served(control_plane: Cluster) -> Iterator[Cluster]:
    """The control plane, with the definitions established; what was made of them here goes at the end."""
    control_plane.kubectl.run("apply", "--server-side", "--force-conflicts", "-f", schema.FOLDER)
    for crd in schema.definitions().values():
        control_plane.kubectl.wait("crd", crd["metadata"]["name"], "condition=Established")
    yield control_plane
    for crd in schema.definitions().values():
        control_plane.kubectl.run("delete", crd["spec"]["names"]["plural"], "--all", "--all-namespaces")


@pytest.fixture(scope="module")
def api(served: Cluster) -> Iterator[Api]:
    with served.api as api:
        yield api
