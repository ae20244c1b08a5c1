"""Every wait at a door ends: at its deadline, with its peer, with its own close, at bytes that are no frames."""

import struct
import threading
import time
from collections.abc import Callable

import pytest

from shoal_core import frame, limits
from shoal_core.errors import DeadlineExceeded, NodeGone, ProtocolError
from shoal_transport.interface import Channel
from tests.contract.doors import Beside, Door, assert_broken, assert_ends_in_time, reply, soon
from tests.support import waiting

KIND = 9

RECEIVE: dict[str, Callable[[Channel, int, float], object]] = {
    "receive": lambda channel, size, deadline: channel.receive(size, deadline),
    "receive_into": lambda channel, size, deadline: channel.receive_into(memoryview(bytearray(size)), deadline),
    "receive_each": lambda channel, size, deadline: channel.receive_each(
        [memoryview(bytearray(size // 2)), memoryview(bytearray(size - size // 2))], deadline
    ),
}


# Deadlines.


@pytest.mark.parametrize("seconds", [0.05, 0.4])
def test_a_silent_node_costs_the_deadline_and_the_channel(door: Door, seconds: float) -> None:
    channel, _wire = door.node_as_wire()
    assert_ends_in_time(lambda deadline: channel.call(KIND, b"", deadline), seconds)
    assert_broken(channel)


def test_a_node_that_falls_silent_in_the_payload(door: Door) -> None:
    for receive in RECEIVE.values():
        channel, connection = door.pair()
        served = Beside(connection.receive)
        call = Beside(lambda c=channel: c.call(KIND, b"", soon()))
        header = served.result()[0]
        connection.send(reply(header, b"", 100) + b"x" * 50)
        call.result()
        assert_ends_in_time(lambda deadline, c=channel, r=receive: r(c, 100, deadline), 0.3)
        assert_broken(channel)


@pytest.mark.parametrize(
    ("part", "how"), [("header", "receive"), ("body", "receive"), *(("payload", how) for how in RECEIVE)]
)
def test_a_node_that_trickles_does_not_stretch_the_deadline(door: Door, part: str, how: str) -> None:
    channel, wire = door.node_as_wire()
    stop = threading.Event()

    def trickle() -> None:
        request = frame.parse_header(wire.receive(frame.HEADER_BYTES)).request
        data = frame.encode(KIND | frame.REPLY, request, b"b" * 500, 500) + b"p" * 500
        start = {"header": 0, "body": 20, "payload": frame.HEADER_BYTES + 500}[part]
        wire.send(data[:start])
        try:
            for position in range(start, len(data)):
                wire.send(data[position : position + 1])
                if stop.wait(0.03):
                    return
        except OSError:
            return  # the channel was closed, as it should be

    def call(deadline: float) -> None:
        channel.call(KIND, b"", deadline)
        RECEIVE[how](channel, 500, deadline)

    sending = Beside(trickle)
    assert_ends_in_time(call, 0.7 if part == "payload" else 0.4)
    assert_broken(channel)
    stop.set()
    sending.result()


def test_a_deadline_that_has_passed_sends_nothing(door: Door) -> None:
    channel, connection = door.pair()
    with pytest.raises(DeadlineExceeded):
        channel.call(KIND, b"never seen", time.monotonic() - 1)
    assert_broken(channel)
    assert connection.receive() is None


def test_a_node_that_does_not_read_holds_nobody(door: Door) -> None:
    """More than the socket's buffers hold; memory has no such limit and waits for the answer instead."""
    channel, _wire = door.node_as_wire()
    assert_ends_in_time(lambda deadline: channel.call(KIND, bytes(limits.FRAME_BODY_BYTES_MAX), deadline), 0.4)
    assert_broken(channel)


# The end of the peer.


@pytest.mark.parametrize("sent", [0, 1, 15, 16, 18])
def test_a_node_that_goes_before_its_reply_is_whole(door: Door, sent: int) -> None:
    channel, wire = door.node_as_wire()
    call = Beside(lambda: channel.call(KIND, b"", soon()))
    request = frame.parse_header(wire.receive(frame.HEADER_BYTES)).request
    if sent:
        wire.send(frame.encode(KIND | frame.REPLY, request, b"body")[:sent])
    wire.close()
    with pytest.raises(NodeGone):
        call.result()
    assert_broken(channel)


@pytest.mark.parametrize("sent", [0, 1, 99_999])
@pytest.mark.parametrize("how", RECEIVE)
def test_a_node_that_goes_in_the_payload(door: Door, sent: int, how: str) -> None:
    channel, wire = door.node_as_wire()
    call = Beside(lambda: channel.call(KIND, b"", soon()))
    request = frame.parse_header(wire.receive(frame.HEADER_BYTES)).request
    wire.send(frame.encode(KIND | frame.REPLY, request, b"", 100_000) + b"x" * sent)
    wire.close()
    call.result()
    with pytest.raises(NodeGone):
        RECEIVE[how](channel, 100_000, soon())
    assert_broken(channel)


@pytest.mark.parametrize("sent", [b"", b"S", b"SH\x01", frame.encode(KIND, 1, b"body")[:-1]])
def test_a_client_that_goes_is_the_end_and_no_error(door: Door, sent: bytes) -> None:
    wire, connection = door.client_as_wire()
    if sent:
        wire.send(sent)
    wire.close()
    assert connection.receive() is None


def test_sending_to_a_client_that_went_is_an_error_in_the_end(door: Door) -> None:
    """`send` may not see it at once, but it neither waits for ever nor raises anything else."""
    channel, connection = door.pair()
    channel.close()
    if door.name == "memory":
        connection.close()
    payload = memoryview(bytes(1 << 20))
    header = frame.Header(1, KIND, 1, 0, 0)

    def send_all() -> None:
        for _ in range(20):
            connection.send(reply(header, b"", len(payload)), [payload])

    with pytest.raises(NodeGone):
        send_all()


def test_close_wakes_who_waits_for_a_request(door: Door) -> None:
    _channel, connection = door.pair()
    waiting_call = Beside(connection.receive)
    connection.close()
    assert waiting_call.result() is None
    connection.close()
    with pytest.raises(NodeGone):
        connection.send(b"x")


def test_hanging_up_ends_both_ends_and_leaves_the_closing_to_its_owner(door: Door) -> None:
    channel, connection = door.pair()
    served = Beside(connection.receive)
    call = Beside(lambda: channel.call(KIND, b"", soon()))
    served.result()
    waiting_thread = Beside(connection.receive)
    connection.hang_up()
    assert waiting_thread.result() is None
    with pytest.raises(NodeGone):
        call.result()
    with pytest.raises(NodeGone):
        connection.send(b"too late")
    connection.hang_up()
    connection.close()


def test_closing_the_channel_is_seen_by_the_node_at_once(door: Door) -> None:
    channel, connection = door.pair()
    waiting_call = Beside(connection.receive)
    channel.close()
    channel.close()
    assert waiting_call.result() is None
    assert_broken(channel)


def test_closing_the_listener_wakes_who_accepts(door: Door) -> None:
    accepting = Beside(door.listener.accept)
    door.listener.close()
    door.listener.close()
    assert accepting.result() is None
    assert door.listener.accept() is None
    with pytest.raises(NodeGone):
        door.connect()


def test_who_was_not_accepted_when_the_listener_closed_is_told(door: Door) -> None:
    channel = door.connect()
    door.listener.close()
    with pytest.raises(NodeGone):
        channel.call(KIND, b"", soon(3))


# Bytes that are no frames.


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00" * 100,
        struct.pack("<2sBBIII", b"SH", 1, KIND | frame.REPLY, 1, limits.FRAME_BODY_BYTES_MAX + 1, 0),
        struct.pack("<2sBBIII", b"SH", 1, KIND | frame.REPLY, 1, 0, limits.FRAME_PAYLOAD_BYTES_MAX + 1),
        frame.encode(KIND | frame.REPLY, 77, b"the answer to another question"),
    ],
)
def test_a_reply_that_is_none(door: Door, garbage: bytes) -> None:
    channel, wire = door.node_as_wire()
    call = Beside(lambda: channel.call(KIND, b"", soon()))
    wire.receive(frame.HEADER_BYTES)
    wire.send(garbage)
    with pytest.raises(ProtocolError):
        call.result()
    assert_broken(channel)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 16,
        struct.pack("<2sBBIII", b"SH", 1, KIND, 1, limits.FRAME_BODY_BYTES_MAX + 1, 0),
        struct.pack("<2sBBIII", b"SH", 1, KIND, 1, 0, 0xFFFFFFFF),
        frame.encode(KIND, 1, b"", 10),
        frame.encode(KIND, 1, b"body", 10) + b"0123456789",
    ],
)
def test_a_request_that_is_none(door: Door, garbage: bytes) -> None:
    wire, connection = door.client_as_wire()
    wire.send(frame.encode(KIND, 7, b"good"))
    wire.send(garbage)
    received = connection.receive()
    assert received is not None and received[1] == b"good"
    with pytest.raises(ProtocolError):
        connection.receive()


