"""What the loader tells the node: it fills ahead, keeps what is used soon, and hears how long training waited."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import shoal  # noqa: E402
from shoal import errors  # noqa: E402
from shoal.torch import BlockShuffle, DataLoader, Dataset, Views, batches  # noqa: E402
from shoal.torch import waiting as torch_waiting  # noqa: E402
from shoal.torch.formats.interface import Place  # noqa: E402
from shoal.torch.lookahead import Lookahead  # noqa: E402
from shoal.torch.sharding import Step  # noqa: E402
from tests.support import waiting  # noqa: E402
from tests.support.running_node import NodeProcess  # noqa: E402

FILES = 400
FILE_BYTES = 40_000


def content(number: int) -> bytes:
    return random.Random(number).randbytes(FILE_BYTES)


@pytest.fixture
def url(tmp_path: Path) -> str:
    folder = tmp_path / "files"
    for number in range(FILES):
        path = folder / f"{number % 4}" / f"{number:03}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(number))
    return f"file://{folder}"


def length(data: bytes) -> int:
    return len(data)


def test_the_node_fills_ahead_of_the_loop(node_process: Callable[..., NodeProcess], url: str) -> None:
    node = node_process({})
    with shoal.connect(node.address) as client:
        loader = DataLoader(Dataset(url, transform=length, client=client), 8, shuffle=True)
        epoch = iter(loader)
        next(epoch)
        # One batch was read; far more than that is there soon, without anybody asking.
        waiting.until(lambda: client.node_stats()["fill_bytes"] >= 100 * FILE_BYTES, "filled ahead")
        for _ in epoch:
            pass
        steps = len(loader)
        waiting.until(lambda: client.node_stats()["loader_steps"] == steps, "steps reported")
        assert client.node_stats()["loader_wait_seconds"] == pytest.approx(loader.stats().wait_s, rel=0.5)
        assert client.node_stats()["fill_bytes"] == FILES * FILE_BYTES  # each once
        blocks = loader.stats().stages.blocks
        assert sum(blocks.values()) >= FILES


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [True, BlockShuffle(8, 4)])
def test_a_cache_smaller_than_the_data_set_keeps_what_is_used_soonest(
    node_process: Callable[..., NodeProcess], url: str, shuffle: Any
) -> None:
    """An LRU would read nearly all of it again in every epoch, and a stable half half of it."""
    node = node_process({"dram": {"budget_bytes": "8MiB"}})
    with shoal.connect(node.address) as client:
        loader = DataLoader(Dataset(url, transform=length, client=client), 4, shuffle=shuffle, num_workers=1)
        read: list[int] = []
        for _ in range(4):
            before = client.node_stats()["fill_bytes"]
            assert sorted(batch_lengths(loader)) == [FILE_BYTES] * FILES
            read.append(client.node_stats()["fill_bytes"] - before)
        held = client.node_stats()["tiers"]["dram"]["used_bytes"]
        assert read[0] >= FILES * FILE_BYTES - 2 * held
        # No order does better than (files - held), 207 of them; some more are on their way. An LRU misses some 350.
        assert min(read[2:]) <= FILES * FILE_BYTES - held + 80 * FILE_BYTES, (read, held)


def batch_lengths(loader: DataLoader) -> list[int]:
    return [size for batch in loader for size in batch["data"].tolist()]


def filled_ahead(client: shoal.Client) -> int:
    return client.node_stats()["prefetches"]["filled"]


def looking_ahead(loader: DataLoader) -> Lookahead:
    assert loader._lookahead is not None
    return loader._lookahead


def test_what_was_read_is_told_though_it_cannot_be_filled(node_process: Callable[..., NodeProcess], url: str) -> None:
    """Two epochs are seen ahead, so all that is gone again comes so soon that it is to be filled, and has no room."""
    node = node_process({"dram": {"budget_bytes": "8MiB"}})
    with shoal.connect(node.address) as client:
        loader = DataLoader(Dataset(url, transform=length, client=client), 50, shuffle=True)
        assert len(batch_lengths(loader)) == FILES
        lookahead, run = looking_ahead(loader), loader._run
        assert run is not None
        waiting.until(lambda: client.node_stats()["loader_steps"] == len(loader), "all steps were told")
        lookahead.took(run, Step(list(range(FILES)), [], [], FILES), 0.0)
        waiting.until(lambda: not lookahead._heard and not lookahead._late, "all of it was told")


class InManyParts(Dataset):
    """Samples of many ranges, as tokens of many short documents are."""

    def places(self, numbers: Sequence[int]) -> list[list[Place]]:
        return [places * 100 for places in super().places(numbers)]


def test_what_comes_has_its_share_of_each_plan(node_process: Callable[..., NodeProcess], url: str) -> None:
    """What one step read is more than a plan can hold."""
    node = node_process({})
    with shoal.connect(node.address) as client:
        loader = DataLoader(InManyParts(url, transform=length, client=client), 64, shuffle=True)
        epoch, left = iter(loader), 0
        for number in range(5):
            before = filled_ahead(client)
            next(epoch)
            waiting.until(lambda before=before: filled_ahead(client) > before, f"filled ahead after step {number}")
            left = len(looking_ahead(loader)._late)
        waiting.until(lambda: not looking_ahead(loader)._heard, "the thread has heard of all")
        assert 0 < left < 5 * 64, "what was told is told once"


class FailsOnce(Dataset):
    """Looks up where samples lie, but for the second time."""

    calls = 0

    def places(self, numbers: Sequence[int]) -> list[list[Place]]:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("out of order")
        return super().places(numbers)


def test_an_error_of_any_kind_costs_advice_only(
    node_process: Callable[..., NodeProcess], url: str, caplog: pytest.LogCaptureFixture
) -> None:
    node = node_process({})
    with shoal.connect(node.address) as client:
        dataset = FailsOnce(url, transform=length, client=client)
        loader = DataLoader(dataset, 50, shuffle=True)
        epoch = iter(loader)
        next(epoch)
        waiting.until(lambda: "not told what comes next" in caplog.text, "said so")
        for _ in epoch:
            pass
        waiting.until(lambda: client.node_stats()["loader_steps"] == len(loader), "the thread goes on")
        assert dataset.calls > 2 and "out of order" in caplog.text


def test_a_loader_that_nobody_keeps_looks_ahead_until_its_loop_ends(
    node_process: Callable[..., NodeProcess], url: str
) -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "shoal-lookahead"}

    node, before = node_process({}), threads()
    with shoal.connect(node.address) as client:
        dataset = Dataset(url, transform=length, client=client)
        steps = 0
        for _ in DataLoader(dataset, 50, shuffle=True):
            if not steps:
                waiting.until(lambda: client.node_stats()["fill_bytes"] >= 100 * FILE_BYTES, "filled ahead")
            steps += 1
        waiting.until(lambda: threads() <= before, "with the loop the thread ends")
        assert client.node_stats()["loader_steps"] == steps == FILES // 50


def test_a_node_that_was_started_again_is_told_again(node_process: Callable[..., NodeProcess], url: str) -> None:
    """All of a data set that is small enough to be filled after one plan."""
    node, count = node_process({}), FILES // 4
    with shoal.connect(node.address) as client:
        loader = DataLoader(Dataset(f"{url}/0", transform=length, client=client), 8, shuffle=True)
        epoch = iter(loader)
        next(epoch)
        waiting.until(lambda: client.node_stats()["fill_bytes"] == count * FILE_BYTES, "all were told and filled")
        before = client._session.attachment
        node.kill()
        node.start()
        waiting.until(lambda: client.terms() and client._session.attachment is not before, "connected again")
        for _ in range(2):  # with the first the thread learns of it
            next(epoch)
            waiting.until(lambda: not looking_ahead(loader)._heard, "the thread has heard of it")
        waiting.until(lambda: client.node_stats()["fill_bytes"] == count * FILE_BYTES, "and filled again")


def test_a_resumed_loader_says_where_it_is(node_process: Callable[..., NodeProcess], url: str) -> None:
    node = node_process({})
    with shoal.connect(node.address) as client:
        first = DataLoader(Dataset(url, transform=length, client=client), 8, shuffle=True, with_index=True)
        run = iter(first)
        seen = [next(run)["index"].tolist() for _ in range(5)]
        second = DataLoader(Dataset(url, transform=length, client=client), 8, shuffle=True, with_index=True)
        second.load_state_dict(first.state_dict())
        seen += [batch["index"].tolist() for batch in second]
        assert sorted(number for batch in seen for number in batch) == list(range(FILES))


def test_a_node_that_goes_costs_the_loader_nothing_but_the_advice(
    node_process: Callable[..., NodeProcess], url: str
) -> None:
    node = node_process({})
    with shoal.connect(node.address) as client:
        loader = DataLoader(Dataset(url, transform=length, client=client), 50, shuffle=True)
        epoch = iter(loader)
        sizes = next(epoch)["data"].tolist()
        node.kill()
        for batch in epoch:
            sizes += batch["data"].tolist()
        assert sizes == [FILE_BYTES] * FILES


def say_worker(worker: int) -> None:
    from shoal.torch import views

    os.environ["KEPT"] = str(views._sent.maxlen)


def kept(samples: Any) -> Any:
    return os.environ["KEPT"]


def test_workers_keep_what_may_be_on_its_way(client: shoal.Client, url: str) -> None:
    loader = DataLoader(
        Dataset(url, views=True, client=client), 200, num_workers=1, multiprocessing_context="fork",
        prefetch_factor=7, worker_init_fn=say_worker, collate_fn=kept,
    )  # fmt: skip
    assert list(loader) == ["8", "8"]


def test_a_forked_child_looks_ahead_by_itself(client: shoal.Client, url: str) -> None:
    loader = DataLoader(Dataset(url, transform=length, client=client), 50)
    next(iter(loader))  # the thread runs
    child = os.fork()
    if not child:
        good = len(batch_lengths(loader)) == FILES and loader._lookahead is not None and loader._lookahead.ours
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(batch_lengths(loader)) == FILES


def test_a_closed_client_is_an_error_of_the_read(address: str, url: str) -> None:
    client = shoal.connect(address)
    loader = DataLoader(Dataset(url, transform=length, client=client), 50)
    next(iter(loader))
    client.close()
    for _ in range(2):
        with pytest.raises(errors.Closed):
            next(iter(loader))


def test_the_thread_ends_with_its_client(address: str, url: str) -> None:
    client = shoal.connect(address)
    loader = DataLoader(Dataset(url, transform=length, client=client), 50)
    next(iter(loader))
    lookahead, run = looking_ahead(loader), loader._run
    assert run is not None
    client.close()
    lookahead.took(run, Step(list(range(50)), [], [], 100), 0.0)  # as a worker's batch, which has a client of its own
    waiting.until(lambda: not lookahead._thread.is_alive(), "nobody is left to be told")
    assert not lookahead.ours and not lookahead._heard


def test_a_worker_begins_with_an_empty_account(client: shoal.Client, url: str) -> None:
    dataset = Dataset(url, transform=length, client=client)
    for number in range(4):
        dataset[number]
    loader = DataLoader(dataset, 200, num_workers=1, multiprocessing_context="fork")
    assert len(batch_lengths(loader)) == FILES
    torch_waiting.stages = torch_waiting.Stages()
    assert sum(loader.stats().stages.blocks.values()) == FILES


def test_what_a_silent_node_is_not_told_is_bounded(node_process: Callable[..., NodeProcess], url: str) -> None:
    node = node_process({})
    with shoal.connect(node.address) as client:
        loader = DataLoader(Dataset(url, transform=length, client=client), 100, shuffle=True)
        next(iter(loader))
        lookahead, run = loader._lookahead, loader._run
        assert lookahead is not None and run is not None
        node.kill()
        for _ in range(300):
            lookahead.took(run, Step(list(range(100)), [], [], 100), 0.0)
        waiting.until(lambda: not lookahead._heard, "all was taken over")
        assert len(lookahead._late) < 10_000


def test_a_file_that_is_gone_costs_advice_only(
    client: shoal.Client, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Names without a listing: the thread asks for versions, and hears of a missing file before the loop does."""
    names = [f"{number % 4}/{number:03}.bin" for number in range(FILES)] + ["3/gone.bin"]
    loader = DataLoader(Dataset(url, names=names, transform=length, client=client), 8)
    epoch = iter(loader)
    for _ in range(FILES // 8):
        next(epoch)
    waiting.until(lambda: "not told what comes next" in caplog.text, "said so")
    with pytest.raises(errors.NotFound, match=r"gone\.bin"):
        next(epoch)
    assert caplog.text.count("not told what comes next") == 1
    assert len(list(DataLoader(Dataset(url, names=names[:16], transform=length, client=client), 8))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (1, "spawn")])
