"""The loader's state in mid-epoch, on any number of ranks, against one rank that goes through all; and its account."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.utils.data.distributed import DistributedSampler  # noqa: E402

from shoal import errors  # noqa: E402
from shoal.torch import BlockShuffle, DataLoader  # noqa: E402
from shoal.torch.waiting import LoaderStats, Stages, explain  # noqa: E402
from tests.client.loader_data import Numbers, flat, numbers  # noqa: E402


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 120),
    worlds=st.lists(st.integers(1, 8), min_size=2, max_size=5),
    stops=st.lists(st.integers(0, 6), min_size=5, max_size=5),
    shuffle=st.sampled_from([False, True, BlockShuffle(5, 2)]),
    seed=st.integers(0, 5),
)
def test_elastic_resume_through_the_loader(
    count: int, worlds: list[int], stops: list[int], shuffle: Any, seed: int
) -> None:
    """Two epochs, with the number of ranks changed again and again, are the one-rank run's, sample by sample."""
    options: dict[str, Any] = {"shuffle": shuffle, "global_batch_size": 8}
    alone = DataLoader(Numbers(count), seed=seed, **options)
    expected = [number for _ in range(2) for number in flat(alone)]
    seen: list[int] = []
    state = DataLoader(Numbers(count), seed=seed, **options).state_dict()
    turn = 0
    while state["epoch"] < 2:
        world_size = worlds[turn % len(worlds)]
        loaders = [
            DataLoader(Numbers(count), rank=rank, world_size=world_size, **options) for rank in range(world_size)
        ]
        for loader in loaders:
            loader.load_state_dict(state)
        runs = [iter(loader) for loader in loaders]
        # At least one step, so that it ends.
        for _ in range(1 + stops[turn % len(stops)]):
            batches = [next(run, None) for run in runs]
            seen += [number for batch in batches if batch is not None for number in batch["number"].tolist()]
            if batches[0] is None and all(batch is None for batch in batches):
                break
        # Ranks without a part in the last step end an epoch earlier; the others have seen it to its end.
        state = max((loader.state_dict() for loader in loaders), key=lambda one: (one["epoch"], one["position"]))
        turn += 1
    assert seen == expected


def test_eight_ranks_then_six_then_twelve() -> None:
    expected = flat(DataLoader(Numbers(500), 1, shuffle=True))
    seen: list[int] = []
    state = DataLoader(Numbers(500), shuffle=True).state_dict()
    for world_size, steps in ((8, 5), (6, 4), (12, 100)):
        options = {"global_batch_size": 24, "shuffle": True, "world_size": world_size}
        loaders = [DataLoader(Numbers(500), rank=rank, **options) for rank in range(world_size)]
        for loader in loaders:
            loader.load_state_dict(state)
        runs = [iter(loader) for loader in loaders]
        for _ in range(steps):
            seen += [number for run in runs for number in next(run, {"number": torch.tensor([])})["number"].tolist()]
        state = loaders[0].state_dict()
    assert seen == expected


