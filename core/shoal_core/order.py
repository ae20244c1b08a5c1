"""The order in which a data set of n items is gone through in one epoch: which item stands at which position.

An order depends on what names it (data set, seed, epoch, kind) and on nothing else: not on ranks, workers or time. It
is computed, not stored, in both directions: `items` says what comes, `positions` when an item's turn is, which is also
how a cache knows the next use of what it holds. Both take one int or an array of int64 (see `permutation`).

    Sequential   items as they are numbered
    Shuffled     every order of all items alike
    Blocks       blocks of neighbouring items in shuffled order, and items shuffled within a window of blocks: reads
                 stay nearly sequential, because a window's blocks are read together
"""

from __future__ import annotations

from typing import Any, Protocol

from shoal_core import permutation
from shoal_core.errors import BadRequest


class Order(Protocol):
    """A permutation of range(count)."""

    @property
    def count(self) -> int: ...
    def items(self, positions: Any) -> Any: ...
    def positions(self, items: Any) -> Any: ...


class Sequential:
    def __init__(self, count: int) -> None:
        self.count = count

    def items(self, positions: Any) -> Any:
        return positions

    def positions(self, items: Any) -> Any:
        return items


class Shuffled:
    """`name` is what tells this order from others."""

    def __init__(self, count: int, name: bytes) -> None:
        self.count = count
        self._keys = permutation.round_keys(b"items", name)

    def items(self, positions: Any) -> Any:
        return permutation.forward(positions, self.count, self._keys)

    def positions(self, items: Any) -> Any:
        return permutation.backward(items, self.count, self._keys)


class Blocks:
    """Blocks of `block` items; `window` of them are shuffled together. BadRequest unless both are at least 1.

    The last block, if it has fewer items, stands between two others, at a place drawn like all the rest, and is a
    window by itself. `ranked` below are positions without it.
    """

    def __init__(self, count: int, name: bytes, block: int, window: int) -> None:
        for field, value in (("block", block), ("window", window)):
            if value < 1:
                raise BadRequest(f"block shuffle: {field}={value} is not at least 1")
        self.count = count
        self._block = block
        self._blocks = count // block
        self._ranked = self._blocks * block
        self._window = min(window * block, max(self._ranked, 1))
        self._last = self._ranked // self._window * self._window
        """Where the last window begins, if it is smaller than the others."""
        self._short = count - self._ranked
        self._block_keys = permutation.round_keys(b"blocks", name)
        self._window_keys = permutation.round_keys(b"windows", name)
        self._short_keys = permutation.round_keys(b"short", name)
        place = int.from_bytes(b"".join(key.to_bytes(4, "little") for key in self._short_keys[:2]), "little")
        self._short_at = place % (self._blocks + 1) * block

    def items(self, positions: Any) -> Any:
        behind = positions >= self._short_at + self._short
        short = (positions >= self._short_at) & (positions < self._short_at + self._short)
        ranked = (positions - self._short * behind) * _not(short)
        moved = self._in_windows(ranked, permutation.forward)
        blocks = permutation.forward(moved // self._block, max(self._blocks, 1), self._block_keys)
        found = blocks * self._block + moved % self._block
        if not permutation.anywhere(short):
            return found
        inside = (positions - self._short_at) * short
        last = self._ranked + permutation.forward(inside, self._short, self._short_keys)
        return found * _not(short) + last * short

    def positions(self, items: Any) -> Any:
        short = items >= self._ranked
        whole = items * _not(short)
        blocks = permutation.backward(whole // self._block, max(self._blocks, 1), self._block_keys)
        ranked = self._in_windows(blocks * self._block + whole % self._block, permutation.backward)
        found = ranked + self._short * (ranked >= self._short_at)
        if not permutation.anywhere(short):
            return found
        inside = (items - self._ranked) * short
        last = self._short_at + permutation.backward(inside, self._short, self._short_keys)
        return found * _not(short) + last * short

    def _in_windows(self, ranked: Any, way: Any) -> Any:
        """Each moved within its window; the last may be smaller than the others."""
        last = ranked >= self._last
        full = ranked * _not(last)
        keys = permutation.family(self._window_keys, full // self._window, self._window)
        moved = full - full % self._window + way(full % self._window, self._window, keys)
        rest = self._ranked - self._last
        if not rest or not permutation.anywhere(last):
            return moved
        keys = permutation.family(self._window_keys, self._last // self._window, rest)
        return moved * _not(last) + (self._last + way((ranked - self._last) * last, rest, keys)) * last


def _not(flags: Any) -> Any:
    return 1 - 1 * flags
