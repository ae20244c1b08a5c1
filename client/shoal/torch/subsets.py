"""What torch's wrappers make of a data set: what names their samples, and where those lie.

A `Subset` of a Shoal data set, which is what `random_split` makes, is read like the whole: torch hands it on with a
batch's numbers, and whoever asks here gets the same answers for the numbers in the subset.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch.utils.data

from shoal.torch.dataset import Dataset

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.torch.formats.interface import Place


class Located(Protocol):
    """Samples that lie in a cache: see `Dataset`."""

    @property
    def client(self) -> Client: ...
    def places(self, numbers: Sequence[int]) -> list[list[Place]]: ...
    def shares(self, number: int) -> range: ...


class _Part:
    """A `Located`."""

    def __init__(self, whole: Located, numbers: Sequence[int]) -> None:
        self._whole = whole
        self._numbers = numbers

    @property
    def client(self) -> Client:
        return self._whole.client

    def places(self, numbers: Sequence[int]) -> list[list[Place]]:
        return self._whole.places([self._numbers[number] for number in numbers])

    def shares(self, number: int) -> range:
        """Itself alone: who else is in the subset would have to be looked for. So where samples share a block, its
        next use is told later than it is, until that comes near."""
        return range(number, number + 1)


def located(dataset: Any) -> Located | None:
    """Whom to ask where samples lie; None for a data set that is not ours, whatever wraps it."""
    if isinstance(dataset, Dataset):
        return dataset
    if isinstance(dataset, torch.utils.data.Subset) and (whole := located(dataset.dataset)) is not None:
        return _Part(whole, dataset.indices)
    return None


def viewed(dataset: Any) -> bool:
    """Whether its batches are `Views`."""
    while isinstance(dataset, torch.utils.data.Subset):
        dataset = dataset.dataset
    return isinstance(dataset, Dataset) and dataset.views


def identity(dataset: Any) -> str:
    """Names what its numbers mean, as far as that can be known: ours and Hugging Face's say it, of others the class."""
    for name in ("digest", "_fingerprint"):
        if isinstance(found := getattr(dataset, name, None), str):
            return found
    kind = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
    if isinstance(dataset, torch.utils.data.Subset):
        return f"{kind}({identity(dataset.dataset)},{_digest(dataset.indices)})"
    if isinstance(dataset, torch.utils.data.ConcatDataset):
        parts: list[Any] = dataset.datasets
        return f"{kind}({','.join(f'{identity(part)}:{len(part)}' for part in parts)})"
    return kind


def _digest(numbers: Sequence[int]) -> str:
    return hashlib.blake2b(array("q", map(int, numbers)), digest_size=8).hexdigest()
