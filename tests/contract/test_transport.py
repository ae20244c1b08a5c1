"""What every door promises of frames and payload, held against memory, Unix socket and TCP alike.

The two ends' buffers hold different patterns, so bytes that were never moved are seen; `doors.Wire` is an end without
our code, on which the test sends what no honest peer would. Deadlines and endings are in test_transport_ends.py.
"""

import random

import pytest

from shoal_core import frame, limits
from shoal_core.errors import ProtocolError
from shoal_transport.interface import Channel
from tests.contract.doors import Beside, Door, answering, reply, soon

KIND = 9


# Frames.


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 65_535, 65_536, 65_537, 1 << 20])
def test_a_frame_comes_back_as_it_was_sent(door: Door, size: int) -> None:
    channel, connection = door.pair()
    served = answering(connection)
    body = random.Random(size).randbytes(size)
    for _ in range(2):
        header, answer = channel.call(KIND, body, soon())
        assert answer == body[::-1]
        assert (header.kind, header.payload_bytes, header.version) == (KIND | frame.REPLY, 0, limits.WIRE_VERSION)
    channel.close()
    assert served.result() == 2


def test_the_largest_body_passes_and_a_larger_one_is_refused(door: Door) -> None:
    channel, connection = door.pair()
    answering(connection)
    body = bytes(limits.FRAME_BODY_BYTES_MAX)
    assert channel.call(KIND, body, soon())[1] == body
    with pytest.raises(ProtocolError, match="too large"):
        channel.call(KIND, body + b"x", soon())


def test_both_ends_say_which_door_they_are(door: Door) -> None:
    channel, connection = door.pair()
    assert channel.door == connection.door == door.name
    assert connection.grants == (door.name != "tcp")


def test_channels_do_not_mix(door: Door) -> None:
    """Two channels, answered in the other order, and many at once."""
    first, second = door.pair(), door.pair()
    asked = [Beside(lambda pair=pair, tag=tag: pair[0].call(KIND, tag, soon())) for pair, tag in
             ((first, b"first"), (second, b"second"))]  # fmt: skip
    for _channel, connection in (second, first):
        received = connection.receive()
        assert received is not None
        connection.send(reply(received[0], received[1] * 2))
    assert [call.result()[1] for call in asked] == [b"firstfirst", b"secondsecond"]

    pairs = [door.pair() for _ in range(6)]
    for _, connection in pairs:
        answering(connection)

    def hammer(channel: Channel, number: int) -> None:
        for turn in range(50):
            body = f"{number}:{turn}".encode() * (turn + 1)
            assert channel.call(KIND, body, soon())[1] == body[::-1]

    for worker in [Beside(lambda c=c, n=n: hammer(c, n)) for n, (c, _) in enumerate(pairs)]:
        worker.result()


def test_pipelined_requests_are_received_one_by_one(door: Door) -> None:
    wire, connection = door.client_as_wire()
    frames = [frame.encode(KIND, number, bytes([number]) * number * 100) for number in range(40)]
    wire.send(b"".join(frames))
    for number in range(40):
        received = connection.receive()
        assert received is not None
        assert (received[0].request, received[1]) == (number, bytes([number]) * number * 100)


def test_requests_split_anywhere_are_the_same_requests(door: Door) -> None:
    whole = frame.encode(KIND, 1, b"one") + frame.encode(KIND, 2, b"") + frame.encode(KIND, 3, b"three")
    wire, connection = door.client_as_wire()
    for split in range(1, len(whole)):
        wire.send(whole[:split])
        wire.send(whole[split:])
        received = [connection.receive() for _ in range(3)]
        assert [(got[0].request, got[1]) for got in received if got] == [(1, b"one"), (2, b""), (3, b"three")]
    for byte in whole:
        wire.send(bytes([byte]))
    assert [got[1] for got in [connection.receive() for _ in range(3)] if got] == [b"one", b"", b"three"]


