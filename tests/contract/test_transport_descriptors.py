"""Doors that pass descriptors pass them once, with the reply they belong to, and leave none behind."""

import os
from collections.abc import Iterator

import pytest

from shoal_core.errors import NodeGone
from tests.contract import doors
from tests.contract.doors import Beside, Door, reply, soon

KIND = 9


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(params=["memory", "unix"])
def passing(request: pytest.FixtureRequest) -> Iterator[Door]:
    with doors.open_door(request.param) as opened:
        yield opened


def memory_file(content: bytes) -> int:
    descriptor = os.memfd_create("contract")
    os.write(descriptor, content)
    return descriptor


def test_a_descriptor_comes_with_the_reply(passing: Door) -> None:
    channel, connection = passing.pair()
    descriptor = memory_file(b"shared")

    def serve() -> None:
        for _ in range(3):
            received = connection.receive()
            assert received is not None
            wanted = received[1] == b"map"
            connection.send(reply(received[0], b"body" * 100), descriptors=[descriptor] if wanted else [])

    served = Beside(serve)
    assert channel.call(KIND, b"", soon())[1] == b"body" * 100
    assert channel.take_descriptors() == []
    assert channel.call(KIND, b"map", soon(), descriptors=1)[1] == b"body" * 100
    (received,) = channel.take_descriptors()
    assert received != descriptor
    assert os.pread(received, 100, 0) == b"shared"
    os.pwrite(descriptor, b"SHARED", 0)
    assert os.pread(received, 100, 0) == b"SHARED", "the same file, not a copy"
    os.close(received)
    assert channel.take_descriptors() == [], "taken once"
    assert channel.call(KIND, b"", soon())[1] == b"body" * 100
    served.result()
    os.close(descriptor)


def test_a_descriptor_that_nobody_took_is_closed_with_the_channel(passing: Door) -> None:
    channel, connection = passing.pair()
    descriptor = memory_file(b"shared")
    before = open_descriptors()
    answer = Beside(lambda: channel.call(KIND, b"", soon(), descriptors=1))
    received = connection.receive()
    assert received is not None
    connection.send(reply(received[0], b""), descriptors=[descriptor])
    answer.result()
    assert open_descriptors() == before + 1
    channel.close()
    assert open_descriptors() <= before
    os.close(descriptor)


def test_a_node_that_goes_after_passing_a_descriptor_leaves_none_behind(passing: Door) -> None:
    channel, connection = passing.pair()
    descriptor = memory_file(b"shared")
    before = open_descriptors()
    answer = Beside(lambda: channel.call(KIND, b"", soon(), descriptors=1))
    received = connection.receive()
    assert received is not None
    connection.send(reply(received[0], b"body")[:18], descriptors=[descriptor])
    connection.close()
    with pytest.raises(NodeGone):
        answer.result()
    assert open_descriptors() <= before
    os.close(descriptor)


def test_channels_leave_no_descriptor_behind(door: Door) -> None:
    door.pair()
    before = open_descriptors()
    for _ in range(20):
        channel, connection = door.pair()
        channel.close()
        connection.close()
    assert open_descriptors() == before
