"""Batches of views: right bytes, one request, references between processes, leases that end with what needs them."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import shoal  # noqa: E402
from shoal import errors, shared_client  # noqa: E402
from shoal.client import Client  # noqa: E402
from shoal.lending import Range  # noqa: E402
from shoal.objects import ObjectInfo  # noqa: E402
from shoal.torch import references  # noqa: E402
from shoal.torch import views as views_module  # noqa: E402
from shoal.torch.views import Views, read_views  # noqa: E402
from shoal_core.verbs import get  # noqa: E402
from tests.support import waiting  # noqa: E402
from tests.support.objects import MakeObject  # noqa: E402
from tests.support.running_node import InProcessNode, MakeInProcess  # noqa: E402
from tests.support.watched_door import WatchedDoor  # noqa: E402

BLOCK = 64 << 10
COUNT = 24


@pytest.fixture
def node(in_process_node: MakeInProcess) -> InProcessNode:
    node = in_process_node({"dram": {"budget_bytes": "8MiB"}})
    node.spoil_freed_slots()
    return node


@pytest.fixture(params=["unix", "tcp"])
def client(request: pytest.FixtureRequest, node: InProcessNode) -> Iterator[Client]:
    with shoal.connect(node.address if request.param == "unix" else node.tcp_address) as connected:
        yield connected


@pytest.fixture
def unix_client(node: InProcessNode) -> Iterator[Client]:
    with shoal.connect(node.address) as connected:
        yield connected


def leases(node: InProcessNode) -> int:
    with node.node.step() as state:
        return state.leases.count


def turn_over(node: InProcessNode, make_object: MakeObject) -> None:
    """Another client reads more than the cache holds, so that every lease that may end does."""
    url, data = make_object(16 << 20, "turn-over")
    with shoal.connect(node.tcp_address) as other:
        assert other.read(url) == data


def some_ranges(client: Client, make_object: MakeObject) -> tuple[list[Range], list[bytes]]:
    """Small and large, inside a block and across several, one empty, one object twice."""
    url, data = make_object(5 * BLOCK + 77)
    small, small_data = make_object(1000, "small")
    wanted = [
        (url, 0, 100), (url, BLOCK - 5, 10), (small, 0, 1000), (url, 7, 0), (url, BLOCK + 1, 3 * BLOCK),
        (url, 5 * BLOCK, 77), (small, 999, 1), (url, 0, 5 * BLOCK + 77),
    ]  # fmt: skip
    contents = {url: data, small: small_data}
    ranges = [(client.info(name), offset, length) for name, offset, length in wanted]
    return ranges, [contents[name][offset : offset + length] for name, offset, length in wanted]


def many_files(make_object: MakeObject, size: int = 1000) -> tuple[list[str], list[bytes]]:
    made = [make_object(size, f"file-{number:03}") for number in range(COUNT)]
    return [url for url, _ in made], [data for _, data in made]


def shown(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.flatten().tolist())


def shared_memory() -> set[str]:
    """What torch, multiprocessing or we would leave there; other programs have files of their own."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("torch_", "psm_", "shoal"))}


# What a batch gives.


def test_every_form_has_the_right_bytes(client: Client, make_object: MakeObject) -> None:
    ranges, expected = some_ranges(client, make_object)
    for _ in range(2):  # from the node, then under held grants
        views = read_views(client, ranges)
        assert len(views) == len(expected) and views.lengths == [len(data) for data in expected]
        assert views.nbytes == sum(map(len, expected))
        assert [b"".join(view) for view in views] == expected
        assert [b"".join(views[position]) for position in range(-len(views), 0)] == expected
        assert [b"".join(view) for view in views[2:4]] == expected[2:4]
        assert [shown(tensor) for tensor in views.tensors()] == expected
        assert [shown(tensor) for tensor in views.readonly()] == expected
        on_cpu = views.to("cpu")
        assert isinstance(on_cpu, list) and [shown(tensor) for tensor in on_cpu] == expected
        with pytest.raises(IndexError):
            views[len(views)]
    assert views.zero_copy == client.address.startswith("unix:")


