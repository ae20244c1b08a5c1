"""The memory door: both ends in one process, with a fault plan. What tests and simulation run on; it ships.

Frames go through the same encoder and decoder as on a socket, and payload is copied from the sender's views when it is
sent, as a wire would. A `FaultPlan` decides, reply by reply, what goes wrong: nothing here is random by itself.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import time
from collections.abc import Callable, Sequence

from shoal_core import frame
from shoal_core.errors import Closed, DeadlineExceeded, NodeGone, ProtocolError
from shoal_core.frame import Header
from shoal_transport.interface import SEND_STALL_S

DOOR = "memory"

FaultPlan = Callable[[int, int], str | None]
"""(number of the reply on this connection from 0, its kind) -> None, or one of:
"lose" (the reply never arrives), "cut" (the connection ends instead), "half" (it ends after half of the bytes),
"flip" (one bit of the payload's middle byte, or of the last body byte, is inverted), "garbage" (not a frame)."""


class _Pipe:
    """Bytes one way. b"" means the end."""

    def __init__(self) -> None:
        self.chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.descriptors: list[int] = []
        self.reader_gone = False
        """Nobody takes descriptors out any more."""


class MemoryChannel:
    """Client's end; see `interface.Channel`."""

    def __init__(self, to_node: _Pipe, to_client: _Pipe) -> None:
        self.door = DOOR
        self.broken = False
        self.expires_s = math.inf
        self._to_node, self._to_client = to_node, to_client
        self._rest = memoryview(b"")
        self._request = self._reply = 0

    def call(self, kind: int, body: bytes, deadline: float, descriptors: int = 0) -> tuple[Header, bytes]:
        self.post(kind, body, deadline)
        return self.take(deadline)

    def post(self, kind: int, body: bytes, deadline: float) -> int:
        if self.broken:
            raise Closed("memory channel is closed")
        if time.monotonic() >= deadline:
            self.close()
            raise DeadlineExceeded("deadline passed before the node was asked")
        self._request += 1
        self._to_node.chunks.put(frame.encode(kind, self._request, body))
        return self._request

    def take(self, deadline: float) -> tuple[Header, bytes]:
        self._reply += 1
        try:
            header = frame.parse_header(self.receive(frame.HEADER_BYTES, deadline))
            if header.request != self._reply:
                raise ProtocolError(f"memory: reply to request {header.request}, expected {self._reply}")
            return header, self.receive(header.body_bytes, deadline)
        except BaseException:
            self.close()
            raise

    def receive_into(self, view: memoryview, deadline: float) -> None:
        while view:
            if not self._rest:
                self._wait(deadline)
            count = min(len(view), len(self._rest))
            view[:count] = self._rest[:count]
            view, self._rest = view[count:], self._rest[count:]

    def receive_each(self, views: Sequence[memoryview], deadline: float) -> None:
        for view in views:
            self.receive_into(view, deadline)

    def receive(self, size: int, deadline: float) -> bytes:
        data = bytearray(size)
        self.receive_into(memoryview(data), deadline)
        return bytes(data)

    def listen(self, seconds: float) -> tuple[Header, bytes] | None:
        if not self._rest:
            try:
                chunk = self._to_client.chunks.get(timeout=seconds)
            except queue.Empty:
                return None
            if not chunk:
                self.close()
                raise NodeGone("memory peer closed the connection")
            self._rest = memoryview(chunk)
        deadline = time.monotonic() + SEND_STALL_S
        header = frame.parse_header(self.receive(frame.HEADER_BYTES, deadline))
        return header, self.receive(header.body_bytes, deadline)

    def answer(self, data: bytes) -> None:
        self._to_node.chunks.put(data)

    def take_descriptors(self) -> list[int]:
        taken, self._to_client.descriptors = self._to_client.descriptors, []
        return taken

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        if not self.broken:
            self.broken = True
            self._to_client.reader_gone = True
            self._to_node.chunks.put(b"")
            self._to_client.chunks.put(b"")  # who waits in another thread wakes up
            for descriptor in self.take_descriptors():
                os.close(descriptor)

    def _wait(self, deadline: float) -> None:
        try:
            chunk = self._to_client.chunks.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self.close()
            raise DeadlineExceeded("no answer over memory within the deadline") from None
        if not chunk:
            self.close()
            raise NodeGone("memory peer closed the connection")
        self._rest = memoryview(chunk)


class MemoryConnection:
    """Node's end; see `interface.Connection`."""

    def __init__(self, to_node: _Pipe, to_client: _Pipe, plan: FaultPlan | None) -> None:
        self.door = DOOR
        self.grants = True
        self._to_node, self._to_client = to_node, to_client
        self._decoder = frame.Decoder()
        self._plan = plan
        self._replies = 0
        self._closed = False

    def receive(self) -> tuple[Header, bytes] | None:
        while (got := self._decoder.next_frame()) is None:
            chunk = self._to_node.chunks.get()
            if not chunk or self._closed:
                return None
            self._decoder.feed(chunk)
        if got[0].payload_bytes:
            raise ProtocolError("a request with a payload; no verb of this version takes one")
        return got

    def send(self, data: bytes, payload: Sequence[memoryview] = (), descriptors: Sequence[int] = ()) -> None:
        if self._closed:
            raise NodeGone("memory peer is closed")
        fault = self._plan(self._replies, data[3]) if self._plan else None
        self._replies += 1
        if not self._to_client.reader_gone:
            self._to_client.descriptors += [os.dup(descriptor) for descriptor in descriptors]
        whole = b"".join([data, *payload])
        if fault == "flip":
            middle = len(data) + (len(whole) - len(data)) // 2 if len(whole) > len(data) else len(data) - 1
            whole = whole[:middle] + bytes([whole[middle] ^ 0x10]) + whole[middle + 1 :]
        elif fault == "half":
            whole = whole[: len(whole) // 2]
        elif fault == "garbage":
            whole = b"\xff" * len(whole)
        if fault not in ("lose", "cut") and whole:
            self._to_client.chunks.put(whole)
        if fault in ("cut", "half"):
            self.close()

    def hang_up(self) -> None:
        self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._to_client.chunks.put(b"")
            self._to_node.chunks.put(b"")


class MemoryListener:
    """Listens in this process; `connect` makes a channel. See `interface.Listener`."""

    address = "memory:"

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[MemoryConnection | None] = queue.SimpleQueue()
        self._closed = False

    def connect(self, plan: FaultPlan | None = None) -> MemoryChannel:
        """A channel to whoever accepts; replies suffer `plan`."""
        if self._closed:
            raise NodeGone("memory listener is closed")
        to_node, to_client = _Pipe(), _Pipe()
        self._waiting.put(MemoryConnection(to_node, to_client, plan))
        return MemoryChannel(to_node, to_client)

    def accept(self) -> MemoryConnection | None:
        return None if self._closed else self._waiting.get()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            # Who is not accepted any more is told so, as a kernel would.
            with contextlib.suppress(queue.Empty):
                while (connection := self._waiting.get_nowait()) is not None:
                    connection.close()
            self._waiting.put(None)
