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
from dataclasses import dataclass
from typing import Any

import torch.utils.data
from torch.utils.data.distributed import DistributedSampler

from shoal.torch import batches, ranks, waiting
from shoal.torch.dataset import Dataset
from shoal.torch.feed import Batched, Feed, GivenOrder, OwnOrder, Run, Source
from shoal.torch.lookahead import Lookahead
from shoal.torch.marks import Marks
from shoal.torch.sharding import Locality, Shard, Step, Steps
from shoal.torch.state import State, check, describe
from shoal.torch.waiting import Account, LoaderStats, Stamped, Stamping
from shoal_core.errors import BadRequest
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
        given = sampler is not None or batch_sampler is not None
        steps: Steps | None = None
        if given or iterable:
            _refuse(
                sampler, iterable, seed=seed, rank=rank, world_size=world_size, process_group=process_group,
                global_batch_size=global_batch_size, pad_last=pad_last or None, locality=locality,
            )  # fmt: skip
        else:
            shard = ranks.find(rank, world_size, process_group)
            step = _global_batch(batch_size, global_batch_size, shard)
            steps = Steps(len(dataset), step, shard, drop_last, pad_last, locality)
            batch_size = None if batch_size is None else steps.batch_size
        if with_index and (iterable or not in_order):
            raise BadRequest("with_index: an iterable data set, or in_order=False, does not say which sample is which")
        options: dict[str, Any] = {} if in_order else {"in_order": False}  # which torch below 2.6 does not know
        super().__init__(
            # Of what does not go together torch says so.
            dataset, batch_size, bool(shuffle) if given or iterable else None, sampler, batch_sampler, num_workers,
            collate_fn, pin_memory, drop_last, timeout,
            batches.Keeping(worker_init_fn, prefetch_factor) if prefetch_factor else worker_init_fn,
            multiprocessing_context, generator, prefetch_factor=prefetch_factor, persistent_workers=persistent_workers,
            pin_memory_device=pin_memory_device, **options,
        )  # type: ignore[arg-type]  # fmt: skip
        self.collate_fn = Stamping(collate_fn or _collation(self))  # type: ignore[assignment]
        self._marks = Marks(with_index, pad_last, single=self.batch_size is None and batch_sampler is None)
        self._seed_given, self._seed, self._in_order = seed is not None, seed or 0, in_order
        if not iterable:
            self._digest, order_of = _stream(dataset, "given" if given else shuffle)
            own = OwnOrder(steps, order_of, self._seed) if steps else None
            self._take_over(_given(self, sampler, batch_sampler) if own is None else own)

    _lookahead: Lookahead | None = None
    _source: Source | None = None
    """None for an iterable data set, which has an order of its own."""
    _account: Account | None = None
    _run: Run | None = None
    _next: tuple[int, int] | None = 0, 0
    """(epoch, position) of the next iter(); None: the epoch after the present one."""

    def _take_over(self, source: Source) -> None:
        """torch draws indices from `source` from now on."""
        self._source = source
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
        if self._source is not None:
            self._feed.run = run
        batches = super().__iter__()
        self._account, self._run, self._next = account, run, None
        if (lookahead := self._look_ahead()) is not None:
            lookahead.begin(run)
        account.waited(asked_s)
        return _Epoch(batches, run, account, self._marks if self._source is not None else None, lookahead)

    def _look_ahead(self) -> Lookahead | None:
        """Whoever tells the node what comes; None where the order or the data set are not ours."""
        dataset, source = self.dataset, self._source
        if self._lookahead is not None and not self._lookahead.ours:
            self._lookahead = None  # a forked child has none of its parent's
        if self._lookahead is None and isinstance(dataset, Dataset) and isinstance(source, OwnOrder) and len(source):
            self._lookahead = Lookahead(dataset, source)  # type: ignore[arg-type]  # torch's own Dataset is generic
            weakref.finalize(self, self._lookahead.close)
        return self._lookahead

    # Where the stream is

    @property
    def epoch(self) -> int:
        """The epoch that is under way; before it begins and after its end, the next one."""
        return self._upcoming()[0] if self._next or self._run is None or self._run.ended else self._run.epoch

    def set_epoch(self, epoch: int) -> None:
        """The next iter() goes through this epoch, from where a loaded state left it, if that is of the same one."""
        if epoch < 0:
            raise BadRequest(f"set_epoch: {epoch} is not a count")
        if self._next is None or self._next[0] != epoch:
            self._next = epoch, 0
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

    def _check_exact(self) -> None:
        if self._source is None:
            raise BadRequest("state_dict: an iterable data set keeps its own place; give a map-style one")
        if not self._in_order:
            raise BadRequest("state_dict: with in_order=False batches overtake each other, so no position is exact")

    def _upcoming(self) -> tuple[int, int]:
        if self._next is not None:
            return self._next
        return (self._run.epoch + 1 if self._run is not None else 0), 0

    # How it went

    def stats(self) -> LoaderStats:
        """How the latest epoch went, so far."""
        return LoaderStats(0, 0, 0.0, 0.0) if self._account is None else self._account.stats()

    def why_slow(self) -> str:
        """In words, which stage holds the loop: origin, disk, network, decode, workers. Or that none does."""
        return waiting.explain(self.stats())


