"""Workers of our loader that are killed in mid-epoch: the loop hears which one, and nothing of theirs is left."""

from __future__ import annotations

import functools
import gc
import os
import signal
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import shoal  # noqa: E402
from shoal.torch import DataLoader, Dataset  # noqa: E402
from shoal.torch.views import Views  # noqa: E402
from shoal_core import limits  # noqa: E402
from tests.faults.conftest import Connect  # noqa: E402
from tests.support import waiting  # noqa: E402
from tests.support.objects import MakeObject  # noqa: E402
from tests.support.running_node import MakeProcess, NodeProcess  # noqa: E402

pytestmark = pytest.mark.slow

FILE_BYTES = 100 * limits.KIB
FILE_BLOCKS = 2
FILES, BATCH = 120, 4
SEEN = 5
"""Batches that the loop takes before the worker whose turn is next is killed."""


@pytest.fixture
def node(node_process: MakeProcess) -> NodeProcess:
    return node_process()


@pytest.fixture
def contents(make_object: MakeObject) -> dict[str, bytes]:
    """What lies in the data set's folder, by path in it."""
    names = [f"{number:03}" for number in range(FILES)]
    return {name: make_object(FILE_BYTES, f"many/{name}")[1] for name in names}


@pytest.fixture
def url(make_object: MakeObject, contents: dict[str, bytes]) -> str:
    return make_object(FILE_BYTES, "many/000")[0].removesuffix("/000")


def tensor_of(data: bytes, stops_at: bytes | None = None) -> torch.Tensor:
    """Of a size that torch takes through shared memory. At one file it stays until it is killed."""
    while data == stops_at:
        signal.pause()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def right(batch: dict[str, Any], contents: dict[str, bytes]) -> bool:
    data = batch["data"]
    found = [b"".join(view) for view in data] if isinstance(data, Views) else [row.numpy().tobytes() for row in data]
    return found == [contents[path] for path in batch["path"]]


def shared_memory(pids: set[int]) -> set[str]:
    """What torch has there for these processes (torch_<pid>_<number>_<count>), and what has a name of ours."""
    own = tuple(f"torch_{pid}_" for pid in pids)
    return {name for name in os.listdir("/dev/shm") if name.startswith((*own, "shoal"))}


def loader_of(client: shoal.Client, url: str, start: str, stops_at: bytes | None, views: bool) -> DataLoader:
    """Over tensors, a worker that comes to that file goes no further."""
    dataset = (
        Dataset(url, views=True, client=client)
        if views
        else Dataset(url, transform=functools.partial(tensor_of, stops_at=stops_at), client=client)
    )
    return DataLoader(
        dataset, BATCH, shuffle=True, num_workers=2 if start == "fork" else 1, multiprocessing_context=start,
        with_index=True,
    )  # fmt: skip


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("views", [True, False], ids=["views", "tensors"])
def test_a_killed_worker_is_named_and_leaves_nothing_behind(
    node: NodeProcess, connect: Connect, url: str, contents: dict[str, bytes], views: bool, start: str
) -> None:
    client, before = connect(node.address), shared_memory({os.getpid()})
    order = DataLoader(Dataset(url, client=client), BATCH, shuffle=True).order(0)
    stops_at = contents[f"{order.items(SEEN * BATCH):03}"]
    loader = loader_of(client, url, start, stops_at, views)
    batches, seen, kept = iter(loader), [], {}
    processes = batches._workers
    for _ in range(SEEN):
        kept = next(batches)
        assert right(kept, contents)
        seen += kept["index"].tolist()
    if views:
        assert node.status()["leases"] > BATCH * FILE_BLOCKS, "the workers hold some, and this process does"
    else:
        assert kept["data"].is_shared(), "it came through shared memory"
    state, pids = loader.state_dict(), {process.pid for process in processes}
    killed = processes[SEEN % len(processes)].pid

    with pytest.raises(RuntimeError, match=rf"worker \(pid(\(s\))? {killed}\) (is killed|exited)"):
        kill_and_go_on(killed, batches)
    del batches, processes
    gc.collect()

    for path in contents:
        client.evict(f"{url}/{path}")  # grants that nobody looks at go back
    held = BATCH * FILE_BLOCKS if views else 0
    waiting.until(lambda: node.status()["leases"] == held, "what is left is the batch in hand")
    waiting.until(lambda: node.status()["clients"] == 2, "this process and the one who asks")
    assert shared_memory({os.getpid(), *pids}) <= before
    assert right(kept, contents)

    resumed = loader_of(client, url, start, None, views)
    resumed.load_state_dict(state)
    for batch in resumed:
        assert right(batch, contents)
        seen += batch["index"].tolist()
    assert seen == [order.items(position) for position in range(FILES)]
    assert client.stats().fallbacks == 0


def kill_and_go_on(worker: int, batches: Any) -> None:
    os.kill(worker, signal.SIGKILL)
    for _ in batches:
        pass
