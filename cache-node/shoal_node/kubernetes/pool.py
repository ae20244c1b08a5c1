"""What a node does with its pool's state: data sets, view and preloads become what that says; and it tells how all is.

Order matters in one respect: a data set is known before the view brings readers who ask for it, and one whose secret
is not read yet keeps its readers waiting instead of reading as somebody else. Whatever is wrong with one data set costs
that one, and is told for it; the API server being away costs nothing but news.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from shoal_core import config
from shoal_core.errors import ShoalError
from shoal_node import preloading, scanning
from shoal_node.kubernetes import api
from shoal_node.kubernetes.credentials import Credentials
from shoal_node.kubernetes.following import PoolFollower
from shoal_node.kubernetes.pool_state import PoolDataset, PoolState

if TYPE_CHECKING:
    from shoal_node.runtime import Node

_SWEEP_S = 30.0


class Pool:
    """One for the node. Made before its doors open, started and closed on its loop."""

    def __init__(self, node: Node, namespace: str, name: str) -> None:
        self._node = node
        self._place = namespace, name
        self._api = api.from_environment()
        self._datasets: dict[str, PoolDataset] = {}
        """As the state has them, but for those in `_refused`."""
        self._refused: dict[str, str] = {}
        self._credentials = Credentials(node, self._api, self._changed)
        self._scans = scanning.Scans(node)
        self._preloads = preloading.Preloads(node)
        self._follower: PoolFollower | None = None
        self._tasks: list[asyncio.Task[None]] = []
        node.datasets.are_followed = True
        for dataset in node.datasets.names:
            if (
                dataset not in node.config.datasets
            ):  # known from before the restart; how it is read comes with the state
                node.origins.own_options.wait_for(dataset)

    def start(self) -> None:
        self._credentials.start()
        directory = self._node.config.state_directory
        self._follower = PoolFollower(self._api, *self._place, directory, self.adopt)
        self._tasks = [asyncio.create_task(self._scans.run()), asyncio.create_task(self._sweep())]

    async def close(self) -> None:
        """Nothing runs any more."""
        self._api.close()
        for task in self._tasks:
            task.cancel()
        await self._preloads.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._follower is not None:
            await asyncio.to_thread(self._follower.close)
        await asyncio.to_thread(self._credentials.close)

    @property
    def view_error(self) -> str | None:
        """Why this node is not as its pool's state says; None: it is."""
        return self._follower.last_error if self._follower is not None else None

    def adopt(self, state: PoolState) -> list[str]:
        """Make it so; what could not be. In the follower's thread."""
        complaints: list[str] = []
        if state.datasets is not None:
            self._adopt_datasets(state.datasets, state.refused)
        if state.view is not None and self._node.peers is not None:
            peers = self._node.peers
            if not peers.adopt(state.view) and peers.cluster.router.view != state.view:
                complaints.append(
                    f"view.json: it changed, but epoch {state.view.epoch} is not later than {peers.epoch}"
                )
        if state.preloads is not None:
            self._node.loop.call_soon_threadsafe(self._preloads.follow, state.preloads)
        return complaints

    def _adopt_datasets(self, wanted: Mapping[str, PoolDataset], refused: Mapping[str, str]) -> None:
        node, before = self._node, self._datasets
        refusals = dict(refused)
        taken: dict[str, PoolDataset] = {}
        for name, dataset in wanted.items():
            if name in node.config.datasets:
                refusals[name] = f"{name}: the node's own configuration has a data set of this name"
                continue
            taken[name] = dataset
        # First, so that none is read in any other way than its own, not even for a moment.
        self._credentials.keep(taken)
        for name, dataset in list(taken.items()):
            if before.get(name) == dataset:
                continue
            try:
                node.datasets.put(name, self._fitting(dataset.settings), has_secret=dataset.secret is not None)
            except ShoalError as error:
                refusals[name] = str(error)
                del taken[name]
        # A change that cannot be leaves a data set as it was: what is cached of it is not to go for a slip.
        taken |= {name: before[name] for name in refusals if name in before}
        for name in node.datasets.names:
            if name not in taken and name not in node.config.datasets:
                node.datasets.remove(name)
        node.datasets.save()
        self._datasets, self._refused = taken, refusals
        due = {name: scanning.Due(dataset.refresh_s, dataset.generation) for name, dataset in taken.items()}
        node.loop.call_soon_threadsafe(self._scans.follow, due)

    def _fitting(self, settings: config.Dataset) -> config.Dataset:
        """A quota is for every node of the pool; where a tier is smaller, that is the cap."""
        node = self._node.config
        most = max(node.dram.budget_bytes, *(nvme.budget_bytes for nvme in node.nvme), 0)
        quota = settings.quota_bytes
        return settings if quota is None or quota <= most else msgspec.structs.replace(settings, quota_bytes=None)

    def _changed(self, name: str) -> None:
        self._scans.want(name)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            await asyncio.to_thread(self._node.datasets.sweep)

    # What /status shows

    def complete(self, numbers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """`Datasets.numbers`, with what the pool knows of each."""
        for name, values in numbers.items():
            found, wrong = self._scans.found(name), self._credentials.error(name) or self._scans.error(name)
            if found is not None:
                values |= {
                    "objects": found.objects, "bytes": found.bytes, "manifest": found.manifest,
                    "scanned_at_s": found.at_s,
                }  # fmt: skip
            if wrong is not None:
                values["error"] = _error(*wrong)
        for name, text in self._refused.items():
            numbers.setdefault(name, {})["error"] = _error("BadSource", text)
        return numbers

    def preloads(self) -> dict[str, dict[str, Any]]:
        return self._preloads.status()


def _error(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
