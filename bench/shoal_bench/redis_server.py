"""Redis beside us: Debian's redis-server on a Unix socket, and the two fastest ways to ask it from Python.

`Redis` (the redis package, with hiredis where that is installed) is what people use. `Bare` speaks the same protocol
with one send, large receives and slices, and no check of anything: about the least that a client in Python can do.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_START_S = 20.0


class Unavailable(Exception):
    """There is no Redis here; the text says what is missing."""


class Bare:
    """MGET over a raw socket."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._buffer = memoryview(bytearray(64 << 20))

    def mget(self, names: Sequence[bytes], size: int) -> list[bytes]:
        """Values that all have `size` bytes."""
        words = [b"MGET", *names]
        self._socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words))
        first = len(b"*%d\r\n" % len(names))
        head = len(b"$%d\r\n" % size)
        stride = head + size + 2
        wanted, got, buffer = first + len(names) * stride, 0, self._buffer
        while got < wanted:
            got += self._socket.recv_into(buffer[got:wanted], wanted - got, socket.MSG_WAITALL)
        start = first + head
        return [bytes(buffer[at : at + size]) for at in range(start, start + len(names) * stride, stride)]

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def running(place: Path) -> Iterator[str]:
    """The path of the socket of a server that keeps nothing on disk. Unavailable says what is missing."""
    program = shutil.which("redis-server")
    if program is None:
        raise Unavailable("redis-server is not installed (Debian: apt-get install redis-server)")
    path = place / "redis.sock"
    process = subprocess.Popen(
        [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(place)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + _START_S
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable("redis-server did not start")
            time.sleep(0.01)
        yield str(path)
    finally:
        process.terminate()
        process.wait()


def package(path: str) -> tuple[Any, str] | None:
    """A client of the redis package and how to call it in the table, or None where it is not installed."""
    try:
        import redis
    except ImportError:
        return None
    try:
        import hiredis  # noqa: F401  # type: ignore[import-not-found]

        parser = "hiredis"
    except ImportError:
        parser = "no hiredis"
    return redis.Redis(unix_socket_path=path), f"redis-py, {parser}"