def test_replies_split_anywhere_are_the_same_replies(door: Door) -> None:
    channel, wire = door.node_as_wire()
    length = len(frame.encode(KIND, 0, b"body"))
    for split in range(1, length + 5):
        call = Beside(lambda: (channel.call(KIND, b"ask", soon()), channel.receive(5, soon())))
        request = frame.parse_header(wire.receive(frame.HEADER_BYTES + 3)).request
        whole = frame.encode(KIND | frame.REPLY, request, b"body", 5) + b"bytes"
        wire.send(whole[:split])
        wire.send(whole[split:])
        (header, body), payload = call.result()
        assert (header.payload_bytes, body, payload) == (5, b"body", b"bytes")


# Payload.


@pytest.mark.parametrize("together", [True, False])
def test_payload_goes_from_views_into_views_and_touches_nothing_else(door: Door, together: bool) -> None:
    node = memoryview(bytearray(random.Random(1).randbytes(1 << 20)))
    ranges = [(0, 1), (5, 70_000), (300_000, 65_536), (999_999, 1), (65_536, 4096)]
    channel, connection = door.pair()
    answering(connection, [node[start : start + size] for start, size in ranges])
    channel.call(KIND, b"", soon())
    client = bytearray(b"\xaa" * (1 << 20))
    targets = [memoryview(client)[start : start + size] for start, size in ranges]
    if together:
        channel.receive_each(targets, soon())
    else:
        for target in targets:
            channel.receive_into(target, soon())
    expected = bytearray(b"\xaa" * (1 << 20))
    for start, size in ranges:
        expected[start : start + size] = node[start : start + size]
    assert client == expected
    assert channel.call(KIND, b"still in step", soon())[1] == b"pets ni llits"


@pytest.mark.parametrize("size", [1, 4095, 65_536, 8 << 20])
def test_payload_as_one_bytes_object(door: Door, size: int) -> None:
    data = random.Random(size).randbytes(size)
    channel, connection = door.pair()
    answering(connection, [memoryview(data)])
    for _ in range(2):
        header, _ = channel.call(KIND, b"", soon())
        assert header.payload_bytes == size
        assert channel.receive(size, soon()) == data


def test_more_views_than_one_system_call_takes(door: Door) -> None:
    data = memoryview(random.Random(2).randbytes(40_000))
    rng = random.Random(3)
    views: list[memoryview] = []
    position = 0
    while position < len(data):
        size = rng.choice([0, 0, 1, 2, 7, 30])
        views.append(data[position : position + size])
        position += size
    assert len(views) > 4096
    channel, connection = door.pair()
    answering(connection, views)
    for _ in range(2):
        channel.call(KIND, b"", soon())
        assert channel.receive(len(data), soon()) == data
    channel.call(KIND, b"", soon())
    received = bytearray(len(data))
    cuts = sorted(rng.sample(range(len(data)), 2000))
    ends = zip([0, *cuts], [*cuts, len(data)], strict=True)
    channel.receive_each([memoryview(received)[start:end] for start, end in ends], soon())
    assert received == data


def test_a_payload_of_nothing(door: Door) -> None:
    channel, connection = door.pair()
    answering(connection, [memoryview(b""), memoryview(b"")])
    header, body = channel.call(KIND, b"x", soon())
    assert (header.payload_bytes, body) == (0, b"x")
    assert channel.receive(0, soon()) == b""
    channel.receive_into(memoryview(bytearray(0)), soon())
    channel.receive_each([], soon())
    channel.receive_each([memoryview(bytearray(0))] * 3, soon())
    assert channel.call(KIND, b"y", soon())[1] == b"y"


def test_what_is_sent_is_what_was_there_at_the_time(door: Door) -> None:
    """The slot behind a view may be used again as soon as `send` has returned."""
    memory = bytearray(b"a" * 100_000)
    channel, connection = door.pair()

    def serve() -> None:
        received = connection.receive()
        assert received is not None
        connection.send(reply(received[0], b"", len(memory)), [memoryview(memory)])
        memory[:] = b"b" * len(memory)

    served = Beside(serve)
    channel.call(KIND, b"", soon())
    served.result()
    assert channel.receive(len(memory), soon()) == b"a" * len(memory)
