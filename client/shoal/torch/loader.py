"""torch's DataLoader, with an order of its own that can be resumed exactly by any number of ranks.

It takes what `torch.utils.data.DataLoader` takes, in that order, and keywords more. torch's loader underneath does the
work: workers, collation, pinning. Ours are the indices (`feed`, `sharding`, shoal_core.order), the state (`state`), the
account of waiting (`waiting`), and telling the cache what comes next (`lookahead`).

    iter()       goes through one epoch, from where a loaded state left off, else from its beginning
    set_epoch    says which one; without it each is the next
    state_dict   what the loop has seen, in the middle of an epoch too; equal on every rank
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch.utils.data
from torch.utils.data.distributed import DistributedSampler

from shoal.torch import batches, ranks, subsets, waiting
from shoal.torch import stream as streams
from shoal.torch.epoch import Epoch
from shoal.torch.feed import Batched, Feed, GivenOrder, OwnOrder, Run, Source
from shoal.torch.lookahead import Lookahead
from shoal.torch.marks import Marks
from shoal.torch.sharding import Locality, Shard, Step, Steps
from shoal.torch.state import State, check
from shoal.torch.stream import BlockShuffle
from shoal.torch.waiting import Account, LoaderStats, Stamping
from shoal_core.errors import BadRequest
from shoal_core.order import Order


class DataLoader(torch.utils.data.DataLoader[Any]):
    """Drop-in for `torch.utils.data.DataLoader`, over any of torch's data sets.

    With torch's defaults it yields what torch yields. In addition: `shuffle=True` is the same order in every run
    (`seed`); in a distributed job every rank gets its share without a sampler; `state_dict()` and `load_state_dict()`
    resume in mid-epoch, on any number of ranks.

    seed: of the order; 0 if not given, and then a loaded state brings its own.
    rank, world_size: which share is ours. Else `process_group` says it (a ProcessGroup, or one dimension of a
        DeviceMesh: peers in the other dimensions get the same samples), else torch.distributed if it is initialized.
    global_batch_size: samples of one step over all ranks, at any number of ranks; batch_size follows from it.
    pad_last: fill the last step with samples from the epoch's beginning, and say which are real: `valid`.
    with_index: add `index` (the sample's number in the data set) and `position` (in the epoch) to every batch.
    locality: deal the samples of a step to the ranks nearest to them.

    A given `sampler` or `batch_sampler` is obeyed, and then the order and its sharding are its own. BadRequest names
    arguments that contradict each other.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | BlockShuffle | None = None,
        sampler: torch.utils.data.Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: torch.utils.data.Sampler[list[Any]] | Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: Any = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        seed: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        process_group: Any = None,
        global_batch_size: int | None = None,
        pad_last: bool = False,
        with_index: bool = False,
        locality: Locality | None = None,
    ) -> None:
        iterable = isinstance(dataset, torch.utils.data.IterableDataset)
        theirs: Any = shuffle
        steps = None
        if iterable or sampler is not None or batch_sampler is not None:
            _refuse(
                sampler, iterable, seed=seed, rank=rank, world_size=world_size, process_group=process_group,
                global_batch_size=global_batch_size, pad_last=pad_last or None, locality=locality,
            )  # fmt: skip
        else:
            shard = ranks.find(rank, world_size, process_group)
            size = _global_batch(batch_size, global_batch_size, shard)
            steps = Steps(len(dataset), size, shard, drop_last, pad_last, locality)
            theirs, batch_size = None, None if batch_size is None else steps.batch_size
        Marks.check(with_index, iterable, in_order)
        options = _not_none(in_order=None if in_order else False, prefetch_factor=prefetch_factor)
        viewed = collate_fn is None and batch_size is not None and subsets.viewed(dataset)
        super().__init__(  # of what does not go together torch says so
            dataset, batch_size, theirs, sampler, batch_sampler, num_workers,
            batches.collate if viewed else collate_fn, pin_memory, drop_last, timeout,
            batches.Keeping(worker_init_fn, prefetch_factor) if prefetch_factor else worker_init_fn,
            multiprocessing_context, generator, persistent_workers=persistent_workers,
            pin_memory_device=pin_memory_device, **options,
        )  # type: ignore[arg-type]  # fmt: skip
        self._marks = Marks(with_index, pad_last, single=self.batch_size is None and batch_sampler is None)
        self._seed_given, self._seed, self._in_order = seed is not None, seed or 0, in_order
        if steps is not None:
            own = streams.own(dataset, shuffle)
            self._take_over(OwnOrder(steps, own.order, self._seed), own.digest)
        elif not iterable:
            source = _given(self, sampler, batch_sampler)
            self._take_over(source, streams.given(dataset, source.kind))

    _lookahead: Lookahead | None = None
    _source: Source | None = None
    """None for an iterable data set, which has an order of its own."""
    _account: Account | None = None
    _run: Run | None = None
    _next: tuple[int, int] | None = 0, 0
    """(epoch, position) of the next iter(); None: the epoch after the present one."""

    def _take_over(self, source: Source, digest: str) -> None:
        """torch draws indices from `source` from now on."""
        self._source, self._digest = source, digest
        self._feed = Feed(source, self._marks.single)
        # torch forbids to set these later, for the sake of those who would expect an effect: here is one.
        self.__dict__["sampler" if self._marks.single else "batch_sampler"] = self._feed

    def __iter__(self) -> Any:
        account = Account(self.num_workers)
        asked_s = time.perf_counter()
        epoch, start = self._upcoming()
        steps: Iterator[Step] = iter(())
        if self._source is not None:
            if isinstance(self._source, OwnOrder):
                self._source.plan.check_end(start)
            steps = self._source.steps(epoch, start)
        run = Run(epoch, start, steps)
        batches = self._begun(run)
        if self._run is not None and self.persistent_workers:
            self._run.left = True
        self._account, self._run, self._next = account, run, None
        if (lookahead := self._look_ahead()) is not None:
            lookahead.begin(run)
        account.waited(asked_s)
        marks = self._marks if self._source is not None else None
        length = self._source.plan.step_count(start) if isinstance(self._source, OwnOrder) else None
        return Epoch(self, batches, run, account, marks, lookahead, length)

    def _begun(self, run: Run) -> Any:
        """torch's iterator over a run. Only while it is made do indices come from the run, and batches get a stamp: to
        libraries that take them from here, our sampler and collate_fn are like any."""
        collate = self.collate_fn
        self.collate_fn = Stamping(collate)  # type: ignore[assignment]
        if self._source is not None:
            self._feed.run = run
        try:
            return super().__iter__()
        finally:
            self.collate_fn = collate
            if self._source is not None:
                self._feed.run = None

    def _look_ahead(self) -> Lookahead | None:
        """Whoever tells the node what comes; None where the order or the data set are not ours."""
        source = self._source
        if self._lookahead is not None and not self._lookahead.ours:
            self._lookahead = None  # a forked child has none of its parent's
        if self._lookahead is None and isinstance(source, OwnOrder) and len(source):
            dataset = subsets.located(self.dataset)
            if dataset is not None:
                self._lookahead = Lookahead(dataset, source)
                weakref.finalize(self, self._lookahead.close)
        return self._lookahead

    def __getstate__(self) -> dict[str, Any]:
        """For another process, or a copy: it goes on with the epoch that would be next here."""
        here = {"_lookahead", "_account", "_run"}
        kept = {name: value for name, value in self.__dict__.items() if name not in here}
        return kept | {"_iterator": None, "_next": self._upcoming()}

    # Where the stream is

    @property
    def epoch(self) -> int:
        """The epoch that is under way; before it begins and after its end, the next one."""
        return self._upcoming()[0] if self._next or self._run is None or self._run.ended else self._run.epoch

    def set_epoch(self, epoch: int) -> None:
        """The next iter() goes through this epoch, from where a loaded state left it, if that is of the same one."""
        if not isinstance(epoch, int) or epoch < 0:  # pyright: ignore[reportUnnecessaryIsInstance] - a float, perhaps
            raise BadRequest(f"set_epoch: {epoch!r} is not a count")
        if self._next is None or self._next[0] != epoch:
            self._next = epoch, 0
        if self._source is not None:
            self._feed.set_epoch(epoch)
        if isinstance(self._source, GivenOrder | Batched):
            self._source.set_epoch(epoch)

    def order(self, epoch: int) -> Order:
        """Which sample of the data set has which position in that epoch, before any sharding."""
        if not isinstance(self._source, OwnOrder):
            raise BadRequest("order: it is the data set's or the sampler's own")
        return self._source.order(epoch)

    def state_dict(self) -> dict[str, Any]:
        """{version, digest, seed, epoch, position}: what the loop has seen so far, equal on every rank.

        Batches that workers have ready count as not seen. After the last batch, and before the loop asked once more,
        the rest of the epoch is empty; afterwards the state is the beginning of the next.
        """
        self._check_exact()
        run = self._run
        if self._next is None and run is not None and not run.ended:
            epoch, position = run.epoch, run.position
        else:
            epoch, position = self._upcoming()
        return State(self._digest, self._seed, epoch, position).as_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The next iter() goes on where that state was taken, on whatever rank of however many.

        BadRequest names what is missing, or what differs: data set, number of samples, shuffle, seed.
        """
        self._check_exact()
        count = len(self.dataset) if isinstance(self._source, OwnOrder) else None  # type: ignore[arg-type]
        found = check(state_dict, self._digest, self._seed if self._seed_given else None, count)
        self._seed, self._next = found.seed, (found.epoch, found.position)
        if isinstance(self._source, OwnOrder):
            self._source.seed = found.seed
        elif isinstance(self._source, GivenOrder | Batched):
            self._source.set_epoch(found.epoch)

    def _check_exact(self) -> None:
        if self._source is None:
            raise BadRequest("state_dict: an iterable data set keeps its own place; give a map-style one")
        if not self._in_order:
            raise BadRequest("state_dict: with in_order=False batches overtake each other, so no position is exact")

    def _upcoming(self) -> tuple[int, int]:
        epoch, position = self._next or ((self._run.epoch + 1 if self._run is not None else 0), 0)
        if isinstance(self._source, GivenOrder | Batched) and (said := self._source.epoch) is not None:
            return said, position if said == epoch else 0  # whoever has the order moves it on
        return epoch, position

    # How it went

    def stats(self) -> LoaderStats:
        """How the latest epoch went, so far."""
        return LoaderStats(0, 0, 0.0, 0.0) if self._account is None else self._account.stats()

    def why_slow(self) -> str:
        """In words, which stage holds the loop: origin, disk, network, decode, workers. Or that none does."""
        return waiting.explain(self.stats())


def _not_none(**options: Any) -> dict[str, Any]:
    """What torch is told: below 2.6 it does not know `in_order`, below 2.0 no prefetch_factor of None."""
    return {name: value for name, value in options.items() if value is not None}


def _refuse(sampler: Any, iterable: bool, **keywords: Any) -> None:
    """BadRequest when the order is somebody else's and yet ours is asked for."""
    for name, value in keywords.items():
        if value is None:
            continue
        if isinstance(sampler, DistributedSampler):
            raise BadRequest(
                f"{name}: a DistributedSampler shards already; leave it out and let the loader shard, which can be "
                f"resumed, or leave {name} out"
            )
        what = "an iterable data set" if iterable else "a given sampler"
        raise BadRequest(f"{name}: {what} has its own order and shares; leave one of the two out")


def _global_batch(batch_size: int | None, global_batch_size: int | None, shard: Shard) -> int:
    if batch_size is not None and batch_size < 1:
        raise BadRequest(f"batch_size={batch_size} is not at least 1")
    if global_batch_size is None:
        return (batch_size or 1) * shard.world_size
    per_rank = -(-global_batch_size // shard.world_size)
    if batch_size is None or (batch_size not in (1, per_rank)):
        raise BadRequest(
            f"batch_size={batch_size} on {shard.world_size} ranks is not global_batch_size={global_batch_size}; "
            "leave batch_size out, it follows"
        )
    return global_batch_size


def _given(loader: DataLoader, sampler: Any, batch_sampler: Any) -> GivenOrder | Batched:
    if batch_sampler is not None:
        return GivenOrder(batch_sampler, batches=True)
    draws = GivenOrder(sampler, batches=False)
    return draws if loader.batch_size is None else Batched(draws, loader.batch_size, loader.drop_last)
