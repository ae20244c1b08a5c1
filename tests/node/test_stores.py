"""Stores: blocks of derived objects come in, are verified and published once, and nothing else can be stored."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shoal
from shoal import derived, errors
from shoal.objects import ObjectInfo
from shoal_core import index, keys
from shoal_core.verbs import resolve, store
from shoal_node import stores
from tests.support import waiting
from tests.support.running_node import InProcessNode, MakeInProcess

BLOCK = 64 << 10


@pytest.fixture
def node(in_process_node: MakeInProcess) -> InProcessNode:
    return in_process_node({"dram": {"budget_bytes": "8MiB"}})


@pytest.fixture(params=["memory", "unix", "tcp"])
def client(node: InProcessNode, request: pytest.FixtureRequest) -> Iterator[shoal.Client]:
    addresses = {"memory": node.memory, "unix": node.address, "tcp": node.tcp_address}
    with shoal.connect(addresses[request.param]) as client:
        yield client


def claimed(client: shoal.Client, size: int, etag: str = "1") -> ObjectInfo:
    (info,) = derived.claims(client, [resolve.Wanted("derived:test", size, etag)])
    return info


def stored(client: shoal.Client, info: ObjectInfo, block: int, data: bytes) -> bool:
    request = store.Request(info.fingerprint, block, data, 10_000)
    return client.session.call(store.KIND, request, waiting.deadline()).stored


def test_what_was_stored_is_read_and_stored_once(node: InProcessNode, client: shoal.Client) -> None:
    data = os.urandom(2 * BLOCK + 777)
    info = claimed(client, len(data))
    parts = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
    assert [stored(client, info, block, part) for block, part in enumerate(parts)] == [True] * 3
    assert client.read(info) == data
    assert not stored(client, info, 1, os.urandom(BLOCK)), "what is there stays as it is"
    assert client.read(info) == data
    with shoal.connect(node.tcp_address) as other:  # which checks the digests
        assert other.read(info, BLOCK - 5, 10) == data[BLOCK - 5 : BLOCK + 5]
        assert other.stats().corrupt_pages == 0
    status = client.node_stats()
    assert status["fills"]["derived"]["ok"] == 3
    assert status["origin_requests"] == 0


def test_what_was_not_stored_is_not_there(client: shoal.Client) -> None:
    info = claimed(client, 2 * BLOCK)
    assert stored(client, info, 0, bytes(BLOCK))
    assert client.read(info, 0, BLOCK) == bytes(BLOCK)
    with pytest.raises(errors.NotFound, match="derived:test: not in the cache"):
        client.read(info)
    with pytest.raises(errors.NotFound, match="no origin"):
        client.read("derived:test")
    assert client.stats().fallbacks == 0


@pytest.mark.parametrize(("block", "size"), [(0, BLOCK - 1), (1, BLOCK), (2, 1), (-1, BLOCK), (0, 0)])
def test_what_is_no_block_is_refused(client: shoal.Client, block: int, size: int) -> None:
    info = claimed(client, BLOCK + 100)
    with pytest.raises(errors.BadRequest, match="are not block"):
        stored(client, info, block, bytes(size))


def test_nobody_says_what_an_origin_has(client: shoal.Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"what it says")
    info = client.info(f"file://{tmp_path}/file")
    with pytest.raises(errors.BadRequest, match="has an origin"):
        stored(client, info, 0, b"what I say..")
    assert client.read(info) == b"what it says"


def test_an_object_that_the_node_does_not_know_is_unknown(client: shoal.Client) -> None:
    with pytest.raises(errors.UnknownObject):
        client.session.call(store.KIND, store.Request(bytes(16), 0, b"x", 1000), waiting.deadline())


def test_of_many_who_store_one_block_one_does(node: InProcessNode) -> None:
    data = os.urandom(BLOCK)
    clients = [shoal.connect(node.address) for _ in range(8)]
    infos = [claimed(client, BLOCK) for client in clients]
    start = threading.Barrier(8)

    def put(client: shoal.Client, info: ObjectInfo) -> bool:
        start.wait(10)
        return stored(client, info, 0, data)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(put, clients, infos)) == 1
    assert all(client.read(info) == data for client, info in zip(clients, infos, strict=True))
    for client in clients:
        client.close()


def test_a_store_that_is_given_up_leaves_nothing(node: InProcessNode) -> None:
    with shoal.connect(node.memory) as client:
        info = claimed(client, BLOCK)

    async def cancelled() -> None:
        task = asyncio.ensure_future(stores.put(node.node, store.Request(info.fingerprint, 0, bytes(BLOCK), 1000)))
        while node.node.state._unpublished == 0:  # noqa: ASYNC110 until it has a slot
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run_coroutine_threadsafe(cancelled(), node.loop).result(10)
    with node.node.step() as state:
        assert state.index.find(keys.block_key(info.fingerprint, 0)) == index.NONE
        assert state._unpublished == 0
        state.check()


def test_without_room_a_store_is_refused(in_process_node: MakeInProcess) -> None:
    node = in_process_node({"dram": {"budget_bytes": "1MiB"}})
    with shoal.connect(node.address) as client, shoal.connect(node.address) as other:
        info = claimed(client, 32 * BLOCK)
        with pytest.raises(errors.NoSpace):  # noqa: PT012 the views keep their blocks
            views = []
            for block in range(32):
                stored(client, info, block, bytes(BLOCK))
                views.append(other.view(info, block * BLOCK, BLOCK))
        assert client.node_stats()["fills"]["derived"]["NoSpace"] == 1