class _Epoch:
    """torch's iterator of one epoch under a stop-watch. The loader does not hold it: workers end when the loop does."""

    def __init__(
        self, batches: Any, run: Run, account: Account, marks: Marks | None, lookahead: Lookahead | None
    ) -> None:
        self._batches = batches
        self._lookahead = lookahead
        self._run = run
        self._account = account
        self._marks = marks

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        asked_s = time.perf_counter()
        try:
            stamped: Stamped = next(self._batches)
        except StopIteration:
            self._run.ended = True
            self._account.waited(asked_s)
            raise
        except Exception:
            # This batch is lost; if the loop goes on after all, it is with the next.
            if self._run.drawn:
                self._run.drawn.popleft()
            raise
        if self._marks is None:
            self._account.received(None, stamped.stages)
            self._account.waited(asked_s)
            return stamped.batch
        step = self._run.taken()
        self._account.received(len(step.items), stamped.stages)
        waited_s = self._account.waited(asked_s)
        if self._lookahead is not None:
            self._lookahead.took(self._run, step, waited_s)
        return self._marks.add(stamped.batch, step)

    def __len__(self) -> int:
        return len(self._batches)


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


def _collation(loader: DataLoader) -> Any:
    """Where the user gave none: torch's own, but for views, which it does not know."""
    viewed = isinstance(loader.dataset, Dataset) and loader.dataset.views and loader.batch_size is not None
    return batches.collate if viewed else loader.collate_fn


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


def _stream(dataset: Any, shuffle: Any) -> tuple[str, Callable[[int, int], Order]]:
    """What names the stream, and its order by (seed, epoch)."""
    count = len(dataset) if hasattr(dataset, "__len__") else 0
    if isinstance(shuffle, BlockShuffle):
        block = shuffle.block or getattr(dataset, "shuffle_block", 1)
        kind = f"blocks({block},{shuffle.window})"
        Blocks(1, b"", block, shuffle.window)  # says now which number is wrong
    else:
        block, kind = 0, shuffle if isinstance(shuffle, str) else "full" if shuffle else "none"
    name = getattr(dataset, "digest", None) or f"{type(dataset).__module__}.{type(dataset).__qualname__}"
    digest = describe(dataset=name, items=count, shuffle=kind)

    def order(seed: int, epoch: int) -> Order:
        named = f"{digest} seed={seed} epoch={epoch}".encode()
        if kind == "full" and count:
            return Shuffled(count, named)
        if isinstance(shuffle, BlockShuffle) and count:
            return Blocks(count, named, block, shuffle.window)
        return Sequential(count)

    return digest, order


def _given(loader: DataLoader, sampler: Any, batch_sampler: Any) -> Source:
    if batch_sampler is not None:
        return GivenOrder(batch_sampler, batches=True)
    draws = GivenOrder(sampler, batches=False)
    return draws if loader.batch_size is None else Batched(draws, loader.batch_size, loader.drop_last)
