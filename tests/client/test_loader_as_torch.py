"""The loader where torch's own users and libraries take it apart, wrap its data set, or go on after an error."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import BatchSampler, ConcatDataset, RandomSampler, Subset  # noqa: E402
from torch.utils.data.distributed import DistributedSampler  # noqa: E402

import shoal  # noqa: E402
from shoal import errors  # noqa: E402
from shoal.torch import BlockShuffle, DataLoader, Dataset, Views  # noqa: E402
from tests.client.loader_data import Numbers, flat, numbers  # noqa: E402
from tests.support import waiting  # noqa: E402
from tests.support.running_node import NodeProcess  # noqa: E402

# Samplers of the user's


def distributed(dataset: Numbers) -> DataLoader:
    return DataLoader(dataset, 2, sampler=DistributedSampler(dataset, num_replicas=2, rank=0, seed=4))


@pytest.mark.parametrize("set_epoch", [None, lambda sampler: sampler.set_epoch(5)])
@pytest.mark.parametrize("passes", [0, 1])
def test_a_distributed_sampler_resumes_in_the_epoch_that_it_was_at(
    set_epoch: Callable[[Any], None] | None, passes: int
) -> None:
    """Whoever sets it, and if nobody does: each pass is the same then, as with torch."""
    dataset = Numbers(24)

    def sampler() -> Any:
        made = DistributedSampler(dataset, num_replicas=2, rank=0, seed=4)
        if set_epoch is not None:
            set_epoch(made)
        return made

    expected = numbers(torch.utils.data.DataLoader(dataset, 2, sampler=sampler()))
    first = DataLoader(dataset, 2, sampler=sampler())
    for _ in range(passes):
        assert numbers(first) == expected
    run = iter(first)
    seen = numbers([next(run), next(run)])
    resumed = DataLoader(dataset, 2, sampler=sampler())
    resumed.load_state_dict(first.state_dict())
    assert seen + numbers(resumed) == expected
    assert numbers(resumed) == expected, "and the pass after it is a whole one"


def test_the_loaders_epoch_is_the_samplers_too() -> None:
    dataset = Numbers(24)
    first = distributed(dataset)
    first.set_epoch(3)
    state = first.state_dict()
    assert (state["epoch"], state["position"]) == (3, 0)
    resumed = distributed(dataset)
    resumed.load_state_dict(state)
    assert numbers(resumed) == numbers(first)
    first.set_epoch(4)
    assert numbers(resumed) != numbers(first)


def test_who_sets_another_epoch_after_a_resume_gets_all_of_it() -> None:
    dataset = Numbers(24)
    first = distributed(dataset)
    next(iter(first))
    sampler = DistributedSampler(dataset, num_replicas=2, rank=0, seed=4)
    resumed = DataLoader(dataset, 2, sampler=sampler)
    resumed.load_state_dict(first.state_dict())
    sampler.set_epoch(7)
    assert len(flat(resumed)) == 12


def test_a_sampler_of_another_kind_is_another_stream() -> None:
    dataset = Numbers(20)
    first = DataLoader(dataset, batch_sampler=BatchSampler(range(20), 4, False))
    next(iter(first))
    for other in (
        DataLoader(dataset, batch_sampler=BatchSampler(range(20), 2, False)),
        DataLoader(dataset, 4, sampler=range(20)),
        DataLoader(dataset, 4, sampler=RandomSampler(dataset)),
    ):
        with pytest.raises(errors.BadRequest, match="shuffle: given:"):
            other.load_state_dict(first.state_dict())


# Wrapped data sets


def test_a_subset_is_named_by_what_is_in_it() -> None:
    whole = Numbers(30)
    first = DataLoader(Subset(whole, range(10)), 2)
    next(iter(first))
    with pytest.raises(errors.BadRequest, match="dataset: "):
        DataLoader(Subset(whole, range(10, 20)), 2).load_state_dict(first.state_dict())
    with pytest.raises(errors.BadRequest, match="dataset: "):
        DataLoader(ConcatDataset([Numbers(4), Numbers(6)])).load_state_dict(
            DataLoader(ConcatDataset([Numbers(5), Numbers(5)])).state_dict()
        )
    same = DataLoader(Subset(whole, list(range(10))), 2)
    same.load_state_dict(first.state_dict())
    assert flat(same) == list(range(2, 10))


def test_a_digest_that_is_no_text_names_nothing() -> None:
    class WithMethod(Numbers):
        def digest(self) -> str:
            return "of something"

    assert "0x" not in DataLoader(WithMethod(3)).state_dict()["digest"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    for number in range(200):
        path = tmp_path / "files" / f"{number:03}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([number]) * 5000)
    return f"file://{tmp_path}/files"


def first_byte(data: bytes) -> int:
    return data[0]


def test_a_part_of_a_data_set_is_read_ahead_and_no_more(node_process: Callable[..., NodeProcess], url: str) -> None:
    with shoal.connect(node_process({}).address) as client:
        part = Subset(Dataset(url, transform=first_byte, client=client), range(0, 200, 2))
        loader = DataLoader(part, 4, shuffle=True)
        epoch = iter(loader)
        seen = next(epoch)["data"].tolist()
        waiting.until(lambda: client.node_stats()["fill_bytes"] == 100 * 5000, "all of the part was filled ahead")
        assert sorted(seen + [byte for batch in epoch for byte in batch["data"].tolist()]) == list(range(0, 200, 2))
        assert client.node_stats()["fill_bytes"] == 100 * 5000
        waiting.until(lambda: client.node_stats()["loader_steps"] == 25, "its waiting is reported")


def test_a_part_of_a_data_set_has_views(client: shoal.Client, url: str) -> None:
    part = Subset(Dataset(url, views=True, client=client), range(10, 20))
    batch = next(iter(DataLoader(part, 5)))
    assert isinstance(batch["data"], Views)
    assert [tensor[0].item() for tensor in batch["data"].tensors()] == [10, 11, 12, 13, 14]


def test_a_path_will_do(client: shoal.Client, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = Dataset(url, client=client)
    for path in (tmp_path / "files", f"{tmp_path}/files/", "./files", Path("files")):
        dataset = Dataset(path, client=client)
        assert (dataset.url, dataset.digest) == (expected.url, expected.digest)
    with pytest.raises(errors.BadRequest, match="is not a URL"):
        Dataset("files", client=client)


# Libraries that take it apart


def test_its_parts_make_a_loader_of_torchs_own() -> None:
    ours = DataLoader(Numbers(20), 3, shuffle=True, drop_last=True)
    expected = [numbers(ours), numbers(ours)]

    def again() -> Any:
        loader = DataLoader(Numbers(20), 3, shuffle=True, drop_last=True)
        assert (loader.batch_sampler.batch_size, loader.batch_sampler.drop_last) == (3, True)
        return torch.utils.data.DataLoader(
            loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn
        )

    theirs = again()
    assert [numbers(theirs), numbers(theirs)] == expected, "one epoch after the other"
    theirs = again()
    theirs.batch_sampler.set_epoch(1)
    assert numbers(theirs) == expected[1]
    singles = DataLoader(Numbers(5), None, shuffle=True)
    assert list(singles.sampler) == [sample["number"] for sample in singles]


def test_a_sampler_that_others_draw_from_leaves_the_loader_where_it_is() -> None:
    loader = DataLoader(Numbers(20), 4, shuffle=True, with_index=True)
    run = iter(loader)
    next(run)
    list(loader.batch_sampler)
    assert [batch["position"].tolist() for batch in run] == [list(range(n, n + 4)) for n in range(4, 20, 4)]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
@pytest.mark.parametrize("shuffle", [False, True, BlockShuffle(4, 2)])
def test_it_may_be_copied_and_sent_to_another_process(copied: Callable[[Any], Any], shuffle: Any) -> None:
    loader = DataLoader(Numbers(20), 4, shuffle=shuffle, seed=2)
    assert numbers(copied(loader)) == numbers(loader)
    assert numbers(copied(loader)) == numbers(loader), "after an epoch, too"


def test_an_epochs_length_is_what_is_left_of_it() -> None:
    loader = DataLoader(Numbers(20), 4)
    run = iter(loader)
    assert (len(loader), len(run)) == (5, 5)
    next(run)
    next(run)
    resumed = DataLoader(Numbers(20), 4)
    resumed.load_state_dict(loader.state_dict())
    run = iter(resumed)
    assert (len(resumed), len(run), len(list(run))) == (5, 3, 3)


@pytest.mark.parametrize("epoch", [1.0, -1, "1"])
def test_an_epoch_is_a_count(epoch: Any) -> None:
    with pytest.raises(errors.BadRequest, match="set_epoch"):
        DataLoader(Numbers(3)).set_epoch(epoch)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_data_pipe_that_shuffles_goes_on_to() -> None:
    pipes = pytest.importorskip("torch.utils.data.datapipes.iter")
    torch.manual_seed(1)
    seen = [int(n) for batch in DataLoader(pipes.IterableWrapper(range(50)).shuffle(), 5) for n in batch]
    assert sorted(seen) == list(range(50))
    assert seen != list(range(50))


# Errors after which the loop goes on


class Interrupted(Numbers):
    """Raises once, for sample 5."""

    def __init__(self, count: int, error: BaseException) -> None:
        super().__init__(count)
        self.error: BaseException | None = error

    def __getitem__(self, number: int) -> Any:
        if number == 5 and self.error is not None:
            error, self.error = self.error, None
            raise error
        return super().__getitem__(number)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bad")])
def test_after_an_interrupt_a_batch_is_lost_and_the_rest_is_right(error: BaseException) -> None:
    loader = DataLoader(Interrupted(20, error), 4, with_index=True)
    run = iter(loader)
    next(run)
    with pytest.raises(type(error)):
        next(run)
    for batch in run:
        assert batch["index"].tolist() == batch["number"].tolist() == batch["position"].tolist()
        assert loader.state_dict()["position"] == batch["position"].tolist()[-1] + 1


def test_of_two_epochs_with_persistent_workers_the_first_is_over() -> None:
    """torch has one iterator then; its batches are the new epoch's, whoever asks."""
    loader = DataLoader(
        Numbers(20), 4, num_workers=1, persistent_workers=True, multiprocessing_context="fork", with_index=True
    )
    first = iter(loader)
    next(first)
    second = iter(loader)
    with pytest.raises(errors.BadRequest, match="one epoch at a time"):
        next(first)
    assert [batch["index"].tolist() == batch["number"].tolist() for batch in second] == [True] * 5
    plain = DataLoader(Numbers(8), 4, with_index=True)
    first, second = iter(plain), iter(plain)
    for run in (first, second, first, second):
        batch = next(run)
        assert batch["index"].tolist() == batch["number"].tolist()


