"""A real API server with a release of Shoal in it, and a machine with the driver on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.csi import machine as machine_module
from tests.csi.machine import Driver, Machine
from tests.csi.tenants import Tenants
from tests.support.kubernetes import cluster, control_plane

__all__ = ["cluster", "control_plane"]


@pytest.fixture(scope="session")
def tenants(control_plane: Cluster) -> Tenants:
    return Tenants(control_plane)


@pytest.fixture
def machine() -> Iterator[Machine]:
    # Not pytest's directory: its name is too long for the path of a socket.
    with tempfile.TemporaryDirectory(prefix="shoal-csi-") as directory, machine_module.machine(Path(directory)) as made:
        yield made


@pytest.fixture
def driver(machine: Machine, tenants: Tenants, tmp_path: Path) -> Iterator[Driver]:
    with Driver(machine, tenants.kubeconfig, tenants.release, log=tmp_path / "driver.log") as running:
        yield running
