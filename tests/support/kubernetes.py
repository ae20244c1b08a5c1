"""The fixtures of tests that need a real Kubernetes: `control_plane`, `cluster` with nodes, `kwok` with fake ones.

A conftest imports what its tests use: `from tests.support.kubernetes import control_plane` and names it in `__all__`.
However many do so, there is one control plane and one cluster in a run; both end with it. Tests keep apart by
namespaces (`control_plane.kubectl.namespace()`), and by names of what has none. A machine that cannot have them skips,
with the reason; programs that are only not built yet are such a reason too, but not one that CI accepts.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.cluster import cluster as cluster_module
from tests.cluster import images, kwok, layout
from tests.cluster.cluster import Cluster
from tests.cluster.processes import Unavailable

__all__ = ["Cluster", "cluster", "control_plane", "kwok_control_plane", "load_image"]

NODES = 3


class _Shared:
    """One running cluster for all who ask for it; it ends with the last of them."""

    def __init__(self, nodes: int, *, fakes: bool = False) -> None:
        self._nodes = nodes
        self._fakes = fakes
        self._users = 0
        self._running: Cluster | None = None

    def use(self) -> Iterator[Cluster]:
        if self._running is None:
            self._running = self._make()
        self._users += 1
        try:
            yield self._running
        finally:
            self._users -= 1
            if not self._users:
                running, self._running = self._running, None
                running.down()

    def _make(self) -> Cluster:
        faulthandler.cancel_dump_traceback_later()  # packages may have to be installed first
        cluster_module.sweep_abandoned()
        made = Cluster(cluster_module.temporary_directory())
        try:
            made.up(nodes=self._nodes, owner=layout.owner_of(os.getpid()), stock_timeouts=self._fakes)
            if self._fakes:
                kwok.start(made)
        except Unavailable as error:
            made.down()
            pytest.skip(str(error))
        except BaseException:
            made.down()
            raise
        return made


_control_plane = _Shared(0)
_cluster = _Shared(NODES)
_kwok = _Shared(0, fakes=True)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    """A real API server with controllers and without nodes: `.kubectl`, `.kubeconfig`, `.api`, `.audit()`."""
    yield from _control_plane.use()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A whole cluster of three nodes in three zones, with DNS; images are loaded by those who need them."""
    yield from _cluster.use()


@pytest.fixture(scope="module")
def kwok_control_plane() -> Iterator[Cluster]:
    """A control plane of its own for fake nodes: `kwok.nodes(kwok_control_plane, 1000)` makes them."""
    yield from _kwok.use()


def load_image(
    cluster: Cluster, name: str, context: Path, dockerfile: Path, build_args: Mapping[str, str] | None = None
) -> str:
    """Builds an image where it is not built, gives it to every node, and returns what a pod calls it."""
    faulthandler.cancel_dump_traceback_later()  # the first one takes minutes
    try:
        archive = images.build(name, context, dockerfile, build_args)
    except Unavailable as error:
        pytest.skip(str(error))
    cluster.load(archive)
    return images.reference(name)
