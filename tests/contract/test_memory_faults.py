"""The memory door's fault plan: each fault is to the client what its name says."""

import pytest

from shoal_core import frame
from shoal_core.errors import NodeGone, ProtocolError
from shoal_transport.interface import Channel, Connection
from shoal_transport.memory import MemoryListener
from tests.contract.doors import answering, assert_broken, assert_ends_in_time, soon

KIND = 9


def planned(fault: str | None, at: int = 0) -> tuple[Channel, Connection]:
    listener = MemoryListener()
    channel = listener.connect(lambda number, kind: fault if number == at else None)
    connection = listener.accept()
    assert connection is not None
    return channel, connection


def test_a_plan_sees_the_number_and_the_kind_of_each_reply() -> None:
    seen: list[tuple[int, int]] = []
    listener = MemoryListener()
    channel = listener.connect(lambda number, kind: seen.append((number, kind)))
    connection = listener.accept()
    assert connection is not None
    answering(connection)
    for kind in (3, 5):
        channel.call(kind, b"", soon())
    assert seen == [(0, 3 | frame.REPLY), (1, 5 | frame.REPLY)]


def test_a_lost_reply_is_a_deadline() -> None:
    channel, connection = planned("lose")
    answering(connection)
    assert_ends_in_time(lambda deadline: channel.call(KIND, b"", deadline), 0.1)
    assert_broken(channel)


@pytest.mark.parametrize("fault", ["cut", "half"])
def test_a_cut_connection_is_a_node_that_is_gone(fault: str) -> None:
    channel, connection = planned(fault, at=1)
    answering(connection)
    channel.call(KIND, b"the first is well", soon())
    with pytest.raises(NodeGone):
        channel.call(KIND, b"body", soon())
    assert_broken(channel)


def test_half_of_a_payload_is_a_node_that_is_gone() -> None:
    channel, connection = planned("half")
    answering(connection, [memoryview(bytes(1000))])
    header, _ = channel.call(KIND, b"", soon())
    with pytest.raises(NodeGone):
        channel.receive(header.payload_bytes, soon())


@pytest.mark.parametrize("payload", [b"", b"p", b"payload" * 1000])
def test_a_flip_inverts_exactly_one_bit(payload: bytes) -> None:
    channel, connection = planned("flip")
    answering(connection, [memoryview(payload)], body=b"body")
    header, body = channel.call(KIND, b"", soon())
    received = body + channel.receive(header.payload_bytes, soon())
    sent = b"body" + payload
    changed = [position for position in range(len(sent)) if sent[position] != received[position]]
    assert len(changed) == 1 and (sent[changed[0]] ^ received[changed[0]]).bit_count() == 1
    assert (changed[0] >= 4) == bool(payload)


def test_garbage_is_a_protocol_error() -> None:
    channel, connection = planned("garbage")
    answering(connection)
    with pytest.raises(ProtocolError):
        channel.call(KIND, b"", soon())
