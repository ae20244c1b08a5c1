"""What does a batch cost as one request, beside its samples one by one?

`Dataset.__getitems__`, which torch's loader calls with a batch, beside `__getitem__` for each sample of it, over files
of 10 KiB and of 1 MiB. Both go through the data set in the same cyclic order, and one client may lease far less than
all of it, so that what is asked for was given back since: every get is a request, over shared memory as over TCP.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import shoal
import shoal.torch
from shoal_bench import pairs, places
from shoal_bench.report import Report
from shoal_core.limits import KIB, MIB


class Size(NamedTuple):
    """What is read of one size, and how many times as fast a batch must be."""

    name: str
    file_bytes: int
    files: int
    batch: int
    leased_bytes: int
    at_least: float


SIZES = (
    Size("10 KiB", 10 * KIB, 4096, 256, 8 * MIB, 10.0),
    Size("1 MiB", MIB, 192, 32, 48 * MIB, 1.5),
)


def run(report: Report) -> None:
    """Per size: a row for each door, and one without a copy."""
    for size in SIZES:
        leases = {"client_bytes_max": size.leased_bytes}
        with places.directory() as place, places.node(place, 384 * MIB, leases=leases) as node:
            for number in range(size.files):
                places.write_object(place / "files" / f"{number:05}", size.file_bytes)
            url = f"file://{place}/files/"
            with shoal.connect(node.unix) as local, shoal.connect(node.tcp) as remote:
                for client, door, views in (
                    (local, "shared memory", False),
                    (local, "views", True),
                    (remote, "TCP", False),
                ):
                    _row(report, size, shoal.torch.Dataset(url, views=views, client=client), door)


def _row(report: Report, size: Size, data: shoal.torch.Dataset, door: str) -> None:
    assert len(data) == size.files
    for start in range(0, size.files, size.batch):
        data.__getitems__(range(start, start + size.batch))  # all of it is in the node from now on
    fill_bytes = data.client.node_stats()["fill_bytes"]
    places_now = itertools.cycle(range(0, size.files, size.batch))

    def batched() -> None:
        for _ in range(_TURNS):
            start = next(places_now)
            data.__getitems__(range(start, start + size.batch))

    def single() -> None:
        for _ in range(_TURNS):
            start = next(places_now)
            for number in range(start, start + size.batch):
                data[number]

    samples = _TURNS * size.batch
    pair = pairs.compare(pairs.timed(batched, samples), pairs.timed(single, samples), report.rounds(15))
    assert data.client.node_stats()["fill_bytes"] == fill_bytes, "a block was not in the node"
    report.row(
        f"{door}: batches of {size.batch} samples of {size.name}, per sample",
        pair.ours_s * 1e6, pair.reference_s * 1e6, "us",
        ratio=pair.speed, reference_name="single gets", at_least=size.at_least,
    )  # fmt: skip


_TURNS = 8
"""Batches of one side in one round: a tenth of a second, as when a loop reads on, and not the first after a pause."""
