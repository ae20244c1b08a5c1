"""The loader's order: who gets what, in mid-epoch, on any number of ranks, against one rank that goes through all."""

import inspect
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.utils.data import RandomSampler, SequentialSampler, TensorDataset  # noqa: E402
from torch.utils.data.distributed import DistributedSampler  # noqa: E402

from shoal import errors  # noqa: E402
from shoal.torch import BlockShuffle, DataLoader, Locality  # noqa: E402
from shoal.torch.sharding import Shard, Steps  # noqa: E402
from shoal_core.order import Sequential, Shuffled  # noqa: E402
from tests.client.loader_data import Numbers, flat, numbers  # noqa: E402

# As torch has it.


def test_the_signature_is_torchs_and_more() -> None:
    own = list(inspect.signature(DataLoader.__init__).parameters.values())
    theirs = list(inspect.signature(torch.utils.data.DataLoader.__init__).parameters.values())
    assert [(p.name, p.kind, p.default) for p in own[: len(theirs)]] == [(p.name, p.kind, p.default) for p in theirs]
    more = [p.name for p in own[len(theirs) :]]
    assert more == [
        "seed", "rank", "world_size", "process_group", "global_batch_size", "pad_last", "with_index", "locality",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_size": 3}, {"batch_size": 3, "drop_last": True}, {"batch_size": None}, {"batch_size": 20}],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_without_shuffling_it_yields_what_torch_yields(options: dict[str, Any], workers: int) -> None:
    dataset = TensorDataset(torch.arange(10), torch.arange(10) * 2)
    ours = DataLoader(dataset, num_workers=workers, **options)
    theirs = torch.utils.data.DataLoader(dataset, num_workers=workers, **options)
    assert len(ours) == len(theirs)
    assert ours.batch_size == theirs.batch_size and ours.drop_last == theirs.drop_last
    for mine, other in zip(ours, theirs, strict=True):
        assert type(mine) is type(other)
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def test_a_given_sampler_is_obeyed() -> None:
    dataset = Numbers(10)
    sampler = [7, 3, 3, 9, 0]
    assert numbers(DataLoader(dataset, 2, sampler=sampler)) == [[7, 3], [3, 9], [0]]
    assert numbers(DataLoader(dataset, 2, sampler=sampler, drop_last=True)) == [[7, 3], [3, 9]]
    assert numbers(DataLoader(dataset, batch_sampler=[[1, 2], [3], [9, 9]])) == [[1, 2], [3], [9, 9]]
    assert [sample["number"] for sample in DataLoader(dataset, None, sampler=sampler)] == sampler
    assert len(DataLoader(dataset, 2, sampler=sampler)) == 3
    batches = list(DataLoader(dataset, 2, sampler=sampler, with_index=True))
    assert [batch["index"].tolist() for batch in batches] == [[7, 3], [3, 9], [0]]
    assert [batch["position"].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    generator = torch.Generator().manual_seed(5)
    theirs = torch.utils.data.DataLoader(dataset, 4, sampler=RandomSampler(dataset, generator=generator))
    expected = numbers(theirs)
    generator = torch.Generator().manual_seed(5)
    assert numbers(DataLoader(dataset, 4, sampler=RandomSampler(dataset, generator=generator))) == expected


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"rank": 0, "world_size": 2}, "rank"),
        ({"global_batch_size": 8}, "global_batch_size"),
        ({"pad_last": True}, "pad_last"),
    ],
)
def test_a_distributed_sampler_and_our_sharding_do_not_go_together(keywords: dict[str, Any], name: str) -> None:
    sampler = DistributedSampler(Numbers(10), num_replicas=2, rank=0)
    with pytest.raises(errors.BadRequest, match=rf"{name}: a DistributedSampler shards already"):
        DataLoader(Numbers(10), sampler=sampler, **keywords)
    with pytest.raises(errors.BadRequest, match=rf"{name}: a given sampler"):
        DataLoader(Numbers(10), sampler=SequentialSampler(Numbers(10)), **keywords)
    assert flat(DataLoader(Numbers(10), 5, sampler=sampler)) == list(sampler)


class Counting(torch.utils.data.IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(7))


def test_an_iterable_data_set_keeps_its_own_order() -> None:
    loader = DataLoader(Counting(), 3)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2], [3, 4, 5], [6]]
    assert loader.stats().sample_count is None and loader.stats().batch_count == 3
    with pytest.raises(errors.BadRequest, match="iterable"):
        loader.state_dict()
    with pytest.raises(errors.BadRequest, match="rank: an iterable data set"):
        DataLoader(Counting(), rank=0, world_size=2)
    with pytest.raises(errors.BadRequest, match="with_index"):
        DataLoader(Counting(), with_index=True)


