"""A real API server with the custom resource definitions, and the plugin as its administrator runs it."""

from __future__ import annotations

import pytest

from tests.cluster.cluster import Cluster
from tests.plugin.plugin import Plugin
from tests.plugin.worlds import World
from tests.support.kubernetes import cluster, control_plane

__all__ = ["cluster", "control_plane"]


@pytest.fixture(scope="session")
def served(control_plane: Cluster) -> Cluster:
    from tests.crds import schema

    control_plane.kubectl.run("apply", "--server-side", "--force-conflicts", "-f", schema.FOLDER)
    for crd in schema.definitions().values():
        control_plane.kubectl.wait("crd", crd["metadata"]["name"], "condition=Established")
    return control_plane


@pytest.fixture(scope="session")
def plugin(served: Cluster) -> Plugin:
    return Plugin(served)


@pytest.fixture
def world(served: Cluster) -> World:
    """A pool and namespaces of the test's own."""
    return World(served)
