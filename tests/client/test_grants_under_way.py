"""Grants and releases that pass each other on their ways: bytes are always right, and no lease is left behind.

The node overwrites every slot that becomes free, so whoever reads without a lease reads garbage.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import shoal
from shoal import errors
from shoal.client import Client
from shoal_core.verbs import get, hello, release
from tests.support import waiting
from tests.support.objects import MakeObject
from tests.support.running_node import InProcessNode, MakeInProcess
from tests.support.watched_door import WatchedDoor

BLOCK = 64 << 10


@pytest.fixture
def node(in_process_node: MakeInProcess) -> InProcessNode:
    node = in_process_node({"dram": {"budget_bytes": "2MiB"}})
    node.spoil_freed_slots()
    return node


@pytest.fixture
def door(node: InProcessNode) -> WatchedDoor:
    return WatchedDoor(node.memory)


@pytest.fixture
def client(door: WatchedDoor) -> Iterator[Client]:
    with shoal.connect(door) as client:
        yield client


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def leases(node: InProcessNode) -> int:
    with node.node.step() as state:
        return state.leases.count


def standing(node: InProcessNode) -> int:
    with node.node.step() as state:
        return sum(client.standing for client in state.leases.clients.values())


def ask_back_everything(node: InProcessNode) -> None:
    """As when room is needed: every client is asked for every lease it holds."""
    with node.node.step() as state:
        wanted = [(identity, list(client.entries.items())) for identity, client in state.leases.clients.items()]
    for identity, grants in wanted:
        if identity in node.node.events and grants:
            node.node.events[identity](grants)


def turn_over(node: InProcessNode, make_object: MakeObject) -> None:
    """Every slot that no lease protects is used for something else."""
    url, data = make_object(4 << 20, "turn-over")
    with shoal.connect(node.tcp_address) as other:
        assert other.read(url) == data


@pytest.mark.parametrize("how", ["read", "view"])
def test_asked_back_while_its_reply_is_under_way(
    node: InProcessNode,
    door: WatchedDoor,
    client: Client,
    beside: ThreadPoolExecutor,
    make_object: MakeObject,
    how: str,
) -> None:
    url, data = make_object(BLOCK)
    client.info(url)
    held = door.hold(get)
    reading = beside.submit(client.read if how == "read" else client.view, url)
    held.await_arrival()
    assert leases(node) == 1
    ask_back_everything(node)
    waiting.until(lambda: leases(node) == 0, "the client gave back what it had not seen yet")
    turn_over(node, make_object)
    held.let_go()
    found = reading.result(10)
    assert (found if how == "read" else bytes(found.memory)) == data
    assert door.count(get) == 2, "asked for again"
    assert client.read(url) == data
    assert leases(node) == 1


def test_a_release_that_arrives_after_the_block_was_granted_anew(
    node: InProcessNode, door: WatchedDoor, client: Client, make_object: MakeObject
) -> None:
    url, data = make_object(BLOCK)
    client.read(url)
    grants = client._grants
    with grants.lock:
        grants.forget_key(next(iter(grants.by_key)))
        late, _ = grants.report()
    assert len(late) == 1
    view = client.view(url)  # granted again, before the node heard of the release
    client._session.call(release.KIND, release.Request(late * 3, []), waiting.deadline())
    assert leases(node) == 1
    turn_over(node, make_object)
    assert view.memory == data


def test_a_grant_that_another_thread_gave_back_already(
    node: InProcessNode, door: WatchedDoor, client: Client, beside: ThreadPoolExecutor, make_object: MakeObject
) -> None:
    """Two ask for one block, each is granted it; the second has read and given it back when the first reply comes."""
    url, data = make_object(BLOCK)
    client.info(url)
    held = door.hold(get)
    first = beside.submit(client.view, url)
    held.await_arrival()
    assert client.read(url) == data
    ask_back_everything(node)
    waiting.until(lambda: leases(node) == 0, "given back")
    turn_over(node, make_object)
    held.let_go()
    assert first.result(10).memory == data


def test_a_reply_that_never_came_leaves_no_lease_for_ever(
    node: InProcessNode, door: WatchedDoor, client: Client, make_object: MakeObject
) -> None:
    url, data = make_object(BLOCK)
    client.info(url)
    door.fault(get, "lose")
    with pytest.raises(errors.DeadlineExceeded):
        client.read(url, deadline_s=0.2)
    assert leases(node) == 1
    ask_back_everything(node)
    waiting.until(lambda: leases(node) == 0, "the client gives back what it never heard of")
    assert client.read(url) == data


def test_a_release_that_was_lost_is_made_good(
    node: InProcessNode, door: WatchedDoor, client: Client, make_object: MakeObject
) -> None:
    url, _ = make_object(BLOCK)
    client.read(url)
    door.fault(release, "lose", "lose")
    with client._grants.lock:
        client._grants.forget_key(next(iter(client._grants.by_key)))
        lost, _ = client._grants.report()
    assert lost and leases(node) == 1
    ask_back_everything(node)
    waiting.until(lambda: leases(node) == 0, "the client says it again")


def test_a_connection_that_dies_takes_no_lease_of_older_views(
    node: InProcessNode, door: WatchedDoor, client: Client, make_object: MakeObject
) -> None:
    """The client starts over as somebody else; what it gives back then are not the leases its views hang on."""
    url, data = make_object(3 * BLOCK)
    view = client.view(url, 0, BLOCK)
    for channel in client._session.attachment._open:
        channel.close()
    door.fault(hello, "cut")  # the next request channel dies at once: the node seems gone
    assert client.read(url, BLOCK, BLOCK) == data[BLOCK : 2 * BLOCK]
    waiting.until(lambda: client.terms() is not None, "attached again")
    assert client.read(url) == data
    assert client.evict(url) == 3
    client._session.report(waiting.deadline())
    turn_over(node, make_object)
    assert view.memory == data[:BLOCK]
    waiting.until(lambda: standing(node) == 2, "one for the view, one for what comes")
    del view
    waiting.until(lambda: leases(node) == 0, "the first connection ended with its view")


def test_a_reply_to_an_attachment_that_is_over_is_not_believed(
    node: InProcessNode, door: WatchedDoor, client: Client, beside: ThreadPoolExecutor, make_object: MakeObject
) -> None:
    url, data = make_object(BLOCK)
    client.info(url)
    held = door.hold(get)
    reading = beside.submit(client.view, url)
    held.await_arrival()
    (send_revoke,) = node.node.events.values()
    send_revoke.__self__._connection.close()  # the node ends the events connection
    waiting.until(lambda: leases(node) == 0 and client.terms() is not None, "its leases are over, it attached again")
    turn_over(node, make_object)
    held.let_go()
    assert reading.result(10).memory == data
    assert door.count(get) == 2, "asked for again"
    assert client.read(url) == data


@pytest.mark.parametrize("seconds", [2.0])
def test_many_threads_over_a_tiny_cache(
    node: InProcessNode, client: Client, beside: ThreadPoolExecutor, make_object: MakeObject, seconds: float
) -> None:
    """Reads, views that outlive their `with`, evictions and revokes at once: every byte right, and all leases end."""
    objects = [make_object(size, f"object-{size}") for size in (BLOCK * 6, BLOCK * 11 + 5, 1000, BLOCK, 300_001)]
    stop = threading.Event()
    timer = threading.Timer(seconds, stop.set)

    def reader(number: int) -> int:
        import random

        rng = random.Random(number)
        kept: list[tuple[memoryview, bytes]] = []
        count = 0
        while not stop.is_set():
            url, data = objects[rng.randrange(len(objects))]
            start = rng.randrange(len(data))
            length = rng.choice([1, 100, BLOCK, 3 * BLOCK])
            expected = data[start : start + length]
            match rng.randrange(5):
                case 0:
                    with client.view(url, start, length) as view:
                        assert b"".join(view.parts) == expected
                        kept += [(part, bytes(part)) for part in view.parts]
                    kept = kept[-rng.randrange(4) :]
                case 1 if count % 20 == 0:
                    client.evict(url)
                case 2:
                    wanted = [(url, start, length)] * 3
                    assert client.read_many(wanted) == [expected] * 3
                case _:
                    assert client.read(url, start, length) == expected
            assert all(part == copy for part, copy in kept)
            count += 1
        return count

    timer.start()
    with shoal.connect(node.address) as second:
        workers = [beside.submit(reader, number) for number in range(4)]
        while not stop.wait(0.02):
            ask_back_everything(node)
            url, data = objects[1]
            assert second.read(url) == data
        assert all(worker.result(20) > 10 for worker in workers)
    client.close()
    waiting.until(lambda: leases(node) == 0, "all leases ended")
