"""The Unix door: control over a stream socket, bytes by descriptors of sealed segments that the client maps.

The socket's directory is private to who may use the node. The socket file of a node that died is replaced; anything
else that lies there is not ours to remove. Nodes that start at once look and bind one after the other, under a lock on
the directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Generator

from shoal_core.errors import ConfigError, DeadlineExceeded, NodeGone
from shoal_transport import file_lock
from shoal_transport.stream_socket import SocketChannel, SocketConnection, SocketListener

DOOR = "unix"
_PROBE_S = 1.0
_TURN_S = 5.0
"""How long to wait for others that start in the same directory."""


def connect(path: str, deadline: float) -> SocketChannel:
    """Channel to the node that listens at `path`. NodeGone when nobody does."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:  # no descriptor is left
        raise NodeGone(f"{path}: {error.strerror or error}") from error
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


class UnixListener(SocketListener):
    """Listens at a path; see `interface.Listener`."""

    def __init__(self, path: str, mode: int = 0o600) -> None:
        self.address = f"unix:{path}"
        self._path = path
        if len(os.fsencode(path)) > 107:
            raise ConfigError(f"doors.unix: {path!r} is longer than the 107 bytes a socket path may have")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
            with _turn(os.path.dirname(path) or "."):
                _remove_stale(path)
                listening.bind(path)
                os.chmod(path, mode)
                listening.listen(512)
            self._inode = os.lstat(path).st_ino
        except ConfigError:
            listening.close()
            raise
        except OSError as error:
            listening.close()
            raise ConfigError(f"doors.unix: cannot listen at {path}: {error.strerror or error}") from error

        super().__init__(listening)

    def adopt(self, sock: socket.socket) -> SocketConnection:
        return SocketConnection(sock, DOOR, grants=True)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        with contextlib.suppress(FileNotFoundError):
            if os.lstat(self._path).st_ino == self._inode:
                os.unlink(self._path)


@contextlib.contextmanager
def _turn(directory: str) -> Generator[None]:
    """Nobody else of us looks at or replaces sockets in this directory meanwhile."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not file_lock.take(descriptor, time.monotonic() + _TURN_S):
            raise BlockingIOError(errno.EAGAIN, "another process is at work there and does not end", directory)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: str) -> None:
    """Remove the socket of a node that died; ConfigError for anything else that is there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"doors.unix: {path} is there and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(path)
            holder, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            if not isinstance(error, TimeoutError) and error.errno != errno.EAGAIN:
                raise
            raise ConfigError(f"doors.unix: somebody listens at {path} already, and is too busy to answer") from error
    raise ConfigError(f"doors.unix: process {holder} already listens at {path}")
