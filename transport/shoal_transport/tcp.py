"""The TCP door: control and bytes on one connection; the node sends straight out of its segments.

`send` of mapped memory, not sendfile: it is faster on loopback, works on huge pages, and bytes that change after it
returned cannot reach the receiver. No buffer sizes are set, so that the kernel tunes them.
"""

from __future__ import annotations

import socket
import time

from shoal_core.errors import ConfigError, DeadlineExceeded, NodeGone
from shoal_transport.stream_socket import SocketChannel, SocketConnection, SocketListener

DOOR = "tcp"


def split(address: str) -> tuple[str, int]:
    """("host", port) of "host:port" or "[v6]:port"; ConfigError names what is wrong."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{address!r} is not host:port")
    return host.strip("[]") or "127.0.0.1", int(port)


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A peer that vanished without a word is noticed in about a minute, so that its leases end.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def connect(address: str, deadline: float) -> SocketChannel:
    """Channel to the node at "host:port". NodeGone when it does not answer."""
    host, port = split(address)
    try:
        sock = socket.create_connection((host, port), timeout=max(0.001, deadline - time.monotonic()))
    except TimeoutError as error:
        raise DeadlineExceeded(f"{address}: no connection within the deadline") from error
    except OSError as error:
        raise NodeGone(f"{address}: {error.strerror or error}") from error
    _tune(sock)
    return SocketChannel(sock, DOOR, address)


class TcpListener(SocketListener):
    """Listens at "host:port" (port 0: any); see `interface.Listener`."""

    def __init__(self, address: str) -> None:
        host, port = split(address)
        try:
            listening = socket.create_server((host, port), backlog=512)
        except OSError as error:
            raise ConfigError(f"doors.tcp: cannot listen at {address}: {error.strerror or error}") from error
        host, port = listening.getsockname()[:2]
        self.address = f"tcp:{host}:{port}"
        super().__init__(listening)

    def adopt(self, sock: socket.socket) -> SocketConnection:
        _tune(sock)
        return SocketConnection(sock, DOOR, grants=False)
