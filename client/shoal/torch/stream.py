"""What a stream is: the order of a data set's samples in every epoch, and the digest that names it."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

from shoal.torch import subsets
from shoal.torch.state import describe
from shoal_core.order import Blocks, Order, Sequential, Shuffled

_WINDOW_BLOCKS = 16


@dataclass(frozen=True, slots=True)
class BlockShuffle:
    """`shuffle=BlockShuffle()`: blocks of neighbouring samples in shuffled order, samples shuffled within a window.

    Reads stay nearly sequential, at the price of a less thorough shuffle.
    """

    block: int | None = None
    """Samples in a block; None: as many as lie in one block of the cache (`Dataset.shuffle_block`)."""
    window: int = _WINDOW_BLOCKS
    """Blocks that are shuffled together."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Item p of epoch e follows from these, a seed and e, and from nothing else."""

    digest: str
    """All that decides which item has which position, but for the seed."""
    count: int
    shuffled: bool = False
    blocks: tuple[int, int] | None = None
    """(samples in a block, blocks in a window), for a shuffle by blocks."""

    def order(self, seed: int, epoch: int) -> Order:
        named = f"{self.digest} seed={seed} epoch={epoch}".encode()
        if not self.count or not self.shuffled:
            return Sequential(self.count)
        return Shuffled(self.count, named) if self.blocks is None else Blocks(self.count, named, *self.blocks)


def own(dataset: Any, shuffle: bool | BlockShuffle | None) -> Stream:
    """Of a loader that has the order; BadRequest names a block or window that is none."""
    count = len(dataset)
    if not isinstance(shuffle, BlockShuffle):
        return Stream(_digest(dataset, count, "full" if shuffle else "none"), count, bool(shuffle))
    block = shuffle.block or getattr(dataset, "shuffle_block", 1)
    Blocks(1, b"", block, shuffle.window)  # says now which number is wrong
    return Stream(_digest(dataset, count, f"blocks({block},{shuffle.window})"), count, True, (block, shuffle.window))


def given(dataset: Any, kind: str) -> str:
    """The digest where a sampler of that kind has the order."""
    return _digest(dataset, len(dataset) if isinstance(dataset, Sized) else 0, f"given:{kind}")


def _digest(dataset: Any, count: int, shuffle: str) -> str:
    return describe(dataset=subsets.identity(dataset), items=count, shuffle=shuffle)
