"""What the Unix and the TCP door share: frames over blocking stream sockets.

Sockets block in the kernel, with the interpreter lock released, and time out by SO_RCVTIMEO/SO_SNDTIMEO rather than by
Python's own timeout, which would add a poll() before every call and make MSG_WAITALL useless. A receive of 4 MiB is so
one system call straight into the caller's memory. The kernel's timeout is a quantum: after each, the deadline is
looked at, so a wait ends at most QUANTUM_S late, and a shorter one at its deadline.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
import time
from collections.abc import Sequence

from shoal_core import frame, limits
from shoal_core.errors import Closed, DeadlineExceeded, NodeGone, ProtocolError
from shoal_core.frame import Header
from shoal_transport.interface import SEND_STALL_S

QUANTUM_S = 0.25
_TIMEVAL = struct.Struct("ll")
_IOV_MAX = 512
_SCRATCH_BYTES = 16 << 10
_AGAIN = (errno.EAGAIN, errno.EWOULDBLOCK)


def _timeval(seconds: float) -> bytes:
    microseconds = max(1000, int(seconds * 1e6))
    return _TIMEVAL.pack(microseconds // 1_000_000, microseconds % 1_000_000)


class SocketChannel:
    """Client's end over a connected stream socket; see `interface.Channel`."""

    def __init__(self, sock: socket.socket, door: str, peer: str) -> None:
        self.door = door
        self.broken = False
        self.expires_s = math.inf
        self._socket = sock
        self._process = os.getpid()
        self._peer = peer
        self._request = self._reply = 0
        self._quantum = 0.0
        self._descriptors: list[int] = []
        self._header = bytearray(frame.HEADER_BYTES)
        sock.setblocking(True)

    def call(self, kind: int, body: bytes, deadline: float, descriptors: int = 0) -> tuple[Header, bytes]:
        self.post(kind, body, deadline)
        return self.take(deadline, descriptors)

    def post(self, kind: int, body: bytes, deadline: float) -> int:
        if self.broken:
            raise Closed(f"channel to {self._peer} is closed")
        self._request = (self._request + 1) & 0xFFFFFFFF
        try:
            self._set_quantum(deadline)
            self._send(frame.encode(kind, self._request, body), deadline)
        except BaseException:
            self.close()
            raise
        return self._request

    def take(self, deadline: float, descriptors: int = 0) -> tuple[Header, bytes]:
        self._reply = expected = (self._reply + 1) & 0xFFFFFFFF
        try:
            if descriptors:
                self._receive_with_descriptors(memoryview(self._header), descriptors, deadline)
            else:
                self._receive_exactly(memoryview(self._header), deadline)
            header = frame.parse_header(self._header)
            if header.request != expected:
                raise ProtocolError(f"{self._peer}: reply to request {header.request}, expected {expected}")
            reply = self.receive(header.body_bytes, deadline) if header.body_bytes else b""
            return header, reply
        except BaseException:
            # Also for KeyboardInterrupt: a reply that nobody waits for would be taken for the next one.
            self.close()
            raise

    def receive_into(self, view: memoryview, deadline: float) -> None:
        try:
            self._receive_exactly(view, deadline)
        except BaseException:
            self.close()
            raise

    def receive_each(self, views: Sequence[memoryview], deadline: float) -> None:
        try:
            for start in range(0, len(views), _IOV_MAX):
                self._receive_some(list(views[start : start + _IOV_MAX]), deadline)
        except BaseException:
            self.close()
            raise

    def receive(self, size: int, deadline: float) -> bytes:
        try:
            while True:
                try:
                    data = self._socket.recv(size, socket.MSG_WAITALL)
                    break
                except BlockingIOError:
                    self._check(deadline)
            if len(data) == size:
                return data
            if not data:
                raise NodeGone(f"{self._peer} closed the connection")
            # A timeout or a signal cut the wait short; rare, so the copy does not matter.
            rest = bytearray(size - len(data))
            self._receive_exactly(memoryview(rest), deadline)
            return data + rest
        except (NodeGone, DeadlineExceeded):
            self.close()
            raise
        except OSError as error:
            self.close()
            raise self._gone(error) from error
        except BaseException:
            self.close()
            raise

    def listen(self, seconds: float) -> tuple[Header, bytes] | None:
        self._set_quantum(time.monotonic() + seconds)
        try:
            first = self._socket.recv_into(memoryview(self._header)[:1])
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._gone(error) from error
        if not first:
            raise NodeGone(f"{self._peer} closed the connection")
        deadline = time.monotonic() + SEND_STALL_S
        self._receive_exactly(memoryview(self._header)[1:], deadline)
        header = frame.parse_header(self._header)
        return header, self.receive(header.body_bytes, deadline) if header.body_bytes else b""

    def answer(self, data: bytes) -> None:
        self._send(data, time.monotonic() + SEND_STALL_S)

    def take_descriptors(self) -> list[int]:
        taken, self._descriptors = self._descriptors, []
        return taken

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self.broken = True
        if os.getpid() == self._process:
            # Who waits on this socket in another thread wakes up, and the node sees the end at once. A forked child
            # closes its copy only: a shutdown would end the parent's connection.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for descriptor in self.take_descriptors():
            os.close(descriptor)

    def _set_quantum(self, deadline: float) -> None:
        quantum = min(QUANTUM_S, deadline - time.monotonic())
        if quantum <= 0:
            raise DeadlineExceeded(f"deadline passed before {self._peer} was asked")
        if quantum != self._quantum:
            self._quantum = quantum
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(quantum))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(quantum))

    def _check(self, deadline: float) -> None:
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(f"no answer from {self._peer} within the deadline")

    def _gone(self, error: OSError) -> Exception:
        if isinstance(error, (NodeGone, DeadlineExceeded)):
            return error
        return NodeGone(f"{self._peer}: {error.strerror or error}")

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                pass
            except OSError as error:
                raise self._gone(error) from error
            if view:
                self._check(deadline)

    def _receive_exactly(self, view: memoryview, deadline: float) -> None:
        while view:
            try:
                count = self._socket.recv_into(view, len(view), socket.MSG_WAITALL)
            except BlockingIOError:
                count = -1
            except OSError as error:
                raise self._gone(error) from error
            if count == 0:
                raise NodeGone(f"{self._peer} closed the connection")
            view = view[max(0, count) :]
            if view:  # also after a part of it: a peer that trickles must not stretch the deadline
                self._check(deadline)

    def _receive_some(self, views: list[memoryview], deadline: float) -> None:
        """At most _IOV_MAX views, in one system call when nothing cuts it short."""
        if not any(views):
            return  # to receive nothing looks like the peer's end
        try:
            count = self._socket.recvmsg_into(views, 0, socket.MSG_WAITALL)[0]
        except BlockingIOError:
            self._check(deadline)
            count = 0
        except OSError as error:
            raise self._gone(error) from error
        else:
            if count == 0:
                raise NodeGone(f"{self._peer} closed the connection")
        for view in views:
            if count < len(view):
                self._receive_exactly(view[count:], deadline)
            count = max(0, count - len(view))

    def _receive_with_descriptors(self, view: memoryview, count: int, deadline: float) -> None:
        while True:
            try:
                data, descriptors, _flags, _address = socket.recv_fds(self._socket, len(view), count)
                break
            except BlockingIOError:
                self._check(deadline)
            except OSError as error:
                raise self._gone(error) from error
        self._descriptors += descriptors
        if not data:
            raise NodeGone(f"{self._peer} closed the connection")
        view[: len(data)] = data
        self._receive_exactly(view[len(data) :], deadline)


