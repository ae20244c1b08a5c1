"""What torch's loader draws its indices from, and what is remembered of each draw until its batch arrives.

A run is one epoch that is being gone through. The feed hands torch the items of one step after another, well ahead of
the batches when there are workers; the run keeps each step, in order, until the loop takes its batch, and only then has
the position moved on. So the state is what the loop has seen, however far workers are ahead.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch.utils.data

from shoal.torch.sharding import Step, Steps
from shoal_core.order import Order


class Source(Protocol):
    """Steps of one epoch, from a position on."""

    @property
    def drop_last(self) -> bool: ...
    @property
    def batch_size(self) -> int | None:
        """Items of a full step of ours; None where only whoever draws them knows."""
        ...

    def steps(self, epoch: int, start: int) -> Iterator[Step]: ...
    def __len__(self) -> int:
        """Steps of a whole epoch."""
        ...


class Run:
    """One epoch under way."""

    __slots__ = ("drawn", "ended", "epoch", "left", "position", "start", "steps")

    def __init__(self, epoch: int, start: int, steps: Iterator[Step]) -> None:
        self.epoch = epoch
        self.start = self.position = start
        """Where the next step that the loop has not seen begins."""
        self.ended = False
        self.left = False
        """torch's only iterator goes through another run by now."""
        self.steps = steps
        self.drawn: deque[Step] = deque()

    def lost(self, count: int) -> None:
        """So many batches ended in an error: if the loop goes on after all, it is with the next."""
        for _ in range(min(count, len(self.drawn))):
            self.drawn.popleft()

    def taken(self) -> Step:
        """The step whose batch the loop takes now."""
        step = self.drawn.popleft()
        self.position = step.stop
        return step


class Feed(torch.utils.data.Sampler[Any]):
    """Stands where torch expects a batch sampler; with `single`, where it expects a sampler.

    A loader draws from the run that it has just begun. To anybody else, a library that makes a loader of its own of
    this one's parts for instance, it is a sampler like any: one epoch after the other, or as `set_epoch` says.
    """

    def __init__(self, source: Source, single: bool) -> None:
        self._source = source
        self._single = single
        self.run: Run | None = None
        """While the loader makes its iterator."""
        self.epoch = 0
        """The next one, for others."""

    @property
    def batch_size(self) -> int | None:
        return self._source.batch_size

    @property
    def drop_last(self) -> bool:
        return self._source.drop_last

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        # No generator itself: torch may ask for the first index much later, when another run has begun.
        run = self.run
        if run is None:
            steps = self._source.steps(self.epoch, 0)
            self.epoch += 1
            return (step.items[0] if self._single else step.items for step in steps)
        return self._draw(run)

    def _draw(self, run: Run) -> Iterator[Any]:
        for step in run.steps:
            run.drawn.append(step)
            yield step.items[0] if self._single else step.items

    def __len__(self) -> int:
        return len(self._source)


class OwnOrder:
    """Shoal's own order, cut into steps."""

    def __init__(self, plan: Steps, order_of: Callable[[int, int], Order], seed: int) -> None:
        self.plan = plan
        self.seed = seed
        """A loaded state may bring another."""
        self._order_of = order_of

    @property
    def batch_size(self) -> int:
        return self.plan.batch_size

    @property
    def drop_last(self) -> bool:
        return self.plan.drop_last

    def order(self, epoch: int) -> Order:
        return self._order_of(self.seed, epoch)

    def steps(self, epoch: int, start: int) -> Iterator[Step]:
        return self.plan.iterate(self.order(epoch), start)

    def __len__(self) -> int:
        return self.plan.step_count()


class GivenOrder:
    """The order of a sampler that the user gave; a position counts what was drawn from it.

    Which epoch that is, the sampler says itself if it knows, as torch's DistributedSampler does; nobody but the user
    moves it on. After a resume what was delivered is skipped: exact as far as the sampler repeats itself.
    """

    drop_last = False

    def __init__(self, sampler: Iterable[Any], batches: bool) -> None:
        self._sampler = sampler
        self._batches = batches
        """The sampler yields lists of items, and a position counts lists."""

    @property
    def batch_size(self) -> int | None:
        return getattr(self._sampler, "batch_size", None) if self._batches else 1

    @property
    def kind(self) -> str:
        """For the digest of a stream: a position of one kind means nothing in another."""
        size = f"({self.batch_size})" if self._batches else ""
        return f"{type(self._sampler).__qualname__}{'.lists' if self._batches else ''}{size}"

    @property
    def epoch(self) -> int | None:
        """The one that the sampler says it is at."""
        found = getattr(self._keeper, "epoch", None)
        return found if isinstance(found, int) else None

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self._keeper, "set_epoch"):
            self._keeper.set_epoch(epoch)

    @property
    def _keeper(self) -> Any:
        """The sampler, or the one inside it, that has epochs."""
        return self._sampler if hasattr(self._sampler, "set_epoch") else getattr(self._sampler, "sampler", None)

    def steps(self, epoch: int, start: int) -> Iterator[Step]:
        position = start
        for drawn in itertools.islice(self._sampler, start, None):
            items = list(drawn) if self._batches else [drawn]
            position += 1
            yield Step(items, [position - 1] * len(items), [True] * len(items), position)

    def __len__(self) -> int:
        return len(self._sampler)  # type: ignore[arg-type]


class Batched:
    """Single draws, `batch_size` at a time."""

    def __init__(self, source: GivenOrder, batch_size: int, drop_last: bool) -> None:
        self._source = source
        self.batch_size = batch_size
        self.drop_last = drop_last

    @property
    def kind(self) -> str:
        return self._source.kind

    @property
    def epoch(self) -> int | None:
        return self._source.epoch

    def steps(self, epoch: int, start: int) -> Iterator[Step]:
        draws = self._source.steps(epoch, start)
        while parts := list(itertools.islice(draws, self.batch_size)):
            if len(parts) == self.batch_size or not self.drop_last:
                yield Step(
                    [item for part in parts for item in part.items],
                    [position for part in parts for position in part.positions],
                    [True] * len(parts),
                    parts[-1].stop,
                )

    def set_epoch(self, epoch: int) -> None:
        self._source.set_epoch(epoch)

    def __len__(self) -> int:
        count = len(self._source)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)
