"""Every door as the contract tests see it: both ends connected, and each end as a bare wire on which to misbehave."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shoal_core import frame
from shoal_core.errors import Closed, DeadlineExceeded
from shoal_transport import tcp, unix
from shoal_transport.interface import Channel, Connection, Listener
from shoal_transport.memory import MemoryListener

NAMES = ("memory", "unix", "tcp")


def soon(seconds: float = 10.0) -> float:
    """A deadline that no test means to reach."""
    return time.monotonic() + seconds


@dataclass
class Wire:
    """A bare end: bytes out, bytes in, the end."""

    send: Callable[[bytes], None]
    receive: Callable[[int], bytes]
    close: Callable[[], None]


class Door:
    """A listener of one door and ways to reach it."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.listener: Listener
        if name == "memory":
            self.listener = MemoryListener()
        elif name == "unix":
            self.listener = unix.UnixListener(f"{directory}/sock")
        else:
            self.listener = tcp.TcpListener("127.0.0.1:0")
        self._stack = contextlib.ExitStack()
        self._stack.callback(self.listener.close)

    def connect(self, plan: Any = None) -> Channel:
        """The client's end."""
        if isinstance(self.listener, MemoryListener):
            channel: Channel = self.listener.connect(plan)
        elif self.name == "unix":
            channel = unix.connect(self.listener.address.removeprefix("unix:"), soon())
        else:
            channel = tcp.connect(self.listener.address.removeprefix("tcp:"), soon())
        self._stack.callback(channel.close)
        return channel

    def pair(self, plan: Any = None) -> tuple[Channel, Connection]:
        """Both ends."""
        channel = self.connect(plan)
        connection = self.listener.accept()
        assert connection is not None
        self._stack.callback(connection.close)
        return channel, connection

    def node_as_wire(self) -> tuple[Channel, Wire]:
        """The client's end, and a node that does what the test says."""
        channel, connection = self.pair()
        return channel, self._wire(connection, "_to_client", "_to_node")

    def client_as_wire(self) -> tuple[Wire, Connection]:
        """A client that does what the test says, and the node's end."""
        channel, connection = self.pair()
        return self._wire(channel, "_to_node", "_to_client"), connection

    def close(self) -> None:
        self._stack.close()

    def _wire(self, end: Any, out: str, back: str) -> Wire:
        if self.name == "memory":
            outward, inward = getattr(end, out).chunks, getattr(end, back).chunks
            rest = bytearray()

            def receive(size: int) -> bytes:
                while len(rest) < size:
                    rest.extend(inward.get(timeout=10))
                taken = bytes(rest[:size])
                del rest[:size]
                return taken

            return Wire(lambda data: data and outward.put(data), receive, lambda: outward.put(b""))
        sock: socket.socket = end._socket
        return Wire(sock.sendall, lambda size: sock.recv(size, socket.MSG_WAITALL), end.close)


@contextlib.contextmanager
def open_door(name: str) -> Iterator[Door]:
    with tempfile.TemporaryDirectory(prefix="shoal-", dir="/tmp") as directory:
        door = Door(name, Path(directory))
        try:
            yield door
        finally:
            door.close()


class Beside:
    """A call in a thread of its own, whose outcome is asked for later."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._outcome: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    @property
    def running(self) -> bool:
        return self.thread.is_alive()

    def result(self, seconds: float = 10.0) -> Any:
        self.thread.join(seconds)
        assert not self.thread.is_alive(), "still running"
        if self._error is not None:
            raise self._error
        return self._outcome

    def _run(self) -> None:
        try:
            self._outcome = self._call()
        except BaseException as error:
            self._error = error


def reply(header: frame.Header, body: bytes, payload_bytes: int = 0) -> bytes:
    return frame.encode(header.kind | frame.REPLY, header.request, body, payload_bytes)


def answering(connection: Connection, payload: Sequence[memoryview] = (), body: bytes | None = None) -> Beside:
    """Answer every request with its own body reversed, and `payload`, until the peer goes."""

    def serve() -> int:
        count = 0
        while (received := connection.receive()) is not None:
            header, request = received
            size = sum(len(view) for view in payload)
            connection.send(reply(header, request[::-1] if body is None else body, size), payload)
            count += 1
        return count

    return Beside(serve)


def assert_ends_in_time(call: Callable[[float], Any], seconds: float) -> None:
    """`call` of a deadline so many seconds from now ends with it, by DeadlineExceeded."""
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        call(started + seconds)
    taken = time.monotonic() - started
    assert seconds * 0.9 <= taken < seconds + 2.0


def assert_broken(channel: Channel) -> None:
    assert channel.broken
    with pytest.raises(Closed):
        channel.call(1, b"", soon())
