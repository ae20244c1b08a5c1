"""How many samples of 110 KB does one node hand over in a second when nothing is copied or decoded?

`shoal.torch.DataLoader` over a data set with `views=True`, all of it in the node's memory: workers locate the samples
and send references, the training process takes a lease on each. Beside it the parts of that work, each alone in one
process, per sample: leasing, and packing and unpacking references. What remains is torch's queues and the processors'
sharing of it. `Two processes` are two ranks, each with a loader of its own and no workers.
"""

from __future__ import annotations

import pickle
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import shoal
import shoal.torch
from shoal_bench import epochs, pairs, places
from shoal_bench.report import Report
from shoal_core.limits import MIB

PER_S = 14_000.0


def run(report: Report) -> None:
    """A row for each number of workers, one for two ranks, and the parts."""
    count = epochs.file_count(report)
    with places.directory() as place, places.node(place, 512 * MIB) as node, shoal.connect(node.unix) as client:
        epochs.write_files(place / "files", count)
        url = f"file://{place}/files/"
        data = shoal.torch.Dataset(url, views=True, client=client)
        for workers in (0, 1, 2):
            loader = epochs.loader(shoal.torch.DataLoader, data, workers)
            _row(report, f"{workers} workers", _median_s(report, lambda loader=loader: epochs.lent(loader)) / count)
        _row(report, "two processes without workers", _two_ranks(report, url, node.unix))
        _parts(report, client, data)


def _row(report: Report, how: str, seconds: float) -> None:
    report.row(
        f"samples of 110 KB located and handed over as views, {how}",
        1 / seconds, PER_S, "samples/s", reference_name="wanted", at_least=1.0,
    )  # fmt: skip


def _median_s(report: Report, work: Callable[[], object]) -> float:
    side = pairs.timed(work)
    side()
    return statistics.median(side() for _ in range(report.rounds(15)))


def _parts(report: Report, client: shoal.Client, data: shoal.torch.Dataset) -> None:
    order = random.sample(range(len(data)), len(data))
    batches = [order[start : start + epochs.BATCH] for start in range(0, len(data), epochs.BATCH)]
    infos = [client.info(data.url + data.path(number)) for number in range(len(data))]
    ranges = [[(infos[number], 0, infos[number].size) for number in batch] for batch in batches]
    views = [shoal.torch.read_views(client, part) for part in ranges]
    sent = [pickle.dumps(part) for part in views]
    for name, work in (
        ("a worker finds versions, and leases", lambda: [data.__getitems__(batch) for batch in batches]),
        ("of which leases that it holds already", lambda: [shoal.torch.read_views(client, part) for part in ranges]),
        ("references are packed", lambda: [pickle.dumps(part) for part in views]),
        ("references are unpacked, and leased", lambda: [pickle.loads(part).zero_copy for part in sent]),  # noqa: S301
    ):
        report.row(f"views, per sample: {name}", _median_s(report, work) / len(data) * 1e6, None, "us")


def _two_ranks(report: Report, url: str, address: str) -> float:
    """Seconds per sample of two processes at once."""
    words = [sys.executable, "-m", "shoal_bench.loader_views", url, address, str(report.rounds(15))]
    ranks: list[Any] = [
        subprocess.Popen([*words, str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for rank in ranks:
        rank.stdout.readline()  # ready
    for rank in ranks:
        rank.stdin.write("go\n")
        rank.stdin.flush()
    rates = [float(rank.communicate(timeout=120)[0]) for rank in ranks]
    return 1 / sum(rates)


def _rank(url: str, address: str, rounds: int, rank: int) -> None:
    """One of two ranks; prints its samples per second."""
    with shoal.connect(address) as client:
        data = shoal.torch.Dataset(url, views=True, client=client)
        loader = epochs.loader(shoal.torch.DataLoader, data, 0, rank=rank, world_size=2)
        for _ in range(2):  # two epochs deal out nearly all samples to both
            epochs.lent(loader)
        print("ready", flush=True)
        sys.stdin.readline()
        side = pairs.timed(lambda: epochs.lent(loader))
        print(len(data) / 2 / statistics.median(side() for _ in range(rounds)))


if __name__ == "__main__":
    _rank(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