def test_equal_lengths_stack(client: Client, make_object: MakeObject) -> None:
    url, data = make_object(3 * BLOCK)
    info = client.info(url)
    starts = [0, BLOCK - 8, 2 * BLOCK, 1000]
    views = read_views(client, [(info, start, 16) for start in starts])
    expected = [data[start : start + 16] for start in starts]
    assert [shown(row) for row in views.stack()] == expected
    assert [shown(row) for row in views.to("cpu")] == expected
    assert views.to("cpu").shape == (4, 16)
    numbers = views.stack(torch.int32)
    assert numbers.shape == (4, 4) and numbers.dtype == torch.int32
    assert numbers[1].tolist() == [
        int.from_bytes(expected[1][at : at + 4], "little", signed=True) for at in (0, 4, 8, 12)
    ]
    with pytest.raises(errors.BadRequest, match=r"20 bytes do not divide into items of 8 \(torch.float64\)"):
        read_views(client, [(info, 0, 20)]).stack(torch.float64)
    with pytest.raises(errors.BadRequest, match="from 16 to 17 bytes"):
        read_views(client, [(info, 0, 16), (info, 0, 17)]).stack()


def test_an_empty_batch_and_empty_ranges(client: Client, make_object: MakeObject) -> None:
    url, _ = make_object(100)
    empty = read_views(client, [])
    assert (len(empty), empty.nbytes, empty.tensors(), list(empty)) == (0, 0, [], [])
    assert empty.stack().shape == (0, 0) and empty.to("cpu").shape == (0, 0)
    nothing = read_views(client, [(client.info(url), 100, 0)] * 2)
    assert nothing.stack().shape == (2, 0) and [len(tensor) for tensor in nothing.readonly()] == [0, 0]
    assert len(pickle.loads(pickle.dumps(nothing)).tensors()) == 2


def test_copies_are_writable_and_their_own(client: Client, make_object: MakeObject) -> None:
    url, data = make_object(BLOCK)
    info = client.info(url)
    views = read_views(client, [(info, 0, 50), (info, 0, 50)])
    for tensors in (views.tensors(), views.stack(), views.to("cpu")):
        tensors[0].fill_(7)
        assert shown(tensors[0]) == b"\7" * 50 and shown(tensors[1]) == data[:50]
    assert shown(views.tensors()[0]) == data[:50] and client.read(info, 0, 50) == data[:50]


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, -1), (0, 101), (101, 0)])
def test_a_range_outside_is_named(client: Client, make_object: MakeObject, offset: int, length: int) -> None:
    url, _ = make_object(100)
    info = client.info(url)
    with pytest.raises(errors.BadRequest, match=rf"{url}: offset {offset}, length {length}.*of 100"):
        read_views(client, [(info, 0, 100), (info, offset, length)])


def test_what_cannot_be_read_is_named(client: Client, make_object: MakeObject, tmp_path: Path) -> None:
    urls, _ = many_files(make_object)
    infos = client.infos(urls)
    Path(urls[5].removeprefix("file://")).write_bytes(b"another version")
    with pytest.raises(errors.ObjectChanged, match="file-005"):
        read_views(client, [(info, 0, 1000) for info in infos])


def test_readonly_tensors_are_the_cache_itself(
    unix_client: Client, node: InProcessNode, make_object: MakeObject
) -> None:
    url, data = make_object(BLOCK)
    views = read_views(unix_client, [(unix_client.info(url), 10, 1000)])
    (tensor,) = views.readonly()
    with node.node.step() as state:
        segment, offset, *_ = state.address(next(iter(next(iter(state.leases.clients.values())).entries)))
    node.node.segments[segment].memory[offset + 10] ^= 0xFF
    assert tensor[0].item() == data[10] ^ 0xFF, "not a copy"
    node.node.segments[segment].memory[offset + 10] ^= 0xFF


# Requests and leases.


def test_a_batch_is_one_request_and_none_when_it_is_held(node: InProcessNode, make_object: MakeObject) -> None:
    door = WatchedDoor(node.memory)
    urls, contents = many_files(make_object)
    with shoal.connect(door) as client:
        ranges = [(info, 0, 1000) for info in client.infos(urls)]
        before = door.count(get)
        assert [bytes(view.memory) for view in read_views(client, ranges)] == contents
        assert door.count(get) == before + 1
        assert [bytes(view.memory) for view in read_views(client, ranges)] == contents
        assert door.count(get) == before + 1
        assert client.stats().reads == 2 * COUNT and client.stats().bytes == 2 * 1000 * COUNT
        with pytest.raises(errors.BadRequest, match="another process"):
            pickle.dumps(read_views(client, ranges))


