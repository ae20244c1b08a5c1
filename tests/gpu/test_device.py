"""Batches on their way to a GPU: segments registered once, right bytes, leases until the copies have ended.

Needs a CUDA device. Run with `-s` to see the figures: bytes per second to the device out of the cache's memory, beside
the same bytes out of pinned memory, and beside what torch's loader does otherwise (a copy to pinned memory, then that).
"""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

import shoal  # noqa: E402
from shoal import shared_client  # noqa: E402
from shoal.client import Client  # noqa: E402
from shoal.lending import Range  # noqa: E402
from shoal.objects import ObjectInfo  # noqa: E402
from shoal.torch import device  # noqa: E402
from shoal.torch.views import Views, read_views  # noqa: E402
from tests.support import waiting  # noqa: E402
from tests.support.objects import MakeObject  # noqa: E402
from tests.support.running_node import MakeInProcess, MakeProcess, NodeProcess  # noqa: E402

BLOCK = 4 << 20


@pytest.fixture
def node(node_process: MakeProcess) -> NodeProcess:
    return node_process({"dram": {"budget_bytes": "512MiB"}, "fill": {"block_size_bytes": "4MiB"}})


@pytest.fixture
def client(node: NodeProcess) -> Iterator[Client]:
    with shoal.connect(node.address) as connected:
        shared_client.offer(connected)
        yield connected
    assert device.wait_for_uploads(10)


def files(client: Client, make_object: MakeObject, sizes: list[int]) -> tuple[list[Range], list[bytes]]:
    made = [make_object(size, f"file-{number:03}") for number, size in enumerate(sizes)]
    infos = client.infos([url for url, _ in made])
    return [(info, 0, info.size) for info in infos if isinstance(info, ObjectInfo)], [data for _, data in made]


def shown(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.cpu().numpy().tobytes())


def registered(views: Views) -> bool:
    """Pinned by registering, not by a copy."""
    return views.is_pinned() and views._pinned is None


def busy_stream() -> torch.cuda.Stream:
    """A stream that has a second or two of work before whatever is put on it next."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(3_000_000_000)  # clocks, at 1.5 to 2 GHz
    return stream


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("non_blocking", [False, True])
def test_bytes_arrive(client: Client, make_object: MakeObject, pinned: bool, non_blocking: bool) -> None:
    ranges, contents = files(client, make_object, [1000, 110_000, 0, 2 * BLOCK, 1, 3 * BLOCK])
    views = read_views(client, ranges)
    if pinned:
        assert views.pin_memory() is views and views.is_pinned()
    there = views.to("cuda", non_blocking=non_blocking)
    assert isinstance(there, list) and all(tensor.is_cuda and tensor.dtype == torch.uint8 for tensor in there)
    assert [len(tensor) for tensor in there] == views.lengths
    assert b"".join(map(shown, there)) == b"".join(contents)
    equal = read_views(client, [(ranges[3][0], start, 70_000) for start in (0, 5, BLOCK - 100)])
    stacked = (equal.pin_memory() if pinned else equal).to(torch.device("cuda", 0), non_blocking=non_blocking)
    assert stacked.shape == (3, 70_000)
    assert [shown(row) for row in stacked] == [contents[3][start : start + 70_000] for start in (0, 5, BLOCK - 100)]
    assert read_views(client, []).pin_memory().to("cuda").shape == (0, 0)


def test_segments_are_registered_once_and_cuda_knows_them(client: Client, make_object: MakeObject) -> None:
    ranges, _ = files(client, make_object, [110_000] * 32)
    views = read_views(client, ranges)
    before = device.stats().segments_registered, device.stats().refused
    views.pin_memory()
    if not registered(views):
        pytest.fail(f"CUDA refuses to register read-only segments here: {device.stats()}")
    after = device.stats().segments_registered, device.stats().refused
    assert after[0] > before[0] and after[1] == before[1]
    assert all(tensor.is_pinned() for tensor in views.readonly()), "torch sees pinned memory"
    assert registered(read_views(client, ranges).pin_memory())
    assert (device.stats().segments_registered, device.stats().refused) == after
    assert torch.ones(10, device="cuda").sum().item() == 10, "no error was left for the next kernel"


def test_leases_last_until_the_copy_has_ended(in_process_node: MakeInProcess, make_object: MakeObject) -> None:
    """The batch is dropped and evicted before the copy begins; a slot that becomes free is overwritten at once."""
    node = in_process_node({"dram": {"budget_bytes": "64MiB"}, "fill": {"block_size_bytes": "4MiB"}})
    node.spoil_freed_slots()

    def leases() -> int:
        with node.node.step() as state:
            return int(state.leases.count)

    with shoal.connect(node.address) as client:
        ranges, contents = files(client, make_object, [BLOCK] * 8)
        views = read_views(client, ranges).pin_memory()
        assert registered(views)
        stream = busy_stream()
        with torch.cuda.stream(stream):
            there = views.to("cuda", non_blocking=True)
        del views
        gc.collect()
        for info, _, _ in ranges:
            client.evict(info.url)
        client._session.report(waiting.deadline())  # all that may go back has
        assert not stream.query(), "the copy has not even begun"
        assert (leases(), device.stats().under_way) == (8, 1)
        stream.synchronize()
        assert b"".join(map(shown, there)) == b"".join(contents)
        assert device.wait_for_uploads(5) and device.stats().under_way == 0
        waiting.until(lambda: leases() == 0, "the copy ended, and the leases with it")


def test_mappings_are_unregistered_when_they_go(node: NodeProcess, make_object: MakeObject) -> None:
    before = device.stats().segments_registered, device.stats().bytes_registered
    with shoal.connect(node.address) as client:
        ranges, contents = files(client, make_object, [110_000] * 4)
        views = read_views(client, ranges).pin_memory()
        assert registered(views) and device.stats().segments_registered > before[0]
    assert device.stats().segments_registered > before[0], "the views still look at it"
    assert b"".join(map(shown, views.to("cuda"))) == b"".join(contents)
    del views, client
    gc.collect()
    assert (device.stats().segments_registered, device.stats().bytes_registered) == before
    assert torch.ones(10, device="cuda").sum().item() == 10


def test_what_is_no_shared_memory_is_copied_to_pinned_memory(node: NodeProcess, make_object: MakeObject) -> None:
    with shoal.connect(node.tcp_address) as client:
        ranges, contents = files(client, make_object, [110_000] * 4)
        copied = device.stats().batches_copied
        views = read_views(client, ranges).pin_memory()
        assert views.is_pinned() and device.stats().batches_copied == copied + 1
        assert b"".join(map(shown, views.to("cuda", non_blocking=True))) == b"".join(contents)


class Numbers(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A batch is views, read by `collate` in the worker."""

    def __init__(self, client: Client, ranges: list[Range]) -> None:
        self.client, self.ranges = client, ranges
        shared_client.offer(client)

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, number: int) -> int:
        return number

    def collate(self, numbers: list[int]) -> Views:
        return read_views(self.client, [self.ranges[number] for number in numbers])