def test_unknown_versions_and_kinds_are_frames_like_any_other(door: Door) -> None:
    wire, connection = door.client_as_wire()
    wire.send(struct.pack("<2sBBIII", b"SH", 99, 200, 5, 3, 0) + b"abc")
    received = connection.receive()
    assert received == (frame.Header(99, 200, 5, 3, 0), b"abc")


# Frames that the node sends unasked.


def test_listening_gives_nothing_a_frame_or_the_end(door: Door) -> None:
    channel, connection = door.pair()
    started = time.monotonic()
    assert channel.listen(0.05) is None
    assert time.monotonic() - started < 1
    connection.send(frame.encode(KIND, 0, b"please"))
    connection.send(frame.encode(KIND, 0, b""))
    received = channel.listen(5)
    assert received is not None and received[1] == b"please"
    channel.answer(frame.encode(KIND | frame.REPLY, received[0].request, b"yes"))
    received = channel.listen(5)
    assert received is not None and received[1] == b""
    channel.answer(frame.encode(KIND | frame.REPLY, received[0].request, b"no"))
    answers = [connection.receive() for _ in range(2)]
    assert [answer[1] for answer in answers if answer] == [b"yes", b"no"]
    connection.close()
    with pytest.raises(NodeGone):
        channel.listen(5)


def test_a_frame_that_arrives_while_somebody_listens(door: Door) -> None:
    channel, connection = door.pair()
    listening = Beside(lambda: channel.listen(10))
    connection.send(frame.encode(KIND, 0, b"now"))
    assert listening.result(5)[1] == b"now"


def test_closing_the_channel_wakes_who_listens(door: Door) -> None:
    channel, _connection = door.pair()
    listening = Beside(lambda: channel.listen(8))
    waiting.until(lambda: listening.running)
    channel.close()
    with pytest.raises((NodeGone, OSError, ValueError)):
        listening.result(3)


def test_garbage_on_the_events_connection(door: Door) -> None:
    channel, wire = door.node_as_wire()
    wire.send(b"\xee" * 40)
    with pytest.raises(ProtocolError):
        channel.listen(5)
