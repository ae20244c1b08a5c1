"""What does a warm epoch over files of 110 KB cost, beside plain `open` and beside an epoch from S3 that is 20 ms away?

A real S3 server on loopback holds the files; each request reaches it 20 ms late. Ours is `shoal.torch.DataLoader` over
a `Dataset` of format `files` through a node that has them all. The reference reads the server's own files, which are in
the page cache, with torch's loader, the same batch size and as many workers. Samples are handed over as bytes
(`collate_fn=list`), as their size alone (a transform of `len`, so that workers send nothing large), and as views. A
cold epoch is ours after an evict; an epoch without a cache is obstore in torch's loader, one file at a time.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import obstore
import obstore.store
import torch.utils.data

import shoal
import shoal.torch
from shoal_bench import epochs, pairs, places, s3
from shoal_bench.report import Report
from shoal_core.limits import MIB

FAR_S = 0.02
WITHIN = 0.95
"""Five per cent: the speed of plain `open`, times this."""
WORKERS = 0, 2
_AT_ONCE = 64
_DIRECT_COUNT = 64
"""Files of the epoch without a cache, which are read one by one."""


class DirectFiles(torch.utils.data.Dataset[Any]):
    """Objects of a bucket with no cache between. Each process makes its own store."""

    def __init__(self, store_of: Callable[[], Any], keys: list[str]) -> None:
        self._store_of = store_of
        self._keys = keys
        self._store: Any = None

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if self._store is None:
            self._store = self._store_of()
        return {"data": bytes(obstore.get(self._store, self._keys[number]).bytes()), "label": 0}


def run(report: Report) -> None:
    """Per number of workers: three rows beside `open`, three beside S3."""
    support = s3.support(report, "warm epochs over files")
    if support is None:
        return
    count = epochs.file_count(report)
    with places.directory() as place, support.start(place) as server:
        server.make_bucket("bench")
        asyncio.run(_put_files(server.store("bench"), count))
        with (
            s3.far(server.options, FAR_S) as options,
            places.node(place, 512 * MIB, origins={"s3://bench": options}) as node,
            shoal.connect(node.unix) as client,
        ):
            paths = [str(place / "data" / "bench" / name) for name in epochs.names(count)]
            for workers in WORKERS:
                _beside_open(report, client, paths, workers)
            for workers in WORKERS:
                _beside_s3(report, client, count, workers, partial(_far_store, options))


def _beside_open(report: Report, client: shoal.Client, paths: list[str], workers: int) -> None:
    ours, plain = shoal.torch.DataLoader, torch.utils.data.DataLoader
    handed = {"collate_fn": list}
    for name, data, go, options, transform in (
        ("bytes", shoal.torch.Dataset("s3://bench/", client=client), epochs.samples, handed, None),
        ("sizes", shoal.torch.Dataset("s3://bench/", client=client, transform=len), epochs.samples, handed, len),
        ("views", shoal.torch.Dataset("s3://bench/", client=client, views=True), epochs.lent, {}, None),
    ):
        mine = epochs.loader(ours, data, workers, **options)
        theirs = epochs.loader(plain, epochs.PlainFiles(paths, transform), workers, **handed)
        assert go(mine) == epochs.samples(theirs) == len(paths)
        pair = pairs.compare(
            pairs.timed(partial(go, mine), len(paths)),
            pairs.timed(partial(epochs.samples, theirs), len(paths)),
            report.rounds(15),
        )
        report.row(
            f"warm epoch, files of 110 KB as {name}, {workers} workers",
            1 / pair.ours_s, 1 / pair.reference_s, "samples/s",
            ratio=pair.speed, reference_name="open().read() in torch's loader", at_least=WITHIN,
        )  # fmt: skip


def _beside_s3(report: Report, client: shoal.Client, count: int, workers: int, far_store: Callable[[], Any]) -> None:
    how = f"bytes, {workers} workers"
    warm, cold = _warm_and_cold(report, client, count, workers, views=False)
    _s3_row(report, pairs.of(warm, cold), how, "a cold epoch through the node, read ahead")
    files = DirectFiles(far_store, epochs.names(_DIRECT_COUNT))
    # Spawned: obstore's threads are in this process already, and do not survive a fork.
    spawned: dict[str, Any] = {"multiprocessing_context": "spawn"} if workers else {}
    direct = epochs.loader(torch.utils.data.DataLoader, files, workers, collate_fn=list, **spawned)
    took = pairs.timed(partial(epochs.samples, direct), _DIRECT_COUNT)
    took()  # workers start in the first one
    _s3_row(report, pairs.of(warm, [took() for _ in warm]), how, "obstore in torch's loader, no cache")
    pair = pairs.of(*_warm_and_cold(report, client, count, workers, views=True))
    _s3_row(report, pair, f"views, {workers} workers", "a cold epoch through the node, read ahead")


def _warm_and_cold(
    report: Report, client: shoal.Client, count: int, workers: int, *, views: bool
) -> tuple[list[float], list[float]]:
    """Seconds per sample of warm epochs, and of the cold ones before them."""
    data = shoal.torch.Dataset("s3://bench/", views=views, client=client)
    options: dict[str, Any] = {} if views else {"collate_fn": list}
    go: Callable[[Any], int] = epochs.lent if views else epochs.samples
    cold: list[float] = []
    warm: list[float] = []
    for _ in range(1 if report.quick else 3):
        # A loader of its own each time: workers read on under the leases that they hold, also after an evict.
        loader = epochs.loader(shoal.torch.DataLoader, data, workers, **options)
        epoch = pairs.timed(partial(go, loader), count)
        client.evict("s3://bench/")
        before = client.node_stats()["fill_bytes"]
        cold.append(epoch())
        assert client.node_stats()["fill_bytes"] - before >= count * epochs.FILE_BYTES, "the epoch was not cold"
        warm.append(statistics.median(epoch() for _ in range(3)))
    return warm, cold


def _s3_row(report: Report, pair: pairs.Pair, how: str, reference: str) -> None:
    report.row(
        f"warm epoch, files of 110 KB as {how}, S3 {FAR_S * 1000:.0f} ms away",
        1 / pair.ours_s, 1 / pair.reference_s, "samples/s", ratio=pair.speed, reference_name=reference, at_least=10.0,
    )  # fmt: skip


def _far_store(options: dict[str, str]) -> Any:
    return obstore.store.S3Store(
        "bench",
        endpoint=options["endpoint"],
        access_key_id=options["access_key_id"],
        secret_access_key=options["secret_access_key"],
        region=options["region"],
        client_options={"allow_http": True},
    )


async def _put_files(store: Any, count: int) -> None:
    names = epochs.names(count)
    for start in range(0, count, _AT_ONCE):
        await asyncio.gather(
            *(obstore.put_async(store, name, os.urandom(epochs.FILE_BYTES)) for name in names[start : start + _AT_ONCE])
        )
