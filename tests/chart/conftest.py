"""Real control planes of this folder's own: what the chart installs for a whole cluster must not meet other tests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.chart import helm as helm_module
from tests.chart.helm import CHART, NAMESPACE, Helm
from tests.cluster import cluster as cluster_module
from tests.cluster import layout
from tests.cluster.cluster import Cluster
from tests.cluster.processes import Unavailable


@contextlib.contextmanager
def _control_plane() -> Iterator[Cluster]:
    made = Cluster(cluster_module.temporary_directory())
    try:
        made.up(owner=layout.owner_of(os.getpid()))
        yield made
    except Unavailable as error:
        pytest.skip(str(error))
    finally:
        made.down()


@pytest.fixture(scope="session")
def renderer() -> Helm:
    """helm without a cluster."""
    try:
        return Helm()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _helm_is_there(renderer: Helm) -> None:
    """Every test of this folder needs it."""


@pytest.fixture(scope="session")
def installed(renderer: Helm) -> Iterator[Cluster]:
    """A control plane on which the chart is installed with all its parts."""
    with _control_plane() as cluster:
        values = helm_module.VALUES / "everything.yaml"
        argv = ("--namespace", NAMESPACE, "--create-namespace", "--values", values, "--set", "podMonitor.force=false")
        Helm(cluster.kubeconfig).run("install", "shoal", CHART, *argv)
        yield cluster


@pytest.fixture
def empty() -> Iterator[Cluster]:
    """A control plane with nothing of ours."""
    with _control_plane() as cluster:
        yield cluster