def test_torchs_own_complaints_are_kept() -> None:
    with pytest.raises(ValueError, match="mutually exclusive"):
        DataLoader(Numbers(3), shuffle=True, sampler=[1])
    with pytest.raises(ValueError, match="batch_sampler option is mutually exclusive"):
        DataLoader(Numbers(3), batch_size=2, batch_sampler=[[1]])
    with pytest.raises(ValueError, match="batch_size=0"):
        DataLoader(Numbers(3), batch_size=0)


# Epochs.


def test_every_epoch_is_another_order_and_the_same_in_every_run() -> None:
    first, second = (DataLoader(Numbers(50), 7, shuffle=True) for _ in range(2))
    epochs = [flat(first) for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [flat(second) for _ in range(3)] == epochs
    second.set_epoch(1)
    assert second.epoch == 1
    assert [flat(second), flat(second)] == epochs[1:]
    assert flat(DataLoader(Numbers(50), 7, shuffle=True, seed=1)) != epochs[0]


def test_two_iterators_at_once_do_not_disturb_each_other() -> None:
    expected = DataLoader(Numbers(20), 4, shuffle=True)
    epochs = [numbers(expected), numbers(expected)]
    loader = DataLoader(Numbers(20), 4, shuffle=True)
    first, second = iter(loader), iter(loader)  # neither has drawn anything yet
    assert [batch["number"].tolist() for batch in second] == epochs[1]
    assert [batch["number"].tolist() for batch in first] == epochs[0]


@pytest.mark.parametrize("shuffle", [False, True, BlockShuffle(4, 2)])
def test_index_and_position_tell_the_order(shuffle: Any) -> None:
    loader = DataLoader(Numbers(30), 8, shuffle=shuffle, with_index=True, num_workers=2)
    order = loader.order(0)
    seen = 0
    for batch in loader:
        assert batch["index"].tolist() == batch["number"].tolist()
        assert batch["position"].tolist() == list(range(seen, seen + len(batch["index"])))
        assert [order.items(position) for position in batch["position"].tolist()] == batch["index"].tolist()
        seen += len(batch["index"])
    assert seen == 30


def test_marks_go_to_dicts_tuples_and_nothing_else() -> None:
    tuples = DataLoader(TensorDataset(torch.arange(4)), 2, with_index=True)
    assert [[part.tolist() for part in batch] for batch in tuples] == [[[0, 1]] * 3, [[2, 3]] * 3]
    with pytest.raises(errors.BadRequest, match="of type Tensor takes no field 'index'"):
        next(iter(DataLoader(torch.arange(4), 2, with_index=True)))  # type: ignore[arg-type]
    own = [{"index": 1}, {"index": 2}]
    with pytest.raises(errors.BadRequest, match="a field 'index' of their own"):
        next(iter(DataLoader(own, 2, with_index=True)))
    single = next(iter(DataLoader(Numbers(4), None, with_index=True)))
    assert single == {"number": 0, "index": 0, "position": 0}


# Ranks.


def shares(count: int, world_size: int, **options: Any) -> list[list[list[int]]]:
    return [
        numbers(DataLoader(Numbers(count), rank=rank, world_size=world_size, **options)) for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_every_step(world_size: int) -> None:
    whole = flat(DataLoader(Numbers(30), 1, shuffle=True))
    by_rank = shares(30, world_size, batch_size=2, shuffle=True)
    steps = [
        [number for rank in by_rank if step < len(rank) for number in rank[step]] for step in range(len(by_rank[0]))
    ]
    assert [number for step in steps for number in step] == whole


def test_a_global_batch_is_the_same_at_any_world_size() -> None:
    whole = numbers(DataLoader(Numbers(40), shuffle=True, global_batch_size=12))
    for world_size in (1, 2, 3, 4, 5, 12):
        by_rank = shares(40, world_size, shuffle=True, global_batch_size=12)
        for step, batch in enumerate(whole):
            assert [number for rank in by_rank if step < len(rank) for number in rank[step]] == batch


def test_lengths_are_those_of_what_comes() -> None:
    for count in (0, 1, 7, 12, 13):
        for world_size in (1, 2, 5):
            for options in ({}, {"drop_last": True}, {"pad_last": True}):
                for rank in range(world_size):
                    loader = DataLoader(Numbers(count), 2, rank=rank, world_size=world_size, **options)
                    assert len(loader) == len(list(loader)), (count, world_size, options, rank)


def test_padding_fills_the_last_step_and_says_so() -> None:
    by_rank = [
        list(DataLoader(Numbers(5), 2, shuffle=True, rank=rank, world_size=4, pad_last=True, with_index=True))
        for rank in range(4)
    ]
    assert [len(rank) for rank in by_rank] == [1] * 4
    valid = [flag for rank in by_rank for flag in rank[0]["valid"].tolist()]
    assert valid == [True] * 5 + [False] * 3
    got = [number for rank in by_rank for number in rank[0]["number"].tolist()]
    assert sorted(got[:5]) == list(range(5)) and got[5:] == got[:3]
    assert [p for rank in by_rank for p in rank[0]["position"].tolist()] == [0, 1, 2, 3, 4, 0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 1}, "world_size is missing"),
        ({"world_size": 2}, "rank is missing"),
        ({"rank": 2, "world_size": 2}, "rank=2 is not one of world_size=2"),
        ({"rank": 0, "world_size": 0}, "world_size=0"),
        ({"rank": 0, "world_size": 3, "global_batch_size": 2}, "global_batch_size=2 is less than world_size=3"),
        ({"rank": 0, "world_size": 2, "global_batch_size": 8, "batch_size": 8}, "leave batch_size out"),
        ({"drop_last": True, "pad_last": True}, "drop_last and pad_last"),
        ({"shuffle": BlockShuffle(block=-1)}, "block=-1"),
        ({"shuffle": BlockShuffle(window=0)}, "window=0"),
        ({"with_index": True, "in_order": False, "num_workers": 1}, "in_order=False"),
    ],
)
def test_contradictions_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.BadRequest, match=message):
        DataLoader(Numbers(10), **options)