class SocketConnection:
    """Node's end over an accepted stream socket; see `interface.Connection`."""

    def __init__(self, sock: socket.socket, door: str, grants: bool) -> None:
        self.door = door
        self.grants = grants
        self._socket = sock
        self._decoder = frame.Decoder()
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(SEND_STALL_S))

    def receive(self) -> tuple[Header, bytes] | None:
        decoder = self._decoder
        while (got := decoder.next_frame()) is None:
            try:
                count = self._socket.recv_into(self._scratch)
            except OSError:
                return None
            if not count:
                return None
            decoder.feed(self._scratch[:count])
            if decoder.payload_left:
                raise ProtocolError("a request with a payload; no verb of this version takes one")
        if got[0].payload_bytes:
            raise ProtocolError("a request with a payload; no verb of this version takes one")
        return got

    def send(self, data: bytes, payload: Sequence[memoryview] = (), descriptors: Sequence[int] = ()) -> None:
        try:
            if descriptors:
                sent = socket.send_fds(self._socket, [data], list(descriptors))
                self._send_all([memoryview(data)[sent:], *payload])
            elif not payload:
                self._socket.sendall(data)
            else:
                self._send_all([memoryview(data), *payload])
        except OSError as error:
            raise NodeGone(f"{self.door} peer: {error.strerror or error}") from error

    def hang_up(self) -> None:
        # The descriptor stays taken: closed here, it could become another peer's while a thread still sends on it.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.hang_up()  # not only close: a thread blocked in recv() on this socket must wake up
        self._socket.close()

    def _send_all(self, views: list[memoryview]) -> None:
        start = 0
        while start < len(views):
            batch = views[start : start + _IOV_MAX]
            left = self._socket.sendmsg(batch)
            for view in batch:
                if left < len(view):
                    # Cut short by a full buffer after a timeout quantum, or by a signal.
                    views[start] = view[left:]
                    break
                left -= len(view)
                start += 1


class SocketListener:
    """Node's end of a listening stream socket; see `interface.Listener`. A door says how it adopts a new one."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening
        self.closed = False

    def adopt(self, sock: socket.socket) -> SocketConnection:
        """The connection over a socket that was just accepted."""
        raise NotImplementedError

    def accept(self) -> SocketConnection | None:
        while not self.closed:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                if self.closed:
                    break
                time.sleep(0.05)  # out of descriptors: one more moment, not a spin
                continue
            return self.adopt(sock)
        return None

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()


assert _SCRATCH_BYTES >= frame.HEADER_BYTES and limits.CLIENTS_MAX * _SCRATCH_BYTES <= limits.GIB
