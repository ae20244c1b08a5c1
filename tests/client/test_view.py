"""Views over a real node: memory that stays what it was for as long as anything made from it lives, and is free then.

Slots that become free are overwritten at once, so bytes that are still right are bytes that a lease protects.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

import shoal
from shoal import errors
from shoal.client import Client
from shoal_core.verbs import complain, evict, get, listing, release, resolve
from tests.support import waiting
from tests.support.objects import MakeObject
from tests.support.running_node import InProcessNode, MakeInProcess
from tests.support.watched_door import WatchedDoor

BLOCK = 64 << 10


@pytest.fixture
def node(in_process_node: MakeInProcess) -> InProcessNode:
    node = in_process_node({"dram": {"budget_bytes": "4MiB"}, "leases": {"client_bytes_max": 8 * BLOCK}})
    node.spoil_freed_slots()
    return node


@pytest.fixture(params=["memory", "unix"])
def client(request: pytest.FixtureRequest, node: InProcessNode) -> Iterator[Client]:
    with shoal.connect(node.memory if request.param == "memory" else node.address) as connected:
        yield connected


def turn_over(node: InProcessNode, make_object: MakeObject) -> None:
    """Another client reads more than the cache holds."""
    url, data = make_object(8 << 20, "turn-over")
    with shoal.connect(node.tcp_address) as other:
        assert other.read(url) == data


def leases(node: InProcessNode) -> int:
    with node.node.step() as state:
        return state.leases.count


def test_a_view_is_the_nodes_memory_and_reads_only(
    client: Client, node: InProcessNode, make_object: MakeObject
) -> None:
    url, data = make_object(BLOCK + 1000)
    with client.view(url, 10, 1000) as view:
        assert view.zero_copy and view.memory == data[10:1010]
        with pytest.raises(TypeError):
            view.memory[0] = 0
        with node.node.step() as state:
            address = state.address(next(iter(next(iter(state.leases.clients.values())).entries)))
        node.node.segments[address[0]].memory[address[1] + 10] ^= 0xFF
        assert view.memory[0] == data[10] ^ 0xFF, "not a copy"
        node.node.segments[address[0]].memory[address[1] + 10] ^= 0xFF


def test_ranges_over_blocks_come_in_parts(client: Client, make_object: MakeObject) -> None:
    url, data = make_object(3 * BLOCK)
    for _ in range(2):
        with client.view(url, BLOCK - 5, BLOCK + 10) as view:
            assert [len(part) for part in view] == [5, BLOCK, 5] and b"".join(view.parts) == data[
                BLOCK - 5 : 2 * BLOCK + 5
            ]
            with pytest.raises(errors.BadRequest, match="3 blocks"):
                _ = view.memory
            with pytest.raises(errors.BadRequest, match="3 blocks"):
                view.numpy()


def test_leaving_the_block_gives_the_lease_back_when_it_is_asked_for(
    client: Client, node: InProcessNode, make_object: MakeObject
) -> None:
    url, data = make_object(BLOCK)
    with client.view(url) as view:
        turn_over(node, make_object)
        assert view.memory == data and leases(node) == 1
    assert view.parts == []
    turn_over(node, make_object)
    waiting.until(lambda: leases(node) == 0, "it went back")
    assert client.read(url) == data


@pytest.mark.parametrize("kind", ["slice", "array", "tensor", "cast"])
def test_what_was_made_from_a_view_keeps_the_lease(
    client: Client, node: InProcessNode, make_object: MakeObject, kind: str
) -> None:
    url, data = make_object(BLOCK)
    with client.view(url) as view:
        if kind == "slice":
            kept, content = view.memory[5:][:100], data[5:105]
        elif kind == "array":
            pytest.importorskip("numpy")
            array = view.numpy()
            assert not array.flags.writeable
            kept, content = array[5:105].reshape(10, 10), data[5:105]
        elif kind == "tensor":
            pytest.importorskip("torch")
            kept, content = view.torch_readonly()[5:105], data[5:105]
        else:
            kept, content = view.memory.cast("I")[:25], data[:100]
    del view
    if kind == "array":
        del array
    gc.collect()
    client.evict(url)
    turn_over(node, make_object)
    shown = bytes(kept.numpy()) if kind == "tensor" else kept.tobytes()
    assert shown == content
    assert leases(node) == 1
    del kept
    gc.collect()
    waiting.until(lambda: leases(node) == 0, "the last of it is gone, and so is the lease")


def test_views_outlive_their_client(client: Client, node: InProcessNode, make_object: MakeObject) -> None:
    url, data = make_object(2 * BLOCK)
    first, second = client.view(url, 0, 100), client.view(url, BLOCK, 100)
    client.read(url)
    client.close()
    turn_over(node, make_object)
    assert (first.memory, second.memory) == (data[:100], data[BLOCK : BLOCK + 100])
    first.close()
    turn_over(node, make_object)
    assert second.memory == data[BLOCK : BLOCK + 100]
    second.close()
    waiting.until(lambda: not node.node.state.leases.clients, "its connection went with the last view")


def test_a_client_that_is_dropped_goes_with_its_last_view(node: InProcessNode, make_object: MakeObject) -> None:
    url, data = make_object(BLOCK)
    client = shoal.connect(node.address)
    view = client.view(url)
    del client
    gc.collect()
    turn_over(node, make_object)
    assert view.memory == data
    del view
    gc.collect()
    waiting.until(lambda: not node.node.state.leases.clients, "nobody is left")


def test_beyond_the_lease_limit_views_are_copies(client: Client, node: InProcessNode, make_object: MakeObject) -> None:
    url, data = make_object(12 * BLOCK)
    views = [client.view(url, start, BLOCK) for start in range(0, len(data), BLOCK)]
    assert [view.zero_copy for view in views].count(True) == 8
    assert leases(node) == 8
    assert b"".join(view.memory for view in views) == data
    turn_over(node, make_object)
    assert b"".join(view.memory for view in views) == data
    copied = next(view for view in views if not view.zero_copy)
    with pytest.raises(TypeError):
        copied.memory[0] = 1
    assert client.node_stats()["fallbacks"]["lease_limit"] >= 4
    with client.view(url) as whole:
        assert b"".join(whole.parts) == data and not whole.zero_copy
    del views, copied
    gc.collect()
    again = [client.view(url, start, BLOCK) for start in range(0, 4 * BLOCK, BLOCK)]
    assert all(view.zero_copy for view in again), "there is room again"


def test_over_tcp_views_are_copies(node: InProcessNode, make_object: MakeObject) -> None:
    url, data = make_object(2 * BLOCK)
    with shoal.connect(node.tcp_address) as client, client.view(url) as view:
        assert b"".join(view.parts) == data and not view.zero_copy
        assert all(part.readonly for part in view)
        assert leases(node) == 0


# What a hit costs: nothing but memory.


@pytest.fixture
def door(node: InProcessNode) -> WatchedDoor:
    return WatchedDoor(node.memory)


def test_hits_under_a_grant_send_no_message(door: WatchedDoor, node: InProcessNode, make_object: MakeObject) -> None:
    url, data = make_object(4 * BLOCK)
    with shoal.connect(door) as client:
        client.read(url)
        before = door.count(get, resolve, listing, evict, complain)
        buffer = bytearray(100)
        for start in range(0, len(data), 1000):
            block_end = (start // BLOCK + 1) * BLOCK
            length = min(1000, block_end - start)
            assert client.read(url, start, length) == data[start : start + length]
            with client.view(url, start, length) as view:
                assert view.memory == data[start : start + length]
            assert client.read_many([(url, start, 5), (url, start, length)])[0] == data[start : start + 5]
            assert client.read_into(url, buffer, start) == len(data[start : start + 100])
        assert client.read(url) == data and client.read_many([url]) == [data]
        assert door.count(get, resolve, listing, evict, complain) == before
        assert client.stats().fallbacks == 0


def test_hits_are_reported_so_that_eviction_sees_them(
    door: WatchedDoor, node: InProcessNode, make_object: MakeObject
) -> None:
    url, _ = make_object(BLOCK)
    with shoal.connect(door) as client:
        client.read(url)
        for _ in range(50):
            client.read(url, 0, 10)
        waiting.until(lambda: node.node.counters.granted_hits >= 50, "told within a tick or two", 5)
        assert node.node.counters.granted_hits == 50
        assert door.count(release) >= 1


def test_a_block_that_was_hit_under_a_grant_outlives_others_when_the_grant_is_gone(
    node: InProcessNode, make_object: MakeObject
) -> None:
    """The node never saw these reads but in the reports."""
    (hot, _), (cold, _) = make_object(4 * BLOCK, "hot"), make_object(4 * BLOCK, "cold")
    with shoal.connect(node.address) as client:
        client.read(hot)
        client.read(cold)
        for _ in range(3):
            client.read(hot)
        client._session.report(waiting.deadline())
    waiting.until(lambda: leases(node) == 0, "nothing protects them but the order of eviction")
    flood, _ = make_object(5 << 20, "flood")
    with shoal.connect(node.tcp_address) as other:
        other.read(flood)
        assert [found.block_count for found in other.inspect([hot, cold])] == [4, 0]


def test_two_clients_hold_the_same_block(client: Client, node: InProcessNode, make_object: MakeObject) -> None:
    url, data = make_object(BLOCK)
    with shoal.connect(node.address) as other:
        mine, theirs = client.view(url), other.view(url)
        assert leases(node) == 2
        theirs.close()
        other.close()
        turn_over(node, make_object)
        assert mine.memory == data
        waiting.until(lambda: leases(node) == 1)
