"""The Unix door: control over a stream socket, bytes by descriptors of sealed segments that the client maps.

The socket's directory is private to who may use the node; the socket file of a node that died is replaced.
"""

from __future__ import annotations

import os
import socket
import time

from shoal_core.errors import ConfigError, DeadlineExceeded, NodeGone
from shoal_transport.stream_socket import SocketChannel, SocketConnection

DOOR = "unix"


def connect(path: str, deadline: float) -> SocketChannel:
    """Channel to the node that listens at `path`. NodeGone when nobody does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.connect(path)
    except TimeoutError as error:
        sock.close()
        raise DeadlineExceeded(f"{path}: not accepted within the deadline") from error
    except OSError as error:
        sock.close()
        raise NodeGone(f"{path}: {error.strerror or error}") from error
    return SocketChannel(sock, DOOR, path)


class UnixListener:
    """Listens at a path; see `interface.Listener`."""

    def __init__(self, path: str, mode: int = 0o600) -> None:
        self.address = f"unix:{path}"
        self._path = path
        self._closed = False
        if len(os.fsencode(path)) > 107:
            raise ConfigError(f"doors.unix: {path!r} is longer than the 107 bytes a socket path may have")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._replace_stale(path)
            self._socket.bind(path)
            os.chmod(path, mode)
            self._socket.listen(512)
        except OSError as error:
            self._socket.close()
            raise ConfigError(f"doors.unix: cannot listen at {path}: {error.strerror or error}") from error

    def accept(self) -> SocketConnection | None:
        while not self._closed:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                if self._closed:
                    break
                time.sleep(0.05)  # out of descriptors: one more moment, not a spin
                continue
            return SocketConnection(sock, DOOR, grants=True)
        return None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass

    @staticmethod
    def _replace_stale(path: str) -> None:
        if not os.path.exists(path):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(path)
            except OSError:
                os.unlink(path)
                return
        raise ConfigError(f"doors.unix: another node already listens at {path}")
