"""An HTTP origin that counts: a real server in a process of its own, with ranges, whose objects need no memory.

`/NUMBER/SIZE` is object NUMBER of SIZE bytes. Which bytes those are follows from the number and the offset, so whoever
reads them anywhere can check all of them (`is_right`) without asking: each page of 64 KiB is a window into one random
MiB, and where that window lies is a hash of object and page. `/counts` says as JSON what was asked for so far; the
question itself is not counted.

usage: python -m shoal_bench.counting_origin    prints its port and serves until it is ended
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import xxhash

from shoal_core.limits import MIB, PAGE_BYTES

_RANGE = re.compile(r"bytes=(\d+)-(\d*)$")
_END_S = 20.0
_IOV_MAX = 512


@functools.cache
def _random() -> bytes:
    return random.Random(11).randbytes(MIB + PAGE_BYTES)


def _window(number: int, page: int) -> int:
    """Where a page lies in the random bytes."""
    return xxhash.xxh3_64_intdigest(b"%d/%d" % (number, page)) % MIB


def content(number: int, offset: int, length: int) -> list[memoryview]:
    """These bytes of an object, page by page."""
    parts: list[memoryview] = []
    whole = memoryview(_random())
    end = offset + length
    while offset < end:
        page, inside = divmod(offset, PAGE_BYTES)
        count = min(PAGE_BYTES - inside, end - offset)
        start = _window(number, page) + inside
        parts.append(whole[start : start + count])
        offset += count
    return parts


def is_right(number: int, offset: int, data: bytes | memoryview) -> bool:
    """Whether `data` is what the object has at `offset`; every byte is compared."""
    whole, view = _random(), memoryview(data)
    position = 0
    while position < len(view):
        page, inside = divmod(offset + position, PAGE_BYTES)
        part = view[position : position + PAGE_BYTES - inside]
        if not whole.startswith(part, _window(number, page) + inside):
            return False
        position += len(part)
    return True


class Counts(NamedTuple):
    gets: int
    bytes: int
    """Of bodies sent."""


class Origin:
    """The running server, as its users see it."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def url(self, number: int, size: int) -> str:
        return f"{self._url}/{number}/{size}"

    def counts(self) -> Counts:
        with urllib.request.urlopen(f"{self._url}/counts", timeout=_END_S) as reply:
            return Counts(**json.load(reply))


@contextlib.contextmanager
def running() -> Iterator[Origin]:
    """An origin for the length of a block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal_bench.counting_origin"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the origin did not start")
        yield Origin(int(line))
    finally:
        process.terminate()
        process.wait(_END_S)
        assert process.stdout is not None
        process.stdout.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.gets = self.bytes = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_HEAD(self) -> None:
        self._object(with_body=False)

    def do_GET(self) -> None:
        if self.path == "/counts":
            with self.server.lock:
                body = json.dumps({"gets": self.server.gets, "bytes": self.server.bytes}).encode()
            self._head(200, len(body))
            self.wfile.write(body)
        else:
            self._object(with_body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base class's
        pass

    def _object(self, *, with_body: bool) -> None:
        _, number, size = (int(word or 0) for word in self.path.split("/"))
        asked = _RANGE.match(self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        end = min(size, int(asked[2]) + 1) if asked and asked[2] else size
        extra = {
            "ETag": f'"{number}-{size}"',
            "Accept-Ranges": "bytes",
            "Last-Modified": "Mon, 23 Nov 2026 12:00:00 GMT",
        }
        if asked:
            extra["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._head(206 if asked else 200, end - start, extra)
        if not with_body:
            return
        with self.server.lock:
            self.server.gets += 1
        parts = content(number, start, end - start)
        for first in range(0, len(parts), _IOV_MAX):
            self._send(parts[first : first + _IOV_MAX])

    def _head(self, status: int, size: int, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(size), **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, parts: list[memoryview]) -> None:
        while parts:
            count = self.connection.sendmsg(parts)
            with self.server.lock:
                self.server.bytes += count
            while parts and count >= len(parts[0]):
                count -= len(parts.pop(0))
            if parts:
                parts[0] = parts[0][count:]


def main() -> None:
    with _Server() as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