@pytest.mark.parametrize("kept", ["views", "item", "readonly"])
def test_leases_live_as_long_as_what_needs_them(
    unix_client: Client, node: InProcessNode, make_object: MakeObject, kept: str
) -> None:
    urls, contents = many_files(make_object)
    views = read_views(unix_client, [(info, 0, 1000) for info in unix_client.infos(urls)])
    needed = {"views": views, "item": [views[3]], "readonly": views.readonly()[3:4]}[kept]
    copies = views.tensors()
    with views[0]:
        pass  # leaving the view of one item closes that, not the batch
    assert bytes(views[0].memory) == contents[0]
    del views
    gc.collect()
    for url in urls:
        unix_client.evict(url)
    turn_over(node, make_object)
    assert leases(node) == (COUNT if kept == "views" else 1)
    for content in [needed[3]] if kept == "views" else needed:
        assert (shown(content) if kept == "readonly" else bytes(content.memory)) == contents[3]
    del needed, content
    gc.collect()
    waiting.until(lambda: leases(node) == 0, "nobody needs them any more")
    assert [shown(copy) for copy in copies] == contents


# Between processes.


def test_a_pickle_has_references_and_no_bytes(node: InProcessNode, client: Client, make_object: MakeObject) -> None:
    urls, contents = many_files(make_object, 40_000)
    views = read_views(client, [(info, 0, 40_000) for info in client.infos(urls)])
    sent = pickle.dumps(views)
    assert len(sent) < 120 * COUNT
    before = client.stats().reads
    arrived = pickle.loads(sent)
    assert (arrived.lengths, arrived.nbytes) == (views.lengths, views.nbytes)
    assert client.stats().reads == before, "nothing is asked for before it is used"
    assert pickle.loads(pickle.dumps(arrived)).lengths == views.lengths
    assert [shown(tensor) for tensor in arrived.tensors()] == contents
    if not client.address.startswith("unix:"):
        assert client.stats().reads == before, "what was received once is not asked for again"
    assert arrived.zero_copy == views.zero_copy
    assert [bytes(view.memory) for view in arrived] == contents
    assert [shown(tensor) for tensor in pickle.loads(pickle.dumps(arrived)).readonly()] == contents


def test_what_arrives_is_read_with_one_request_through_the_client_at_hand(
    unix_client: Client, node: InProcessNode, make_object: MakeObject
) -> None:
    ranges, expected = some_ranges(unix_client, make_object)
    sent = pickle.dumps(read_views(unix_client, ranges))
    unix_client.evict(ranges[0][0].url)
    gc.collect()
    arrived = pickle.loads(sent)
    assert [b"".join(view) for view in arrived] == expected, "a block that is gone by then is read again"
    assert arrived._client is unix_client, "the one that was used here before"
    unix_client.close()
    late = pickle.loads(sent)
    assert [shown(tensor) for tensor in late.tensors()] == expected
    assert late._client is shared_client.like(shared_client.way(unix_client)) is not unix_client
    late._client.close()
    shared_client._likewise.clear()


@pytest.mark.parametrize("left", [0, 1, 2])
def test_without_descriptors_the_bytes_are_read_again(
    node: InProcessNode,
    make_object: MakeObject,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    left: int,
) -> None:
    """A worker pickles in a thread of its queue, where an error loses the batch, and the loop waits for ever."""
    monkeypatch.setattr(views_module, "_said", [])
    with shoal.connect(node.tcp_address) as client:
        ranges, expected = some_ranges(client, make_object)
        views = read_views(client, ranges)
        with caplog.at_level(logging.WARNING, "shoal"):
            sent = [pickled_with_few_descriptors(views, left) for _ in range(2)]
        for each in sent:
            assert [shown(tensor) for tensor in pickle.loads(each).tensors()] == expected
    said = sum("without their bytes" in record.message for record in caplog.records)
    assert said == 1 if left < 2 else said <= 1, "the first two are memory and its mapping"


