"""Workers that are killed in the middle of an epoch: no lease and no shared memory is left behind, training goes on."""

from __future__ import annotations

import gc
import os
import signal

import pytest

torch = pytest.importorskip("torch")

from shoal import shared_client  # noqa: E402
from shoal.client import Client  # noqa: E402
from shoal.objects import ObjectInfo  # noqa: E402
from shoal.torch.views import Views, read_views  # noqa: E402
from shoal_core import limits  # noqa: E402
from tests.faults.conftest import Connect  # noqa: E402
from tests.support import waiting  # noqa: E402
from tests.support.objects import MakeObject  # noqa: E402
from tests.support.running_node import MakeProcess, NodeProcess  # noqa: E402

BLOCK = 64 * limits.KIB
FILES, BATCH, SAMPLES = 24, 4, 480


@pytest.fixture
def node(node_process: MakeProcess) -> NodeProcess:
    return node_process()


class Repeated(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The files over and over; a batch is read as views, by `collate` in the worker."""

    def __init__(self, client: Client, infos: list[ObjectInfo]) -> None:
        self.client, self.infos = client, infos
        shared_client.offer(client)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int) -> int:
        return number % len(self.infos)

    def collate(self, numbers: list[int]) -> tuple[int, list[int], Views]:
        return os.getpid(), numbers, read_views(self.client, [(self.infos[n], 0, BLOCK) for n in numbers])


def shared_memory(pids: set[int]) -> set[str]:
    """What torch has there for these processes; its files are named torch_<pid>_<number>_<count>."""
    return {name for name in os.listdir("/dev/shm") if any(name.startswith(f"torch_{pid}_") for pid in pids)}


@pytest.mark.slow
@pytest.mark.parametrize("door", ["unix", "tcp"])
def test_a_killed_worker_leaves_nothing_behind(
    node: NodeProcess, connect: Connect, make_object: MakeObject, door: str
) -> None:
    made = [make_object(BLOCK, f"file-{number:02}") for number in range(FILES)]
    client = connect(node.address if door == "unix" else node.tcp_address)
    dataset = Repeated(client, client.infos([url for url, _ in made]))
    loader = torch.utils.data.DataLoader(
        dataset, BATCH, num_workers=2, collate_fn=dataset.collate, multiprocessing_context="fork"
    )

    def right(numbers: list[int], views: Views) -> bool:
        return [bytes(view.memory) for view in views] == [made[number][1] for number in numbers]

    batches = iter(loader)
    pids = {os.getpid(), *(process.pid for process in batches._workers)}  # type: ignore[attr-defined]
    worker, numbers, kept = next(batches)
    assert right(numbers, kept)
    if door == "unix":
        assert node.status()["leases"] > BATCH, "workers hold some, and this process does"

    def kill() -> None:
        os.kill(worker, signal.SIGKILL)
        waiting.until(lambda: False, "torch raises in the main thread when it hears of it")

    with pytest.raises(RuntimeError, match=rf"pid {worker}\) is killed"):
        kill()
    del batches
    gc.collect()

    for url, _ in made:
        client.evict(url)  # grants that nobody looks at go back
    lent = BATCH if door == "unix" else 0
    waiting.until(lambda: node.status()["leases"] == lent, "what is left is the batch in hand")
    waiting.until(lambda: node.status()["clients"] == 2, "this process and the one who asks")
    assert not shared_memory(pids)
    assert right(numbers, kept)

    count = 0
    for _, others, views in loader:
        assert right(others, views)
        count += len(others)
    assert count == SAMPLES
    del kept
    views = None
    gc.collect()
    for url, _ in made:
        client.evict(url)
    waiting.until(lambda: node.status()["leases"] == 0, "the epoch is over")
    assert not shared_memory(pids)
    assert client.stats().fallbacks == 0
