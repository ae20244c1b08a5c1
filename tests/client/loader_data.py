"""A data set whose samples are their numbers, where spawned workers find it."""

from typing import Any

import torch


class Numbers(torch.utils.data.Dataset[Any]):
    """Samples are their numbers."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        if not 0 <= number < self.count:
            raise IndexError(number)
        return {"number": number}


def numbers(batches: Any) -> list[list[int]]:
    return [batch["number"].tolist() for batch in batches]


def flat(batches: Any) -> list[int]:
    return [number for batch in numbers(batches) for number in batch]
