"""A client and the connection to its node: whatever is lost on the way, reads are right, and what can be is put right.

Replies are spoiled one by one at the memory door; the node is real.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shoal
from shoal import errors
from shoal.client import Client
from shoal_core.verbs import complain, get, hello, map, resolve
from tests.support import waiting
from tests.support.http_origin import HttpOrigin
from tests.support.objects import MakeObject
from tests.support.running_node import InProcessNode, MakeInProcess, MakeProcess
from tests.support.watched_door import WatchedDoor

BLOCK = 64 << 10


@pytest.fixture
def node(in_process_node: MakeInProcess) -> InProcessNode:
    return in_process_node({"dram": {"budget_bytes": "8MiB"}, "leases": {"client_bytes_max": 0}})


@pytest.fixture
def door(node: InProcessNode) -> WatchedDoor:
    return WatchedDoor(node.memory)


@pytest.fixture
def client(door: WatchedDoor) -> Iterator[Client]:
    """Of a node that lends nothing: bytes come through the connection, where they can be spoiled."""
    with shoal.connect(door, deadline_s=15) as client:
        yield client


def open_segments() -> int:
    """Descriptors of segments in this process, which is both ends."""
    gc.collect()
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sum("shoal-segment" in link for link in links)


# Bytes that are wrong.


def test_one_flipped_bit_is_found_complained_of_and_asked_for_again(
    client: Client, door: WatchedDoor, make_object: MakeObject
) -> None:
    url, data = make_object(BLOCK)
    client.read(url)
    door.fault(get, "flip")
    assert client.read(url) == data
    stats = client.stats()
    assert (stats.corrupt_pages, stats.fallbacks) == (1, 0)
    assert door.count(complain) == 1
    assert client.inspect([url])[0].block_count == 1, "the node's copy was good, so it stays"


def test_flipped_twice_the_origin_is_read(client: Client, door: WatchedDoor, make_object: MakeObject) -> None:
    url, data = make_object(BLOCK)
    client.read(url)
    door.fault(get, "flip", "flip")
    assert client.read(url) == data
    stats = client.stats()
    assert (stats.corrupt_pages, stats.fallbacks, stats.hits["direct"]) == (2, 1, 1)


@pytest.mark.parametrize("length", [1, 100, 4096, BLOCK, 3 * BLOCK, 10 * BLOCK + 5])
def test_no_flip_gets_through_whatever_the_range(
    client: Client, door: WatchedDoor, make_object: MakeObject, length: int
) -> None:
    url, data = make_object(11 * BLOCK)
    client.read(url)
    for offset in (0, 1, BLOCK - 1, BLOCK + 4096):
        expected = data[offset : offset + length]
        door.fault(get, "flip")
        assert client.read(url, offset, length) == expected
        door.fault(get, "flip")
        with client.view(url, offset, length) as view:
            assert b"".join(view.parts) == expected
        door.fault(get, "flip")
        assert client.read_many([(url, offset, length), (url, 0, 5)]) == [expected, data[:5]]
    assert client.stats().corrupt_pages >= 12


def test_a_complaint_that_fails_sends_the_reader_to_the_origin(
    client: Client, door: WatchedDoor, make_object: MakeObject
) -> None:
    url, data = make_object(BLOCK)
    client.read(url)
    door.fault(get, "flip")
    door.fault(complain, "cut")
    assert client.read(url) == data
    assert client.stats().hits["direct"] == 1


# Connections that end.


@pytest.mark.parametrize("fault", ["cut", "half", "garbage"])
@pytest.mark.parametrize("verb", [get, resolve, hello])
def test_a_reply_that_does_not_come_whole(
    client: Client, door: WatchedDoor, make_object: MakeObject, fault: str, verb: object
) -> None:
    """Before the first read, and when all is warm: right bytes, whatever way they took."""
    url, data = make_object(3 * BLOCK)
    door.fault(verb, fault)  # type: ignore[arg-type]
    assert client.read(url) == data
    waiting.until(lambda: client.terms() is not None, "connected again")
    assert client.read(url) == data
    door.fault(verb, fault)  # type: ignore[arg-type]
    assert client.read(url) == data
    other, other_data = make_object(BLOCK, "other")
    waiting.until(lambda: client.terms() is not None, "connected again")
    assert client.read(other) == other_data


def test_a_reply_that_is_lost_costs_the_deadline_and_one_connection(
    client: Client, door: WatchedDoor, make_object: MakeObject
) -> None:
    url, data = make_object(BLOCK)
    client.read(url)
    door.fault(get, "lose")
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        client.read(url, deadline_s=0.3)
    assert 0.25 < time.monotonic() - started < 2
    assert client.read(url) == data
    assert door.count(hello) == 3, "events, the channel that was lost, and its successor"


def test_channels_are_kept_and_used_again(client: Client, door: WatchedDoor, make_object: MakeObject) -> None:
    url, data = make_object(2 * BLOCK)
    for _ in range(10):
        assert client.read(url) == data
    assert door.count(hello) == 2
    with ThreadPoolExecutor(8) as pool:
        assert all(read == data for read in pool.map(lambda _: client.read(url), range(64)))
    assert door.count(hello) <= 10


def test_channels_that_died_alone_are_replaced_without_a_word(
    client: Client, node: InProcessNode, make_object: MakeObject, caplog: pytest.LogCaptureFixture
) -> None:
    url, data = make_object(BLOCK)
    client.read(url)
    events = {send.__self__._connection for send in node.node.events.values()}
    for connection in list(node.server._connections):
        if connection not in events:
            connection.close()
    assert client.read(url) == data
    assert client.stats().fallbacks == 0 and not caplog.records


def test_a_segment_is_mapped_once_and_its_descriptor_closed(
    in_process_node: MakeInProcess, make_object: MakeObject
) -> None:
    before = open_segments()
    node = in_process_node({"dram": {"budget_bytes": "8MiB"}})
    door = WatchedDoor(node.memory)
    url, data = make_object(3 << 20)
    with shoal.connect(door) as client:
        for _ in range(3):
            assert client.read(url) == data
        assert 1 <= door.count(map) <= len(node.node.segments)
        # The node's own, the one its map keeps, and the one that the client's map keeps.
        waiting.until(lambda: open_segments() <= before + 2 * len(node.node.segments) + door.count(map))


def test_a_map_reply_without_its_descriptor_is_no_segment(
    in_process_node: MakeInProcess, make_object: MakeObject
) -> None:
    node = in_process_node({"dram": {"budget_bytes": "8MiB"}})
    door = WatchedDoor(node.memory)
    url, data = make_object(BLOCK)
    with shoal.connect(door) as client:
        for fault in ("cut", "garbage", "half"):
            door.fault(map, fault)
            assert client.read(url) == data
            waiting.until(lambda: client.terms() is not None)
        assert client.read(url) == data


def test_objects_that_the_node_forgot_are_named_again(
    client: Client, node: InProcessNode, door: WatchedDoor, http_origin: HttpOrigin
) -> None:
    data = os.urandom(2 * BLOCK)
    url = http_origin.put("/data", data)
    assert client.read(url) == data
    with node.node.step() as state:
        state.objects._records.clear()
    assert client.read(url) == data
    assert http_origin.count("/data", "HEAD") == 1, "the client knew size and version"
    with node.node.step() as state:
        state.objects._records.clear()
    assert client.inspect([url])[0].block_count == 2
    with node.node.step() as state:
        state.objects._records.clear()
    assert client.evict(url) == 2


# Nodes that go and come.


def test_nobody_there_is_asked_again_only_after_a_while(tmp_path: Path, make_object: MakeObject) -> None:
    url, data = make_object(1000)
    client = shoal.connect(f"unix:{tmp_path}/nobody")
    assert client.read(url) == data
    assert client.terms() is None
    with pytest.raises(errors.NodeGone):
        client.node_stats()
    started = time.monotonic()
    for _ in range(20):
        assert client.read(url) == data
    assert time.monotonic() - started < 5
    client.close()


def test_a_node_that_comes_back_is_used_again(node_process: MakeProcess, make_object: MakeObject) -> None:
    node = node_process()
    url, data = make_object(2 * BLOCK)
    client = shoal.connect(node.address)
    view = client.view(url, 0, BLOCK)
    first = client.terms()
    node.kill()
    assert client.read(url, BLOCK, 10) == data[BLOCK : BLOCK + 10]
    assert view.memory == data[:BLOCK]
    node.start()
    waiting.until(lambda: client.terms() is not None, "found again")
    assert client.terms().pid == node.pid != first.pid
    direct = client.stats().hits["direct"]
    assert client.read(url) == data and client.stats().hits["direct"] == direct
    assert view.memory == data[:BLOCK], "of the dead node's memory, which nobody writes to"
    client.close()


def test_whoever_waits_for_a_connection_waits_no_longer_than_its_own_deadline(tmp_path: Path) -> None:
    """A node that accepts and says nothing holds the one who connects, not everybody behind it."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/s")
        silent.listen(10)
        client = shoal.connect(f"unix:{tmp_path}/s")
        with ThreadPoolExecutor(2) as pool:
            patient = pool.submit(client.info, "file:///nothing", deadline_s=2)
            waiting.until(client._session._connecting.locked, "the patient one is connecting")
            started = time.monotonic()
            with pytest.raises(errors.DeadlineExceeded):
                client.info("file:///nothing", deadline_s=0.2)
            assert time.monotonic() - started < 1.5
            with pytest.raises(errors.DeadlineExceeded):
                patient.result(10)
        client.close()


def test_interrupted_in_the_middle_of_a_reply(client: Client, door: WatchedDoor, make_object: MakeObject) -> None:
    """Ctrl-C: what was under way on that channel is taken for nothing else."""
    import _thread

    url, data = make_object(BLOCK)
    client.read(url)
    held = door.hold(get)
    interrupter = threading.Thread(target=lambda: (held.await_arrival(), _thread.interrupt_main(), held.let_go()))
    interrupter.start()
    try:
        for _ in range(1000):
            assert client.read(url) == data
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
    interrupter.join()
    assert interrupted
    for _ in range(5):
        assert client.read(url) == data