def pickled_with_few_descriptors(views: Views, left: int) -> bytes:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(left):
            os.close(taken.pop())
        return pickle.dumps(views)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


def test_references_say_once_what_is_shared() -> None:
    def info(number: int, size: int = 110_000, stale: bool = False, block: int = 4 << 20) -> ObjectInfo:
        url = f"shoal://images/train/class-{number % 10}/image-{number:08}.jpg"
        origin = url.replace("shoal://images", "s3://bucket/deep/below")
        return ObjectInfo(url, size, f"{number:032x}", number.to_bytes(16, "little"), block, origin, stale)

    one_each = [(info(number), 0, 110_000) for number in range(64)]
    windows = [(info(7, 1 << 40), 4096 * number, 4096) for number in range(64)]
    odd = [(info(1), 5, 6), (info(2, 50, True), 0, 50), (info(1), 0, 0), (info(3, 9, False, 512), 9, 0)]
    for ranges in ([], one_each[:1], one_each, windows, odd):
        assert references.unpack(references.pack(ranges)) == ranges
    assert len(references.pack(one_each)) < 100 * 64
    assert len(references.pack(windows)) < 20 * 64
    unpacked = references.unpack(references.pack(windows))
    assert all(window[0] is unpacked[0][0] for window in unpacked)


class Batches(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Numbers; a batch of them is views, read by `collate` in the worker."""

    def __init__(self, client: Client, infos: list[ObjectInfo]) -> None:
        self.client, self.infos = client, infos
        shared_client.offer(client)

    def __len__(self) -> int:
        return len(self.infos)

    def __getitem__(self, number: int) -> int:
        return number

    def collate(self, numbers: list[int]) -> dict[str, object]:
        views = read_views(self.client, [(self.infos[n], 0, self.infos[n].size) for n in numbers])
        return {"data": views, "number": torch.tensor(numbers), "process": os.getpid()}


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_send_references(client: Client, node: InProcessNode, make_object: MakeObject, start: str) -> None:
    urls, contents = many_files(make_object, BLOCK)
    dataset = Batches(client, client.infos(urls))
    memory = shared_memory()
    loader = torch.utils.data.DataLoader(
        dataset, 4, num_workers=2 if start == "fork" else 1, collate_fn=dataset.collate, multiprocessing_context=start
    )
    seen: list[bytes] = []
    for batch in loader:
        assert batch["process"] != os.getpid()
        assert batch["data"].zero_copy == client.address.startswith("unix:")
        assert shown(batch["data"].stack()) == b"".join(contents[number] for number in batch["number"].tolist())
        seen += [shown(tensor) for tensor in batch["data"].readonly()]
    assert seen == contents
    del batch
    gc.collect()
    assert shared_memory() <= memory
    turn_over(node, make_object)
    waiting.until(lambda: leases(node) == 0, "neither the workers nor this process needs any")


@pytest.mark.slow
def test_workers_keep_what_the_node_would_not(in_process_node: MakeInProcess, make_object: MakeObject) -> None:
    """A data set larger than the cache: blocks that pass through are there until this process has them too."""
    count, size = 384, BLOCK
    urls = [make_object(size, f"many/{number:03}")[0] for number in range(count)]
    dataset = {"url": urls[0].removesuffix("/000"), "eviction": "epoch"}
    node = in_process_node({"dram": {"budget_bytes": "8MiB"}, "datasets": {"many": dataset}})
    with shoal.connect(node.address) as client:
        batches = Batches(client, client.list("shoal://many/"))
        loader = torch.utils.data.DataLoader(
            batches, 8, num_workers=2, collate_fn=batches.collate, multiprocessing_context="fork"
        )
        for batch in loader:
            assert len(batch["data"].stack()) == 8 and batch["data"].zero_copy
        assert node.node.counters.fill_bytes == count * size, "each was read once, though two processes leased it"


def test_pinning_is_for_gpus(unix_client: Client, make_object: MakeObject) -> None:
    url, data = make_object(100)
    views = read_views(unix_client, [(unix_client.info(url), 0, 100)])
    assert views.pin_memory() is views
    assert views.is_pinned() == torch.cuda.is_available()
    assert shown(views.stack()) == data
