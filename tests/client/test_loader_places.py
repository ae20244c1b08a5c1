"""Through the loader: samples near their ranks, states in real checkpoints, and workers that outlive an epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import torch.distributed.checkpoint as dcp  # noqa: E402

from shoal import errors  # noqa: E402
from shoal.torch import BlockShuffle, DataLoader, Locality  # noqa: E402
from tests.client.loader_data import Numbers, flat  # noqa: E402

COUNT, GLOBAL_BATCH = 100, 12
"""The last step has 4 samples."""

SHUFFLES = [False, True, BlockShuffle(5, 2)]


def home_of(number: int) -> str:
    """Very unequal: 'a' has more than its share, 'd' is nobody's."""
    return "aaaabbcd"[number % 8]


RANK_HOMES = {1: "a", 2: "ab", 3: "abc", 4: "aabc", 5: "cabca"}

Shares = list[list[int]]
"""What each rank got of one step."""


def ranks(shuffle: Any, world_size: int, *, near: bool, seed: int = 0, state: Any = None) -> list[DataLoader]:
    locality = Locality(home_of, RANK_HOMES[world_size]) if near else None
    loaders = [
        DataLoader(
            Numbers(COUNT), shuffle=shuffle, seed=seed, rank=rank, world_size=world_size,
            global_batch_size=GLOBAL_BATCH, locality=locality, with_index=True,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    for loader in loaders:
        if state is not None:
            loader.load_state_dict(state)
    return loaders


def steps_of(loaders: list[DataLoader], count: int | None = None) -> list[Shares]:
    """So many steps, or all that are left; every index is the sample's number and lies at its position."""
    runs, order, steps = [iter(loader) for loader in loaders], loaders[0].order(0), list[Shares]()
    while count is None or len(steps) < count:
        batches = [next(run, None) for run in runs]
        if not any(batches):
            break
        for batch in filter(None, batches):
            assert batch["index"].tolist() == batch["number"].tolist()
            assert [order.items(position) for position in batch["position"].tolist()] == batch["number"].tolist()
        steps.append([batch["number"].tolist() if batch else [] for batch in batches])
    return steps


def together(step: Shares) -> list[int]:
    """The global batch."""
    return sorted(number for share in step for number in share)


def at_home(step: Shares, homes: str) -> Counter[str]:
    """How many samples are on a rank that is near to them, by place."""
    return Counter(home for home, share in zip(homes, step, strict=True) for n in share if home_of(n) == home)


# Locality


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("world_size", [2, 3, 4, 5])
def test_samples_go_to_near_ranks_as_far_as_shares_allow(shuffle: Any, world_size: int) -> None:
    plain = steps_of(ranks(shuffle, world_size, near=False))
    near = steps_of(ranks(shuffle, world_size, near=True))
    homes = RANK_HOMES[world_size]
    assert [[len(share) for share in step] for step in near] == [[len(share) for share in step] for step in plain]
    for before, after in zip(plain, near, strict=True):
        assert together(before) == together(after)
        there = Counter(map(home_of, together(after)))
        room = Counter(
            {home: sum(len(share) for at, share in zip(homes, after, strict=True) if at == home) for home in homes}
        )
        assert at_home(after, homes) == there & room, "no more is possible"
    assert sum(at_home(step, homes).total() for step in near) > sum(at_home(step, homes).total() for step in plain)


@settings(max_examples=40)
@given(
    turns=st.lists(st.tuples(st.sampled_from(sorted(RANK_HOMES)), st.integers(1, 4)), min_size=1, max_size=5),
    shuffle=st.sampled_from(SHUFFLES),
    seed=st.integers(0, 3),
)
def test_other_ranks_with_other_homes_go_on_exactly(turns: list[tuple[int, int]], shuffle: Any, seed: int) -> None:
    """Each turn has ranks of its own for some steps; whoever comes last goes to the end. Even without locality."""
    whole = [together(step) for step in steps_of(ranks(shuffle, 1, near=False, seed=seed))]
    seen: list[list[int]] = []
    state = None
    for number, (world_size, count) in enumerate([*turns, (3, None)]):
        loaders = ranks(shuffle, world_size, near=number % 3 != 2, seed=seed, state=state)
        steps = steps_of(loaders, count)
        seen += [together(step) for step in steps]
        state = loaders[0].state_dict()
        if len(seen) == len(whole):
            break
    assert seen == whole


# Checkpoints


class Beside:
    """A loader's state with something more in it, or less."""

    def __init__(self, loader: DataLoader, more: dict[str, Any], less: str = "") -> None:
        self.loader, self.more, self.less = loader, more, less
        self.loaded: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in self.loader.state_dict().items() if name != self.less} | self.more

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state
        self.loader.load_state_dict(state)


def begun() -> tuple[DataLoader, list[int]]:
    """A loader in mid-epoch, and what is left of it."""
    loader = DataLoader(Numbers(40), 4, shuffle=True, seed=3)
    loader.set_epoch(2)
    run = iter(loader)
    next(run), next(run), next(run)
    other = DataLoader(Numbers(40), 4, shuffle=True, seed=3)
    other.set_epoch(2)
    return loader, flat(other)[12:]


pytest_no_dist = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest_no_dist
@pytest.mark.parametrize("asked", [True, False])
def test_an_unknown_key_in_a_checkpoint_does_no_harm(tmp_path: Path, asked: bool) -> None:
    """As a later version may write it; whether or not who loads asks for it too."""
    loader, rest = begun()
    saved = Beside(loader, {"hours": 7, "note": "later", "counts": torch.arange(3)})
    dcp.save({"loader": saved}, checkpoint_id=tmp_path, no_dist=True)
    resumed = DataLoader(Numbers(40), 4, shuffle=True)
    into = Beside(resumed, {"hours": 0, "note": "", "counts": torch.zeros(3, dtype=torch.int64)} if asked else {})
    dcp.load({"loader": into if asked else resumed}, checkpoint_id=tmp_path, no_dist=True)
    if asked:
        assert (into.loaded["hours"], into.loaded["note"], into.loaded["counts"].tolist()) == (7, "later", [0, 1, 2])
    assert resumed.state_dict() == loader.state_dict()
    assert flat(resumed) == rest


@pytest_no_dist
@pytest.mark.parametrize("name", ["version", "digest", "seed", "epoch", "position"])
def test_a_checkpoint_without_one_of_our_keys_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    loader, _ = begun()
    dcp.save({"loader": Beside(loader, {}, less=name)}, checkpoint_id=tmp_path, no_dist=True)
    resumed = DataLoader(Numbers(40), 4, shuffle=True)
    before = resumed.state_dict()
    # torch says so where the loader asks for it, and the loader where whoever loads asks for what there is.
    with pytest.raises(dcp.api.CheckpointException, match=rf"Missing key .*loader\.{name}\b"):
        dcp.load({"loader": resumed}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(errors.BadRequest, match=f"state_dict: {name} is missing"):
        dcp.load({"loader": Beside(resumed, {}, less=name)}, checkpoint_id=tmp_path, no_dist=True)
    assert resumed.state_dict() == before


# Workers that outlive an epoch


@pytest.mark.parametrize("workers", [1, 2])
def test_persistent_workers_over_an_epoch_that_is_left_early(workers: int) -> None:
    def loader(**options: Any) -> DataLoader:
        return DataLoader(Numbers(50), 4, shuffle=True, with_index=True, multiprocessing_context="fork", **options)

    persistent = loader(num_workers=workers, persistent_workers=True)
    processes: list[set[int]] = []
    state: dict[str, Any] = {}
    for epoch, last in enumerate((None, 4, None)):
        order, run, taken = persistent.order(epoch), iter(persistent), 0
        assert persistent.epoch == epoch
        processes.append({process.pid for process in run._workers})
        for step, batch in enumerate(run):
            positions = list(range(4 * step, min(50, 4 * step + 4)))
            assert batch["position"].tolist() == positions
            assert batch["index"].tolist() == batch["number"].tolist() == [order.items(at) for at in positions]
            taken += len(positions)
            if step == last:
                state = persistent.state_dict()
                break
        assert taken == (50 if last is None else 20)
    assert (state["epoch"], state["position"]) == (1, 20)
    assert processes[0] == processes[1] == processes[2] and len(processes[0]) == workers

    resumed = loader(num_workers=workers, persistent_workers=True)
    resumed.load_state_dict(state)
    order = persistent.order(1)
    assert flat(resumed) == [order.items(at) for at in range(20, 50)]
    assert resumed.epoch == 2
    order = persistent.order(2)
    assert flat(resumed) == [order.items(at) for at in range(50)]
