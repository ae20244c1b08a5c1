"""What a data set of tokens must yield, computed from the tokens themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def windows(dataset: Any) -> list[list[int]]:
    """The tokens of every sample, read as one batch."""
    return [sample["tokens"].tolist() for sample in dataset.__getitems__(range(len(dataset)))]


def expected_windows(everything: Sequence[int], length: int) -> list[list[int]]:
    """Windows of `length` + 1, neighbours sharing one."""
    return [list(everything[begin : begin + length + 1]) for begin in range(0, len(everything) - length, length)]


def positions_of(documents: Sequence[Sequence[int]]) -> list[int]:
    """Of each token in its document."""
    return [position for document in documents for position in range(len(document))]
