"""Epochs of a loader over files of 110 KB, ours and torch's own, for the benchmarks that compare them.

Both sides get the same loader arguments and deliver the same samples: {data, label, path} of each file. Workers are
persistent, so that an epoch does not count their start. What the loop does with a batch is to look at each sample once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch.utils.data

from shoal_bench.report import Report

FILE_BYTES = 110_000
BATCH = 64


class PlainFiles(torch.utils.data.Dataset[Any]):
    """Files by plain `open`."""

    def __init__(self, paths: Sequence[str], transform: Callable[[bytes], Any] | None = None) -> None:
        self._paths = list(paths)
        self._transform = transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> dict[str, Any]:
        path = self._paths[number]
        with open(path, "rb") as file:
            data = file.read()
        return {"data": data if self._transform is None else self._transform(data), "label": 0, "path": path}


def file_count(report: Report) -> int:
    """225 MB, or 113 for a look."""
    return 1024 if report.quick else 2048


def names(count: int) -> list[str]:
    """Of the files, below a data set's URL: two classes."""
    return [f"{number % 2}/{number:05}.jpg" for number in range(count)]


def write_files(folder: Path, count: int) -> list[str]:
    """Files of random bytes; their paths."""
    paths = [folder / name for name in names(count)]
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True)
    for path in paths:
        path.write_bytes(os.urandom(FILE_BYTES))
    return [str(path) for path in paths]


def loader(kind: Any, dataset: Any, workers: int, **options: Any) -> Any:
    """A loader of this class, torch's or ours, with the same arguments."""
    chosen: dict[str, Any] = {
        "batch_size": BATCH,
        "shuffle": True,
        "num_workers": workers,
        "persistent_workers": workers > 0,
    }
    return kind(dataset, **chosen | options)


def samples(batches: Iterable[Sequence[Any]], field: str = "data") -> int:
    """Go through batches that are lists of samples; how many there were."""
    count = 0
    for batch in batches:
        for sample in batch:
            count += 1 if sample[field] else 0
    return count


def lent(batches: Iterable[dict[str, Any]]) -> int:
    """Go through batches of views, taking the lease of each; how many lie in shared memory."""
    count = 0
    for batch in batches:
        for view in batch["data"]:
            count += 1 if view.zero_copy else 0
    return count
