"""The client over a real node: ranges, views and their leases, processes, event loops."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shoal
from shoal import errors
from shoal.client import Client
from tests.support import waiting
from tests.support.running_node import InProcessNode, MakeInProcess

BLOCK = 64 << 10
SIZE = 5 * BLOCK + 777
CONTENT = random.Random(7).randbytes(SIZE)


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "object").write_bytes(CONTENT)
    return f"file://{tmp_path}/object"


@pytest.fixture
def node(in_process_node: MakeInProcess) -> InProcessNode:
    return in_process_node({})


@pytest.fixture(params=["unix", "tcp", "memory"])
def client(request: pytest.FixtureRequest, node: InProcessNode) -> Iterator[Client]:
    address = {"unix": node.address, "tcp": node.tcp_address, "memory": node.memory}[request.param]
    with shoal.connect(address) as connected:
        yield connected


@pytest.fixture
def near(node: InProcessNode) -> Iterator[Client]:
    """A client over shared memory."""
    with shoal.connect(node.address) as connected:
        yield connected


def leases(node: InProcessNode) -> int:
    with node.node.step() as state:
        return state.leases.count


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_range_is_a_slice(client: Client, url: str, data: st.DataObject) -> None:
    border = st.sampled_from([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, SIZE - 1, SIZE, SIZE + 5])
    offset = data.draw(border | st.integers(0, SIZE + 10))
    length = data.draw(st.none() | border | st.integers(0, SIZE))
    expected = CONTENT[offset:] if length is None else CONTENT[offset : offset + length]
    assert client.read(url, offset, length) == expected
    buffer = bytearray(len(expected) + 3)
    assert client.read_into(url, memoryview(buffer)[: len(expected)], offset) == len(expected)
    assert buffer == expected + bytes(3)
    assert client.read_many([(url, offset, length), url]) == [expected, CONTENT]
    with client.view(url, offset, length) as view:
        assert b"".join(view.parts) == expected == b"".join(view)
        assert len(view) == len(expected)


def test_what_no_file_would_take_is_refused(client: Client, url: str) -> None:
    for offset, length in ((-1, 5), (0, -5)):
        with pytest.raises(errors.BadRequest, match="negative"):
            client.read(url, offset, length)
        with pytest.raises(errors.BadRequest, match="negative"):
            client.view(url, offset, length)
    with pytest.raises(errors.BadRequest, match="deadline_s"):
        client.read(url, deadline_s=0)
    with pytest.raises(errors.NotFound, match="nothing-here"):
        client.read(url + "-nothing-here")


def test_many_reads_keep_their_order_and_each_its_error(client: Client, url: str) -> None:
    asked = [(url, 5, 5), url + "-gone", (url, 0, 1), (url, -1, 2), (url, SIZE, 9)]
    found = client.read_many(asked, return_errors=True)
    assert [found[0], found[2], found[4]] == [CONTENT[5:10], CONTENT[:1], b""]
    assert isinstance(found[1], errors.NotFound)
    assert isinstance(found[3], errors.BadRequest)
    with pytest.raises(errors.NotFound):
        client.read_many(asked)


def test_a_hit_under_a_held_grant_sends_no_message(node: InProcessNode, near: Client, url: str) -> None:
    near.read(url)
    waits = near.stats().wait_s
    origin, granted = near.stats().hits["origin"], near.stats().hits["shared memory"]
    for _ in range(50):
        assert near.read(url, BLOCK, 10) == CONTENT[BLOCK : BLOCK + 10]
        near.read_many([(url, 0, 3), (url, 2 * BLOCK, 3)])
        with near.view(url, 3, 4):
            pass
    assert near.stats().wait_s == waits
    assert near.stats().hits["shared memory"] - granted == 200
    assert near.stats().hits["origin"] == origin
    # ... and yet the node hears of the hits, so that eviction can see them.
    waiting.until(lambda: node.node.counters.granted_hits >= 200, "touches reported")


def test_a_view_keeps_its_lease_as_long_as_anything_looks(node: InProcessNode, near: Client, url: str) -> None:
    with near.view(url, BLOCK, 100) as view:
        array = view.numpy()
        kept = view.memory[10:20]
    assert view.parts == []
    assert not array.flags.writeable and kept.readonly
    assert near.evict(url) == 1
    with node.node.step() as state:
        used = state.dram.slabs.used_bytes
    assert used >= BLOCK, "the slot was freed under a live view"
    assert bytes(kept) == CONTENT[BLOCK + 10 : BLOCK + 20]
    del kept
    assert np.array_equal(array, np.frombuffer(CONTENT[BLOCK : BLOCK + 100], np.uint8))
    del array, view
    gc.collect()
    near.close()
    waiting.until(lambda: node.node.state.dram.slabs.used_bytes == 0, "the slot of the evicted block is free")


def test_closing_a_client_does_not_pull_memory_away(node: InProcessNode, url: str) -> None:
    node.spoil_freed_slots()
    client = shoal.connect(node.address)
    view = client.view(url, 0, 50).memory
    client.close()
    other = shoal.connect(node.address)
    other.evict(url)
    assert bytes(view) == CONTENT[:50]
    assert leases(node) > 0
    del view
    gc.collect()
    waiting.until(lambda: leases(node) == 0, "the lease ended with the last view")
    with pytest.raises(errors.Closed):
        client.read(url)
    client.close()
    other.close()


def test_beyond_the_lease_limit_views_are_copies(in_process_node: MakeInProcess, url: str) -> None:
    node = in_process_node({"leases": {"client_bytes_max": 2 * BLOCK}})
    with shoal.connect(node.address) as client:
        views = [client.view(url, block * BLOCK, BLOCK) for block in range(5)]
        assert [view.zero_copy for view in views].count(True) == 2
        assert [bytes(view.memory) for view in views] == [CONTENT[b * BLOCK : (b + 1) * BLOCK] for b in range(5)]
        assert node.node.counters.fallbacks["lease_limit"] >= 3
        del views
        gc.collect()
        # Idle grants give way to new ones, oldest first.
        for block in range(5):
            assert client.read(url, block * BLOCK, 9) == CONTENT[block * BLOCK : block * BLOCK + 9]
        assert leases(node) <= 2
    node.check()


def test_the_range_of_several_blocks_is_not_one_memory(near: Client, url: str) -> None:
    with near.view(url, BLOCK - 5, 10) as view:
        assert len(view.parts) == 2
        with pytest.raises(errors.BadRequest, match="2 blocks"):
            _ = view.memory


def test_a_writable_tensor_is_never_made_of_shared_memory(near: Client, url: str) -> None:
    torch = pytest.importorskip("torch")
    with near.view(url, 0, 64) as view:
        tensor = view.torch_readonly()
        assert bytes(tensor.numpy()) == CONTENT[:64]
        with pytest.raises(TypeError):
            view.memory[0] = 1
    owned = torch.frombuffer(bytearray(near.read(url, 0, 64)), dtype=torch.uint8)
    owned += 1  # memory that read() gave belongs to the caller


def test_threads_read_right_bytes_while_a_small_cache_turns_over(in_process_node: MakeInProcess, url: str) -> None:
    node = in_process_node({"dram": {"budget_bytes": "1MiB"}})
    node.spoil_freed_slots()
    failures: list[BaseException] = []

    def work(seed: int, address: str) -> None:
        chance = random.Random(seed)
        try:
            with shoal.connect(address) as client:
                for _ in range(80):
                    offset, length = chance.randrange(SIZE), chance.choice([3, 5000, 3 * BLOCK])
                    expected = CONTENT[offset : offset + length]
                    match chance.randrange(4):
                        case 0:
                            with client.view(url, offset, length) as view:
                                assert b"".join(view.parts) == expected
                        case 1:
                            client.evict(url)
                        case _:
                            assert client.read(url, offset, length) == expected
        except BaseException as error:
            failures.append(error)

    addresses = [node.address, node.address, node.tcp_address, node.address]
    threads = [threading.Thread(target=work, args=(seed, address)) for seed, address in enumerate(addresses)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    waiting.until(lambda: leases(node) == 0, "all leases ended")
    node.check()


def _child(client: Client, url: str, results: multiprocessing.SimpleQueue[bool]) -> None:
    results.put(client.read(url, 3, BLOCK) == CONTENT[3 : 3 + BLOCK])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_process_connects_for_itself(node: InProcessNode, near: Client, url: str, method: str) -> None:
    with near.view(url, 0, 10) as view:
        context = multiprocessing.get_context(method)
        results = context.SimpleQueue()
        child = context.Process(target=_child, args=(near, url, results))
        child.start()
        child.join(60)
        assert child.exitcode == 0 and results.get()
        # The child's end was the end of its leases, not of ours.
        waiting.until(lambda: len(node.node.state.leases.clients) == 1, "the child is gone")
        assert bytes(view.memory) == CONTENT[:10] and leases(node) >= 1
    assert near.read(url, 1, 1) == CONTENT[1:2]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_keep_its_parents_leases(node: InProcessNode, url: str) -> None:
    client = shoal.connect(node.address)
    client.read(url)
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        client.close()
        waiting.until(lambda: leases(node) == 0, "the parent's leases ended though the child lives")
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)
        for descriptor in (*ready, *go):
            os.close(descriptor)


def test_a_client_travels_as_its_address(near: Client, node: InProcessNode, url: str) -> None:
    with pickle.loads(pickle.dumps(near)) as copy:
        assert copy.address == near.address
        assert copy.read(url, 0, 9) == CONTENT[:9]
    with shoal.connect(node.memory) as in_process, pytest.raises(errors.BadRequest, match="memory door"):
        pickle.dumps(in_process)


def test_twins_for_event_loops(client: Client, url: str) -> None:
    async def use() -> None:
        many = await asyncio.gather(*(client.aread(url, block * BLOCK, 9) for block in range(5)))
        assert many == [CONTENT[b * BLOCK : b * BLOCK + 9] for b in range(5)]
        assert await client.aread_many([(url, 1, 2)]) == [CONTENT[1:3]]
        buffer = bytearray(4)
        assert await client.aread_into(url, buffer, 2) == 4 and buffer == CONTENT[2:6]
        assert (await client.ainfo(url)).size == SIZE
        assert [found.size for found in await client.alist(url.rpartition("/")[0])] == [SIZE]
        with await client.aopen(url) as opened, await client.aview(url, 0, 3) as view:
            assert opened.read(3) == bytes(view.memory) == CONTENT[:3]

    asyncio.run(use())


def test_an_object_keeps_its_version(near: Client, url: str, tmp_path: Path) -> None:
    info = near.info(url)
    near.read(info, 0, BLOCK)
    (tmp_path / "object").write_bytes(b"other")
    assert near.read(info, 5, 5) == CONTENT[5:10], "what is cached of a version stays that version"
    with pytest.raises(errors.ObjectChanged, match="object"):
        near.read(info, 3 * BLOCK, 5)
    assert near.read(url) == b"other", "the next open asks anew"


def test_names_of_datasets(near: Client, url: str) -> None:
    folder = url.rpartition("/")[0]
    near.declare_dataset("images", folder, eviction="epoch", quota_bytes=1 << 20)
    assert near.read("shoal://images/object", 5, 5) == CONTENT[5:10]
    assert [found.url for found in near.list("shoal://images")] == ["shoal://images/object"]
    with pytest.raises(errors.NotFound, match=r"no dataset named 'other'.*images"):
        near.read("shoal://other/object")
    with pytest.raises(errors.BadRequest, match="none of s3fifo"):
        near.declare_dataset("x", folder, eviction="lru")


def test_what_is_cached_is_told(near: Client, url: str) -> None:
    assert near.inspect([url])[0].block_count == 0
    near.read(url, 0, BLOCK + 1)
    assert near.inspect([url])[0].block_count == 2
    assert near.inspect([url])[0].dram_bytes == 2 * BLOCK
    near.prefetch(url, 2 * BLOCK)
    waiting.until(lambda: near.inspect([url])[0].block_count == 6, "prefetched")
    assert near.evict(url) == 6
    assert near.inspect([url])[0].block_count == 0
    stats = near.node_stats()
    assert stats["fill_bytes"] == SIZE


def test_who_reads_block_by_block_asks_once_for_many(node: InProcessNode, near: Client, url: str) -> None:
    near.read(url)
    with shoal.connect(node.address) as second:
        for block in range(5):
            with second.view(url, block * BLOCK, BLOCK) as view:
                assert view.memory == CONTENT[block * BLOCK : (block + 1) * BLOCK]
        # The first two were asked for; the rest came with the second.
        assert node.node.counters.reads["shared_memory"][0] == 2
        assert leases(node) == 12
        assert second.evict(url) == 6


def test_what_is_not_in_memory_is_not_fetched_on_suspicion(node: InProcessNode, near: Client, url: str) -> None:
    for block in (0, 1, 2):
        near.read(url, block * BLOCK, 10)
    assert node.node.counters.fill_bytes == 3 * BLOCK