def test_batches_of_views_come_from_workers_as_references(
    client: shoal.Client, url: str, workers: int, context: str | None
) -> None:
    dataset = Dataset(url, views=True, client=client)
    loader = DataLoader(
        dataset, 16, shuffle=True, num_workers=workers, multiprocessing_context=context, with_index=True
    )
    for batch in loader:
        assert isinstance(batch["data"], Views)
        numbers = [int(path[-7:-4]) for path in batch["path"]]
        assert [bytes(tensor.tolist()) for tensor in batch["data"].tensors()[:2]] == [content(n) for n in numbers[:2]]
        assert batch["data"].lengths == [FILE_BYTES] * len(numbers)
        assert [dataset.path(number) for number in batch["index"].tolist()] == batch["path"]
        assert batch["label"].tolist() == [number % 4 for number in numbers]
    assert loader.stats().sample_count == FILES


def test_views_are_of_files_as_they_are(client: shoal.Client, url: str) -> None:
    dataset = Dataset(url, views=True, client=client)
    with dataset[3]["data"] as view:
        assert bytes(view.memory[:10]) == content(12)[:10]
    with pytest.raises(errors.BadRequest, match="views"):
        Dataset(url, views=True, transform=length, client=client)
    with pytest.raises(errors.BadRequest, match="collate_fn of your own"):
        batches.collate([dataset[0]])
