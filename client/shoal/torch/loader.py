"""torch's DataLoader, unchanged, with an account of how long the training loop waited for it.

The first form: a batch of a `shoal.torch.Dataset` is one request, sharding over ranks is done by the sampler that you
give (torch's DistributedSampler), and there is no `state_dict` yet. The full loader, which shards and resumes exactly,
will keep this signature.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch.utils.data


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """The latest epoch, so far if it is still going on."""

    batch_count: int
    sample_count: int | None
    """None where torch does not tell: batches of a sampler of your own, or an iterable data set."""
    wait_s: float
    """Spent inside the loader: reading and, without workers, decoding and collating too. Starting workers counts."""
    elapsed_s: float
    """From the start of the epoch to its latest batch, or to its end."""

    @property
    def samples_per_s(self) -> float | None:
        return None if self.sample_count is None or not self.elapsed_s else self.sample_count / self.elapsed_s


@dataclass(slots=True)
class _Account:
    begun_s: float
    batch_count: int = 0
    wait_s: float = 0.0
    latest_s: float = 0.0


class DataLoader(torch.utils.data.DataLoader[Any]):
    """Takes what `torch.utils.data.DataLoader` takes and yields what it yields; `stats()` tells about the waiting."""

    _account: _Account | None = None

    def __iter__(self) -> Any:
        begun_s = time.perf_counter()
        self._account = _Account(begun_s, latest_s=begun_s)
        return _Timed(super().__iter__(), self._account)

    def stats(self) -> LoaderStats:
        """How the latest epoch went."""
        account = self._account
        if account is None:
            return LoaderStats(0, 0, 0.0, 0.0)
        samples = self._sample_count(account.batch_count)
        return LoaderStats(account.batch_count, samples, account.wait_s, account.latest_s - account.begun_s)

    def _sample_count(self, batch_count: int) -> int | None:
        if isinstance(self.dataset, torch.utils.data.IterableDataset):
            return None
        if self.batch_size is None:
            return batch_count if self.batch_sampler is None else None
        # torch's own batches are full, except perhaps the last.
        full = batch_count * self.batch_size
        return min(full, len(self.sampler)) if isinstance(self.sampler, Sized) else full


class _Timed:
    """torch's iterator of one epoch under a stop-watch. The loader does not hold it: workers end when the loop does."""

    def __init__(self, batches: Any, account: _Account) -> None:
        self._batches = batches
        self._account = account
        account.wait_s += time.perf_counter() - account.begun_s

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        account, asked_s = self._account, time.perf_counter()
        try:
            batch = next(self._batches)
            account.batch_count += 1
            return batch
        finally:
            account.latest_s = time.perf_counter()
            account.wait_s += account.latest_s - asked_s

    def __len__(self) -> int:
        return len(self._batches)
