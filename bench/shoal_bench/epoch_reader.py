"""Epochs of one loader in a process of its own, when it is told to: what the scripts of host libraries do, too.

usage: python -m shoal_bench.epoch_reader KIND WHERE BATCH [ADDRESS]

KIND is `plain`, torch's loader over the files below the folder WHERE, or ours over the data set at the URL WHERE, read
through the node at ADDRESS: `files`, `views` or `webdataset`. Each line on stdin is a number of workers, and one epoch
with so many is answered by `{"samples": ..., "seconds": ...}`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.utils.data

import shoal
import shoal.torch
from shoal_bench import epochs


def epoch(kind: str, where: str, batch: int, workers: int, address: str) -> Callable[[], int]:
    """Goes through one epoch; how many samples there were."""
    options: dict[str, Any] = {"batch_size": batch}
    if kind != "views":
        options["collate_fn"] = list
    if kind == "plain":
        paths = sorted(str(path) for path in Path(where).rglob("*") if path.is_file())
        loader = epochs.loader(torch.utils.data.DataLoader, epochs.PlainFiles(paths), workers, **options)
        return partial(epochs.samples, loader)
    client = shoal.connect(address)  # ends with the process
    form = "webdataset" if kind == "webdataset" else "files"
    data = shoal.torch.Dataset(where, format=form, views=kind == "views", client=client)
    loader = epochs.loader(shoal.torch.DataLoader, data, workers, **options)
    if kind == "views":
        return partial(epochs.lent, loader)
    return partial(epochs.samples, loader, "jpg" if kind == "webdataset" else "data")


def main() -> None:
    kind, where, batch, *address = sys.argv[1:]
    ready: dict[int, Callable[[], int]] = {}
    for line in sys.stdin:
        workers = int(line)
        if workers not in ready:
            ready[workers] = epoch(kind, where, int(batch), workers, address[0] if address else "")
        began_s = time.perf_counter()
        count = ready[workers]()
        print(json.dumps({"samples": count, "seconds": time.perf_counter() - began_s}), flush=True)


if __name__ == "__main__":
    main()
