"""A signal cuts a system call short in the middle of a payload; nothing is lost, doubled or out of order.

Python's own retry covers only calls that had moved nothing yet.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from shoal_core import frame
from shoal_transport.interface import Channel
from tests.contract import doors
from tests.contract.doors import Door, soon

KIND = 9
DATA = random.Random(8).randbytes(6 << 20)
STEP = 300_000


@pytest.fixture(params=["unix", "tcp"])
def sockets(request: pytest.FixtureRequest) -> Iterator[Door]:
    with doors.open_door(request.param) as opened:
        yield opened


@pytest.fixture
def signals() -> Iterator[Callable[[threading.Thread], None]]:
    """signals(thread): a signal that does nothing but interrupt."""
    before = signal.signal(signal.SIGUSR1, lambda number, stack: None)

    def send(thread: threading.Thread) -> None:
        if thread.is_alive() and thread.ident is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(thread.ident, signal.SIGUSR1)

    yield send
    signal.signal(signal.SIGUSR1, before)


def test_a_send_goes_on_where_it_was_cut(sockets: Door, signals: Callable[[threading.Thread], None]) -> None:
    wire, connection = sockets.client_as_wire()
    payload = memoryview(DATA)
    views = [payload[:10], payload[10:1_000_000], payload[1_000_000:1_000_000], payload[1_000_000:]]
    header = frame.encode(KIND | frame.REPLY, 1, b"body", len(DATA))
    sending = doors.Beside(lambda: connection.send(header, views))
    received = wire.receive(len(header))
    assert received == header
    data = bytearray()
    while len(data) < len(DATA):
        signals(sending.thread)
        data += wire.receive(min(STEP, len(DATA) - len(data)))
        signals(sending.thread)
    sending.result()
    assert data == DATA


@pytest.mark.parametrize("how", ["receive", "receive_into", "receive_each"])
def test_a_receive_goes_on_where_it_was_cut(
    sockets: Door, signals: Callable[[threading.Thread], None], how: str
) -> None:
    channel, wire = sockets.node_as_wire()
    target = bytearray(len(DATA))

    def take(channel: Channel) -> bytes:
        channel.call(KIND, b"", soon())
        if how == "receive":
            return channel.receive(len(DATA), soon())
        if how == "receive_into":
            channel.receive_into(memoryview(target), soon())
        else:
            ends = [0, 7, 7, 100_000, 2_000_000, len(DATA)]
            parts = [memoryview(target)[start:end] for start, end in itertools.pairwise(ends)]
            channel.receive_each(parts, soon())
        return bytes(target)

    receiving = doors.Beside(lambda: take(channel))
    request = frame.parse_header(wire.receive(frame.HEADER_BYTES)).request
    wire.send(frame.encode(KIND | frame.REPLY, request, b"", len(DATA)))
    for start in range(0, len(DATA), STEP):
        wire.send(DATA[start : start + STEP])
        signals(receiving.thread)
    assert receiving.result() == DATA
