"""What every door promises of several requests under way at once, and of many views received together."""

import random

import pytest

from shoal_core.errors import NodeGone, ProtocolError
from tests.contract.doors import Beside, Door, reply, soon

KIND = 9


def test_replies_come_in_the_order_of_what_was_posted(door: Door) -> None:
    channel, connection = door.pair()
    for tag in (b"first", b"second", b"third"):
        channel.post(KIND, tag, soon())
    received = [connection.receive() for _ in range(3)]
    for got in received:
        assert got is not None
        header, body = got
        connection.send(reply(header, body * 2, 4), [memoryview(body[:4])])
    for tag in (b"first", b"second", b"third"):
        header, body = channel.take(soon())
        assert (body, header.payload_bytes) == (tag * 2, 4)
        assert channel.receive(4, soon()) == tag[:4]


def test_a_reply_out_of_its_turn_breaks_the_channel(door: Door) -> None:
    channel, connection = door.pair()
    channel.post(KIND, b"first", soon())
    channel.post(KIND, b"second", soon())
    connection.receive()
    second = connection.receive()
    assert second is not None
    connection.send(reply(second[0], b""))
    with pytest.raises(ProtocolError, match="request 2, expected 1"):
        channel.take(soon())
    assert channel.broken


@pytest.mark.parametrize("count", [1, 2, 700])
def test_views_are_filled_one_after_the_other(door: Door, count: int) -> None:
    """More views than one system call takes, of sizes that cut across what was sent."""
    chance = random.Random(count)
    sizes = [chance.randrange(1, 3000) for _ in range(count)]
    payload = chance.randbytes(sum(sizes))
    channel, connection = door.pair()
    channel.post(KIND, b"", soon())
    got = connection.receive()
    assert got is not None
    half = len(payload) // 2
    views = [memoryview(payload)[:half], memoryview(payload)[half:]]
    sending = Beside(lambda: connection.send(reply(got[0], b"", len(payload)), views))
    channel.take(soon())
    targets = [bytearray(b"\xff" * (size + 1)) for size in sizes]
    channel.receive_each([memoryview(target)[:-1] for target in targets], soon())
    sending.result()
    assert b"".join(target[:-1] for target in targets) == payload
    assert all(target[-1] == 0xFF for target in targets)


def test_a_node_that_goes_among_the_views(door: Door) -> None:
    channel, connection = door.pair()
    channel.post(KIND, b"", soon())
    got = connection.receive()
    assert got is not None
    connection.send(reply(got[0], b"", 100), [memoryview(bytes(60))])
    connection.close()
    channel.take(soon())
    with pytest.raises(NodeGone):
        channel.receive_each([memoryview(bytearray(50)), memoryview(bytearray(50))], soon())
    assert channel.broken