# Forked, because workers start before this process uses CUDA in a real training loop as well; they never touch it.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_the_loader_pins_what_workers_refer_to(client: Client, make_object: MakeObject, start: str) -> None:
    ranges, contents = files(client, make_object, [110_000] * 32)
    dataset = Numbers(client, ranges)
    loader = torch.utils.data.DataLoader(
        dataset, 8, num_workers=2, collate_fn=dataset.collate, pin_memory=True, multiprocessing_context=start
    )
    seen: list[bytes] = []
    for views in loader:
        assert views.is_pinned()
        seen += [shown(row) for row in views.to("cuda", non_blocking=True)]
    assert seen == contents


FORKED = """
import os, sys, torch, shoal
from shoal.torch import device
from shoal.torch.views import read_views
client = shoal.connect(sys.argv[1])
info = client.info(sys.argv[2])
views = read_views(client, [(info, 0, 1000)]).pin_memory()
there = views.to("cuda", non_blocking=True)
child = os.fork()
if not child:
    assert device.stats().under_way == 0 and device.stats().segments_registered == 0
    del views
    assert client.read(info, 0, 1000) == open(sys.argv[2].removeprefix("file://"), "rb").read()[:1000]
    client.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert bytes(there[0].tolist()) == client.read(info, 0, 1000)
views = read_views(client, [(info, 0, 1000)]).pin_memory()
assert device.stats().refused == 0
there = views.to("cuda", non_blocking=True)
print("good", flush=True)
"""


def test_forks_and_the_end_of_the_process(node: NodeProcess, make_object: MakeObject) -> None:
    """A child leaves its parent's registrations alone; a process may end while copies are under way."""
    url, _ = make_object(100_000)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, node.address, url],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("good\n", 0), done.stderr[-3000:]
    assert not done.stderr, done.stderr[-3000:]


# Figures.


def timed(copy: Callable[[], object], repeats: int = 20) -> float:
    """Seconds each: the median, to the end of the copy."""
    taken: list[float] = []
    for _ in range(repeats + 3):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        copy()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return sorted(taken[3:])[repeats // 2]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "count"), [(10 << 10, 256), (110_000, 256), (BLOCK, 32)])
def test_rate_to_the_device(client: Client, tmp_path: Path, size: int, count: int) -> None:
    """Figures to look at: out of the cache's memory, beside a copy to pinned memory and from there."""
    urls: list[str] = []
    for number in range(count):
        path = tmp_path / f"{number:03}"
        path.write_bytes(random.Random(number).randbytes(size))
        urls.append(f"file://{path}")
    ranges = [(info, 0, size) for info in client.infos(urls) if isinstance(info, ObjectInfo)]
    begun = time.perf_counter()
    views = read_views(client, ranges)
    read_s = time.perf_counter() - begun
    begun = time.perf_counter()
    views.pin_memory()
    pin_s = time.perf_counter() - begun
    lease_s = timed(lambda: read_views(client, ranges).pin_memory())
    ours_s = timed(lambda: views.to("cuda", non_blocking=True))
    begin_s = sorted(_begin_s(views) for _ in range(9))[4]
    pinned = views.stack().pin_memory()
    plain_s = timed(lambda: pinned.to("cuda", non_blocking=True))
    usual_s = timed(lambda: views.stack().pin_memory().to("cuda", non_blocking=True))
    pageable_s = timed(lambda: views.stack().to("cuda"))
    total = size * count / 1e9
    print(
        f"\n{count} x {size} bytes, registered {registered(views)}: first read {read_s * 1e3:.1f} ms, first pin "
        f"{pin_s * 1e3:.1f} ms, lease again {lease_s * 1e3:.3f} ms; to the device {total / ours_s:.1f} GB/s (returns "
        f"after {begin_s * 1e3:.3f} ms); one pinned tensor {total / plain_s:.1f} GB/s, ratio {plain_s / ours_s:.2f}; "
        f"copy, pin, upload {total / usual_s:.1f} GB/s, ours {usual_s / ours_s:.1f} times that; "
        f"copy, upload {total / pageable_s:.1f} GB/s, ours {pageable_s / ours_s:.1f} times; {device.stats()}"
    )
    assert len(views) == count


def _begin_s(views: Views) -> float:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    views.to("cuda", non_blocking=True)
    return time.perf_counter() - begun