class Slow(Numbers):
    """Sample 5 waits until a file is there."""

    def __init__(self, count: int, gate: Path) -> None:
        super().__init__(count)
        self.gate = gate

    def __getitem__(self, number: int) -> Any:
        if number == 5:
            waiting.until(self.gate.exists)
        return super().__getitem__(number)


def test_after_a_timeout_no_batch_is_lost(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    loader = DataLoader(Slow(20, gate), 4, num_workers=1, multiprocessing_context="fork", timeout=0.3, with_index=True)
    run = iter(loader)
    seen = next(run)["number"].tolist()
    with pytest.raises(RuntimeError, match="timed out"):
        next(run)
    gate.touch()
    while len(seen) < 20:
        try:
            batch = next(run)
        except RuntimeError:
            continue  # the worker did not see the file in time
        assert batch["index"].tolist() == batch["number"].tolist() == batch["position"].tolist()
        seen += batch["number"].tolist()
    assert seen == list(range(20))
    assert next(run, None) is None


def nested(samples: Any) -> Any:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_crosses_from_a_worker() -> None:
    made = DataLoader([0], num_workers=1, multiprocessing_context="fork", collate_fn=nested, timeout=20)
    (arrived,) = made
    assert [part.tolist() for part in arrived.unbind()] == [[1.0] * 2, [1.0] * 3]
