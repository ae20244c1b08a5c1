"""Who gets what: a stream of positions cut into steps, and each step into the shares of its ranks. Pure.

The stream is defined without ranks: position p of epoch e holds one item, whoever reads it. A step takes the next
`global_batch` positions, and rank r of W the r-th contiguous slice of them. So one number, the position where the next
step begins, is the whole state, equal on every rank; another number of ranks goes on from it without loss or repeat.
With a `Locality` the items of a step are dealt to its ranks otherwise, but stay in that step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from shoal_core.errors import BadRequest

if TYPE_CHECKING:
    from shoal_core.order import Order

_ASKED_AT_ONCE = 4096
"""Items that an order is asked for at once: it is slow by calls rather than by items, and workers want the processors
that its calls take."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of every step is ours."""

    rank: int = 0
    world_size: int = 1
    together: bool = False
    """The ranks wait for each other in every step (a process group), so all must have as many steps."""

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise BadRequest(f"world_size={self.world_size} is not at least 1")
        if not 0 <= self.rank < self.world_size:
            raise BadRequest(f"rank={self.rank} is not one of world_size={self.world_size} ranks")


@dataclass(frozen=True, slots=True)
class Locality:
    """Deals the items of one step to the ranks that are nearest to them. Every rank computes the same, without talking.

    A rank gets as many items as without it. Those near to it come first, in their order; what nobody is near to, or
    what exceeds a rank's share, goes to whoever has room, lowest rank first.
    """

    home_of: Callable[[int], Hashable]
    """Where an item is near; the same answer on every rank."""
    rank_homes: Sequence[Hashable]
    """Where each rank is."""

    def assign(self, items: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
        """For each rank the places in `items` that it gets, ascending, `counts[rank]` of them."""
        if len(self.rank_homes) != len(counts):
            raise BadRequest(f"locality: rank_homes names {len(self.rank_homes)} ranks, world_size is {len(counts)}")
        near: dict[Hashable, list[int]] = {}
        for rank, home in enumerate(self.rank_homes):
            near.setdefault(home, []).append(rank)
        given: list[list[int]] = [[] for _ in counts]
        rest: list[int] = []
        for place, item in enumerate(items):
            ranks = [rank for rank in near.get(self.home_of(item), ()) if len(given[rank]) < counts[rank]]
            if ranks:
                given[min(ranks, key=lambda rank: len(given[rank]))].append(place)
            else:
                rest.append(place)
        for rank, count in enumerate(counts):
            room = count - len(given[rank])
            given[rank] = sorted(given[rank] + rest[:room])
            rest = rest[room:]
        return given


class Step(NamedTuple):
    """What one rank gets of one step."""

    items: list[int]
    positions: list[int]
    valid: list[bool]
    """False for what pads the last step."""
    stop: int
    """Where the next step begins."""


@dataclass(frozen=True, slots=True)
class Steps:
    """How an epoch of `count` positions is cut."""

    count: int
    global_batch: int
    shard: Shard
    drop_last: bool = False
    pad_last: bool = False
    locality: Locality | None = None

    def __post_init__(self) -> None:
        if self.global_batch < self.shard.world_size:
            raise BadRequest(
                f"global_batch_size={self.global_batch} is less than world_size={self.shard.world_size}: "
                "some rank would get nothing"
            )
        if self.drop_last and self.pad_last:
            raise BadRequest("drop_last and pad_last: one of them")

    def share(self, size: int, rank: int) -> tuple[int, int]:
        """Where a rank's slice of a step of `size` positions begins and ends."""
        world_size = self.shard.world_size
        return size * rank // world_size, size * (rank + 1) // world_size

    @property
    def batch_size(self) -> int:
        """Items of ours in a full step."""
        first, last = self.share(self.global_batch, self.shard.rank)
        return last - first

    def step_count(self, start: int = 0) -> int:
        """Steps from `start` on in which this rank has an item."""
        full, rest = divmod(max(0, self.count - start), self.global_batch)
        if not rest or self.drop_last:
            return full
        first, last = self.share(rest, self.shard.rank)
        return full + (self.pad_last or last > first)

    def check_end(self, start: int) -> None:
        """BadRequest when ranks that wait for each other would end at different steps."""
        rest = max(0, self.count - start) % self.global_batch
        if self.shard.together and 0 < rest < self.shard.world_size and not (self.drop_last or self.pad_last):
            raise BadRequest(
                f"the last step of this epoch has {rest} items for {self.shard.world_size} ranks: some would end a "
                "step before the others, who would wait for them; use drop_last=True, or pad_last=True (mask 'valid')"
            )

    def iterate(self, order: Order, start: int) -> Iterator[Step]:
        """Our part of every step from `start` on, as far as we have one."""
        while steps := self._bounds(start):
            yield from (step for step in self._parts(order, steps) if step.items)
            start = steps[-1][0] + self.global_batch

    def _bounds(self, start: int) -> list[tuple[int, int]]:
        """(begin, size) of the next steps: some at a time, because an order is slow by calls rather than by items."""
        steps: list[tuple[int, int]] = []
        wanted = max(1, _ASKED_AT_ONCE // (self.global_batch if self.locality else max(1, self.batch_size)))
        for begin in range(start, min(self.count, start + wanted * self.global_batch), self.global_batch):
            whole = self.count - begin >= self.global_batch
            if whole or not self.drop_last:
                steps.append((begin, self.global_batch if whole or self.pad_last else self.count - begin))
        return steps

    def _parts(self, order: Order, steps: Sequence[tuple[int, int]]) -> Iterator[Step]:
        ranges: list[tuple[int, int]] = []
        for begin, size in steps:
            first, last = (0, size) if self.locality else self.share(size, self.shard.rank)
            ranges.append((begin + first, begin + last))
        # What pads the end is the beginning of the epoch once more, as often as it takes.
        asked = torch.cat([torch.arange(first, last) for first, last in ranges]) % self.count
        every: list[int] = order.items(asked).tolist()
        at = 0
        for (begin, size), (first, last) in zip(steps, ranges, strict=True):
            items, at = every[at : at + last - first], at + last - first
            places: Sequence[int] = range(first, last)
            if self.locality:
                shares = (self.share(size, rank) for rank in range(self.shard.world_size))
                mine = self.locality.assign(items, [end - start for start, end in shares])[self.shard.rank]
                items, places = [items[place] for place in mine], [places[place] for place in mine]
            stop = min(begin + size, self.count)
            if last <= self.count:
                yield Step(items, list(places), [True] * len(items), stop)
            else:
                valid = [place < self.count for place in places]
                yield Step(items, [place % self.count for place in places], valid, stop)
