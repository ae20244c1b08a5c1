"""A memory smaller than the data set: what do epochs cost the origin, and are they ever slower than without a cache?

A real S3 server on loopback (versitygw, as the tests build it) holds files of 110 KB, at once and 20 ms away. A
`shoal.torch.DataLoader` without workers goes through them in batches of 32, in a fresh order each epoch, and tells the
node what comes. The node has memory for 25, 50 and 75 % of the files. Of epochs after the first are taken: the bytes
that the node fetched, prefetch included, beside what cannot be had without fetching (the files less those that fit);
and the time, beside the same batches straight from the server with obstore, as many at once. Epochs with and without
cache take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store

import shoal
from shoal.torch import DataLoader, Dataset
from shoal_bench import places, s3
from shoal_bench.report import Report

FILE_COUNT = 3600
FILE_BYTES = 110_000
BATCH = 32
SHARES = (0.25, 0.5, 0.75)
FAR_S = 0.02
_SLOTS_AND_INDEX = 1.13
"""What of the memory is none of the files': the rest of each slot, the index, the rest of the last slab."""
_KEYS = [f"{number // 1000}/{number:05}.jpg" for number in range(FILE_COUNT)]


def run(report: Report) -> None:
    """Two rows for each share and distance."""
    if (s3_server := s3.support(report, "a cache smaller than the data set")) is None:
        return
    with places.directory() as place, s3_server.start(place) as server:
        server.make_bucket("bench")
        asyncio.run(_put_files(server.store("bench")))
        with s3.far(server.options, FAR_S) as far:
            for name, options in (("beside", server.options), ("20 ms away", far)):
                for share in SHARES:
                    _rows(report, place, share, name, options)


def _rows(report: Report, place: Path, share: float, where: str, options: dict[str, str]) -> None:
    budget_bytes = int(FILE_COUNT * FILE_BYTES * share * _SLOTS_AND_INDEX)
    sections: dict[str, Any] = {"origins": {"s3://bench": options}, "fill": {"concurrency": BATCH}}
    store = S3Store("bench", config=options)  # type: ignore[arg-type]
    with places.node(place, budget_bytes, **sections) as node, contextlib.closing(Epochs(node.unix)) as epochs:
        epochs.read()
        count = report.rounds(5)
        seconds: list[float] = []
        reference: list[float] = []
        fetched_bytes = 0
        for _ in range(count):
            before = epochs.fetched_bytes()
            seconds.append(_timed(epochs.read))
            fetched_bytes += epochs.fetched_bytes() - before
            reference.append(_timed(lambda: asyncio.run(_without_cache(store, epochs.order))))
        usable_bytes = epochs.held_bytes()
    least_bytes = FILE_COUNT * FILE_BYTES - usable_bytes
    name = f"{usable_bytes / FILE_COUNT / FILE_BYTES:.0%} of {FILE_COUNT} files of 110 KB fit, S3 {where}"
    report.row(f"{name}: fetched by an epoch, times what does not fit", fetched_bytes / count / least_bytes, None, "",
        at_most=1.05,
    )  # fmt: skip
    report.row(f"{name}: an epoch", statistics.median(seconds), statistics.median(reference), "s",
        reference_name=f"obstore alone, {BATCH} at once", at_least=1.0,
    )  # fmt: skip


class Epochs:
    """A loader that goes through all files again and again, in an order that is new each time."""

    def __init__(self, address: str) -> None:
        self.client = shoal.connect(address)
        dataset = Dataset("s3://bench", transform=len, client=self.client)
        self._items = [_KEYS.index(dataset.path(number)) for number in range(len(dataset))]
        self._loader = DataLoader(dataset, BATCH, shuffle=True)
        self.order: list[int] = []
        """Of the last epoch, as positions in _KEYS."""

    def read(self) -> None:
        """One epoch."""
        order = self._loader.order(self._loader.epoch)
        for _ in self._loader:
            pass
        self.order = [self._items[order.items(place)] for place in range(FILE_COUNT)]

    def fetched_bytes(self) -> int:
        return self.client.node_stats()["fill_bytes"]

    def held_bytes(self) -> int:
        return self.client.node_stats()["tiers"]["dram"]["blocks"] * FILE_BYTES

    def close(self) -> None:
        self.client.close()


async def _put_files(store: Any) -> None:
    for place in range(0, FILE_COUNT, BATCH):
        await asyncio.gather(
            *(obstore.put_async(store, key, os.urandom(FILE_BYTES)) for key in _KEYS[place : place + BATCH])
        )


async def _without_cache(store: Any, order: list[int]) -> None:
    async def one(item: int) -> None:
        result = await obstore.get_async(store, _KEYS[item])
        await result.bytes_async()

    for place in range(0, FILE_COUNT, BATCH):
        await asyncio.gather(*(one(item) for item in order[place : place + BATCH]))


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