def test_states_are_equal_on_every_rank() -> None:
    loaders = [DataLoader(Numbers(64), 4, shuffle=True, rank=rank, world_size=4) for rank in range(4)]
    runs = [iter(loader) for loader in loaders]
    for _ in range(4):
        for run in runs:
            next(run)
        states = [loader.state_dict() for loader in loaders]
        assert states == [states[0]] * 4
    assert states[0] == {
        "version": 1,
        "digest": "dataset=tests.client.loader_data.Numbers items=64 shuffle=full",
        "seed": 0,
        "epoch": 0,
        "position": 64,
    }
    assert [next(run, None) for run in runs] == [None] * 4
    assert [(s["epoch"], s["position"]) for s in (loader.state_dict() for loader in loaders)] == [(1, 0)] * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_what_workers_have_ready_is_not_seen_yet(workers: int) -> None:
    loader = DataLoader(Numbers(40), 4, shuffle=True, num_workers=workers)
    run = iter(loader)
    seen = [number for _ in range(3) for number in next(run)["number"].tolist()]
    state = loader.state_dict()
    assert state["position"] == 12
    resumed = DataLoader(Numbers(40), 4, shuffle=True, num_workers=workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    rest = flat(resumed)
    assert seen + rest == flat(DataLoader(Numbers(40), 4, shuffle=True))
    following = DataLoader(Numbers(40), 4, shuffle=True)
    following.set_epoch(1)
    assert flat(resumed) == flat(following)


def test_set_epoch_keeps_a_resumed_position_of_the_same_epoch() -> None:
    loader = DataLoader(Numbers(20), 4, shuffle=True)
    loader.set_epoch(3)
    run = iter(loader)
    next(run)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (3, 4)
    for epoch, count in ((3, 16), (4, 20)):
        resumed = DataLoader(Numbers(20), 4, shuffle=True)
        resumed.load_state_dict(state)
        resumed.set_epoch(epoch)
        assert len(flat(resumed)) == count
    with pytest.raises(errors.BadRequest, match="set_epoch"):
        loader.set_epoch(-1)


def test_after_the_last_batch_the_rest_is_empty_and_then_the_next_epoch() -> None:
    loader = DataLoader(Numbers(8), 4)
    run = iter(loader)
    next(run), next(run)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (0, 8)
    resumed = DataLoader(Numbers(8), 4)
    resumed.load_state_dict(state)
    assert flat(resumed) == []
    assert resumed.epoch == 1
    assert flat(resumed) == list(range(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version=2"),
        ({"position": 11}, "position=11 is beyond the 10 items"),
        ({"position": -1}, "position=-1 is not a count"),
        ({"epoch": "0"}, "epoch='0' is not a count"),
        ({"seed": 4}, "seed=3 here, but seed=4"),
        ({"digest": "dataset=other items=10 shuffle=full"}, "dataset: .*Numbers here, other in the state"),
    ],
)
def test_a_state_of_another_stream_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    loader = DataLoader(Numbers(10), shuffle=True, seed=3)
    with pytest.raises(errors.BadRequest, match=message):
        loader.load_state_dict(loader.state_dict() | change)


def test_missing_keys_and_other_options_are_named() -> None:
    loader = DataLoader(Numbers(10), shuffle=True)
    state = loader.state_dict()
    for name in state:
        with pytest.raises(errors.BadRequest, match=f"{name} is missing"):
            loader.load_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(errors.BadRequest, match="shuffle: none here, full in the state"):
        DataLoader(Numbers(10)).load_state_dict(state)
    with pytest.raises(errors.BadRequest, match="items: 11 here, 10 in the state"):
        DataLoader(Numbers(11), shuffle=True).load_state_dict(state)
    with pytest.raises(errors.BadRequest, match=r"shuffle: blocks\(1,2\) here"):
        DataLoader(Numbers(10), shuffle=BlockShuffle(window=2)).load_state_dict(state)
    with pytest.raises(errors.BadRequest, match="in_order=False"):
        DataLoader(Numbers(10), in_order=False).state_dict()


def test_a_saved_seed_goes_on() -> None:
    first = DataLoader(Numbers(30), 5, shuffle=True, seed=9)
    run = iter(first)
    seen = next(run)["number"].tolist()
    second = DataLoader(Numbers(30), 5, shuffle=True)
    second.load_state_dict(first.state_dict())
    assert seen + flat(second) == flat(DataLoader(Numbers(30), 5, shuffle=True, seed=9))


def test_a_given_sampler_resumes_by_skipping() -> None:
    dataset = Numbers(20)

    def loader() -> DataLoader:
        return DataLoader(dataset, 3, sampler=DistributedSampler(dataset, num_replicas=2, rank=1, seed=4))

    whole = loader()
    whole.set_epoch(2)
    expected = numbers(whole)
    first = loader()
    first.set_epoch(2)
    run = iter(first)
    seen = [next(run)["number"].tolist(), next(run)["number"].tolist()]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert seen + numbers(second) == expected
    batches = DataLoader(dataset, batch_sampler=[[1], [2, 3], [4]])
    run = iter(batches)
    next(run)
    again = DataLoader(dataset, batch_sampler=[[1], [2, 3], [4]])
    again.load_state_dict(batches.state_dict())
    assert numbers(again) == [[2, 3], [4]]


# Waiting.


def test_stats_and_words() -> None:
    loader = DataLoader(Numbers(10), 4)
    assert loader.why_slow() == "No batch has been read yet."
    flat(loader)
    stats = loader.stats()
    assert (stats.batch_count, stats.sample_count) == (3, 10)
    assert 0 < stats.first_wait_s <= stats.wait_s <= stats.elapsed_s
    assert 0 < stats.wait_share <= 1 and stats.wait_s_per_step == stats.wait_s / 3


@pytest.mark.parametrize(
    ("stages", "workers", "words"),
    [
        (Stages(read_s=8, decode_s=1, blocks={"origin": 90, "shared memory": 10}), 1, "(origin)"),
        (Stages(read_s=8, decode_s=1, blocks={"disk": 90, "shared memory": 10}), 1, "(disk)"),
        (Stages(read_s=8, decode_s=1, blocks={"tcp": 90}), 1, "(network)"),
        (Stages(read_s=8, decode_s=1, blocks={"shared memory": 90}), 1, "came out of memory"),
        (Stages(read_s=1, decode_s=18, blocks={"origin": 90}), 2, "Decoding holds it"),
        (Stages(collate_s=9, decode_s=1), 1, "collate_fn took"),
        (Stages(read_s=1, decode_s=1), 2, "handing batches over holds the loop"),
        (Stages(decode_s=5), 0, "num_workers, none now"),
    ],
)
def test_the_stage_that_holds_the_loop_is_named(stages: Stages, workers: int, words: str) -> None:
    stats = LoaderStats(100, 3200, 5.0, 10.0, 0.1, 0.2, workers, stages)
    assert explain(stats).startswith("The loop waited for data 50% of the time (5.00 of 10.00 s). ")
    assert words in explain(stats)


def test_a_loop_that_does_not_wait_and_one_that_waits_at_the_start_only() -> None:
    assert "does not wait" in explain(LoaderStats(100, 3200, 0.1, 10.0, 0.1, 0.0, 2, Stages(decode_s=20)))
    assert "before the first batch" in explain(LoaderStats(100, 3200, 3.0, 10.0, 2.9, 0.1, 2, Stages(decode_s=20)))


SMALL: list[Any] = [
    torch.arange(6).view(2, 3), torch.arange(6).view(2, 3).t(), torch.zeros(0, 4), torch.tensor(True),
    torch.tensor(1.5), torch.tensor([1 + 2j]), torch.arange(10_000), torch.ones(3, dtype=torch.bfloat16),
    torch.ones(2, requires_grad=True), "text", None, [torch.arange(3)],
]  # fmt: skip


def same(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor):
        return type(one) is type(other) and str(one) == str(other)
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


@pytest.mark.parametrize("kind", [list, dict])
def test_batches_cross_from_workers_as_they_are(kind: type) -> None:
    made = SMALL if kind is list else {str(number): value for number, value in enumerate(SMALL)}
    (arrived,) = DataLoader([0], num_workers=1, multiprocessing_context="fork", collate_fn=lambda _: made)
    assert type(arrived) is kind
    values = arrived if kind is list else list(arrived.values())
    assert all(same(value, expected) for value, expected in zip(values, SMALL, strict=True))
    values[0][0, 0] = 7  # writable
