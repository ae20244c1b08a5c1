"""A data set as a stream, for training loops that expect torch's IterableDataset.

Samples come in the data set's order or a given one, read a batch at a time. Of W workers, number w reads the batches w,
w + W, ...: torch's loader takes from its workers in turn, so with the same batch size it yields the same order however
many there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any

import torch.utils.data

from shoal_core.errors import BadRequest

if TYPE_CHECKING:
    from shoal.torch.dataset import Dataset


class IterableSamples(torch.utils.data.IterableDataset[Any]):
    """Made by `Dataset.iterable`. May be gone through any number of times, if its order may."""

    def __init__(self, dataset: Dataset, batch_size: int, order: Iterable[int] | None) -> None:
        if batch_size < 1:
            raise BadRequest(f"batch_size: {batch_size} is not above 0")
        self.dataset = dataset
        self.batch_size = batch_size
        self.order: Iterable[int] = range(len(dataset)) if order is None else order

    def __iter__(self) -> Iterator[Any]:
        worker: Any = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        numbers = iter(self.order)
        for count in itertools.count():
            batch = list(itertools.islice(numbers, self.batch_size))
            if not batch:
                return
            if count % step == first:
                yield from self.dataset.__getitems__(batch)

    def __len__(self) -> int:
        """TypeError where the order does not tell its length."""
        if not isinstance(self.order, Sized):
            raise TypeError(f"the order of {self.dataset!r} is a stream of unknown length")
        return len(self.order)
