"""A client that keeps to no rule: frames by hand over a socket of the test's own.

It asks for grants and ignores what the node asks back, sends what is no frame, maps segments itself. Every wait has a
deadline, by the socket's timeout.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from shoal_core import frame, verbs
from shoal_core.errors import ShoalError
from shoal_core.verbs import get, hello, map, resolve

TIMEOUT_S = 10.0


class RawConnection:
    """One connection to a node."""

    def __init__(self, address: str, identity: bytes | None = None) -> None:
        door, _, place = address.partition(":")
        if door == "unix":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(TIMEOUT_S)
            self.socket.connect(place)
        else:
            host, _, port = place.rpartition(":")
            self.socket = socket.create_connection((host, int(port)), TIMEOUT_S)
        self.identity = identity or os.urandom(16)
        self.descriptors: list[int] = []
        self.payload = b""
        self._request = 0

    def hello(self, role: str = hello.REQUESTS) -> hello.Reply:
        return self.call(hello.KIND, hello.Request(self.identity, role, "raw"))

    def call(self, kind: int, request: Any) -> Any:
        """The verb's reply; its payload is in `payload` then, descriptors in `descriptors`."""
        self._request += 1
        self.socket.sendall(frame.encode(kind, self._request, verbs.encode(request)))
        header, body = self.reply()
        assert header.request == self._request
        return verbs.decode_reply(kind, header, body)

    def reply(self) -> tuple[frame.Header, bytes]:
        """The next frame, whatever it is. EOFError at the end of the connection."""
        head, descriptors, _, _ = socket.recv_fds(self.socket, frame.HEADER_BYTES, 8)
        self.descriptors += descriptors
        if not head:
            raise EOFError("the node closed the connection")
        head += self._exactly(frame.HEADER_BYTES - len(head))
        header = frame.parse_header(head)
        body = self._exactly(header.body_bytes)
        self.payload = self._exactly(header.payload_bytes)
        return header, body

    def replies_to_the_end(self) -> None:
        """Takes whatever comes until the node closes, which is an EOFError or a ConnectionResetError."""
        for _ in range(1000):
            self.reply()

    def failure(self) -> str:
        """The text of the error that comes next."""
        header, body = self.reply()
        assert header.kind == frame.FAILURE, header
        try:
            verbs.decode_reply(0, header, body)
        except ShoalError as error:
            return str(error)
        raise AssertionError("an error frame without an error")

    def resolve(self, url: str) -> resolve.Object:
        found = self.call(resolve.KIND, resolve.Request([resolve.Wanted(url)], 10_000)).objects[0]
        assert isinstance(found, resolve.Object), found
        return found

    def get(
        self, found: resolve.Object, blocks: range, *, inline: bool = False, deadline_ms: int = 10_000
    ) -> list[Any]:
        """Whole blocks; the node's answers."""
        size = found.block_size_bytes
        items = [get.Item(0, block, 0, min(size, found.size - block * size)) for block in blocks]
        request = get.Request([found.fingerprint], items, [], deadline_ms, inline)
        return self.call(get.KIND, request).items

    def map(self, segment: int) -> tuple[int, int]:
        """(descriptor, size) of a segment; the descriptor is closed with the connection."""
        reply = self.call(map.KIND, map.Request(segment))
        return self.descriptors[-1], reply.size

    def close(self) -> None:
        self.socket.close()
        while self.descriptors:
            os.close(self.descriptors.pop())

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError(f"the node closed the connection after {len(data)} of {count} bytes")
            data += part
        return bytes(data)


@contextlib.contextmanager
def connected(address: str, identity: bytes | None = None) -> Iterator[RawConnection]:
    """A connection that has said nothing yet."""
    connection = RawConnection(address, identity)
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def reader(address: str) -> Iterator[tuple[RawConnection, RawConnection]]:
    """(requests, events) of a client that may hold leases."""
    with connected(address) as events, connected(address, events.identity) as requests:
        events.hello(hello.EVENTS)
        requests.hello()
        yield requests, events