# Steps by themselves.


def test_ranks_that_wait_for_each_other_may_not_end_unequally() -> None:
    for rest in (1, 2):
        with pytest.raises(errors.BadRequest, match="drop_last=True, or pad_last=True"):
            Steps(12 + rest, 6, Shard(0, 3, together=True)).check_end(0)
    Steps(15, 6, Shard(0, 3, together=True)).check_end(0)  # one each
    Steps(13, 6, Shard(0, 3, together=True), drop_last=True).check_end(0)
    Steps(13, 6, Shard(0, 3, together=True), pad_last=True).check_end(0)
    Steps(13, 6, Shard(0, 3)).check_end(0)  # nobody waits
    with pytest.raises(errors.BadRequest, match="1 items for 3 ranks"):
        Steps(12, 6, Shard(0, 3, together=True)).check_end(5)


@given(
    count=st.integers(1, 300),
    changes=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=6),
    global_batch=st.integers(9, 40),
)
def test_any_change_of_ranks_in_mid_epoch_goes_on_with_the_same_stream(
    count: int, changes: list[tuple[int, int]], global_batch: int
) -> None:
    """`changes` are (ranks, steps until the next change); the last goes to the end."""
    order = Shuffled(count, b"any")
    start, seen = 0, []
    for number, (world_size, steps) in enumerate(changes):
        every = [
            iter(Steps(count, global_batch, Shard(rank, world_size)).iterate(order, start))
            for rank in range(world_size)
        ]
        last = number == len(changes) - 1
        while last or steps > 0:
            parts = [part for part in (next(rank, None) for rank in every) if part is not None]
            if not parts:
                break
            seen += [item for part in parts for item in part.items]
            assert len({part.stop for part in parts}) == 1
            start = parts[0].stop
            steps -= 1
    assert seen == [order.items(position) for position in range(count)]


@given(st.integers(1, 200), st.integers(1, 6), st.integers(6, 30), st.integers(0, 2**32))
def test_locality_moves_items_within_a_step_only(count: int, world_size: int, global_batch: int, seed: int) -> None:
    chance = random.Random(seed)
    homes = [chance.choice("abc") for _ in range(count)]
    locality = Locality(homes.__getitem__, [chance.choice("abc") for _ in range(world_size)])
    plain = [
        list(Steps(count, global_batch, Shard(r, world_size)).iterate(Sequential(count), 0)) for r in range(world_size)
    ]
    near = [
        list(Steps(count, global_batch, Shard(r, world_size), locality=locality).iterate(Sequential(count), 0))
        for r in range(world_size)
    ]
    assert [[len(step.items) for step in rank] for rank in near] == [
        [len(step.items) for step in rank] for rank in plain
    ]
    for step in range(max(map(len, plain))):
        before = sorted(item for rank in plain if step < len(rank) for item in rank[step].items)
        after = sorted(item for rank in near if step < len(rank) for item in rank[step].items)
        assert before == after
        for rank in near:
            if step < len(rank):
                assert list(rank[step].positions) == rank[step].items  # sequential


def test_locality_gives_to_whoever_is_near() -> None:
    locality = Locality(lambda item: "left" if item % 2 else "right", ["left", "right"])
    assert locality.assign([1, 2, 3, 4], [2, 2]) == [[0, 2], [1, 3]]
    assert locality.assign([1, 3, 5, 7], [2, 2]) == [[0, 1], [2, 3]]
    assert Locality(lambda item: "nowhere", ["left", "right"]).assign([1, 2, 3], [2, 1]) == [[0, 1], [2]]
    with pytest.raises(errors.BadRequest, match="rank_homes names 2 ranks, world_size is 3"):
        locality.assign([1, 2, 3], [1, 1, 1])
