"""A small real HTTP origin that misbehaves on request.

Serves bytes with Range, ETag, If-Match and If-None-Match, and counts what it was asked. A fault plan per path says what
goes wrong and when: a status, a body that is cut short, another etag after some requests, a reply that waits for the
test, a connection that is reset. Faults are consumed in order; a fault without `times` stays. Nothing here sleeps: a
reply that is to be late waits for an event that the test sets (or for the end of the server).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

GATE_TIMEOUT_S = 30.0
_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


@dataclass(slots=True)
class Fault:
    """One thing that goes wrong: for `times` requests (None: for all), after the first `after` were served well."""

    status: int | None = None
    """Answer with this status and no object."""
    body_bytes: int | None = None
    """Promise the whole length, send only so many bytes, then close."""
    reset: bool = False
    """Reset the connection instead of answering; with `body_bytes`, after so many bytes."""
    gate: threading.Event | None = None
    """Answer only when this is set; alone it delays a good reply."""
    after: int = 0
    times: int | None = None
    methods: tuple[str, ...] = ("GET",)


@dataclass(slots=True)
class _Object:
    data: bytes
    etag: str
    faults: list[Fault] = field(default_factory=list[Fault])
    waiting_changes: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])


class Seen(NamedTuple):
    method: str
    path: str
    range: str
    if_match: str


class HttpOrigin:
    """The running origin. Paths are given as they are, unquoted and with a leading slash."""

    def __init__(self) -> None:
        self._objects: dict[str, _Object] = {}
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._closing = threading.Event()
        self.seen: list[Seen] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.origin = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def url(self, path: str) -> str:
        return self.base_url + quote(path)

    def put(self, path: str, data: bytes) -> str:
        """Serves `data` at `path` from now on; returns its URL. Faults of the path stay."""
        with self._lock:
            old = self._objects.get(path)
            self._objects[path] = _Object(data, _etag(data), old.faults if old else [])
        return self.url(path)

    def delete(self, path: str) -> None:
        with self._lock:
            del self._objects[path]

    def fail(self, path: str, fault: Fault) -> None:
        """Adds a fault to the path's plan."""
        with self._lock:
            self._objects[path].faults.append(fault)

    def heal(self, path: str) -> None:
        with self._lock:
            self._objects[path].faults.clear()

    def change_after(self, path: str, requests: int, data: bytes) -> None:
        """After `requests` more GETs the object becomes `data`, with another etag."""
        with self._lock:
            self._objects[path].waiting_changes.append((requests, data))

    def count(self, path: str, method: str = "GET") -> int:
        with self._lock:
            return sum(seen.path == path and seen.method == method for seen in self.seen)

    def await_requests(self, path: str, count: int = 1, method: str = "GET") -> None:
        """Returns when so many requests have arrived, answered or not; TimeoutError when they do not come."""
        with self._arrived:
            if not self._arrived.wait_for(
                lambda: sum(seen.path == path and seen.method == method for seen in self.seen) >= count, GATE_TIMEOUT_S
            ):
                raise TimeoutError(f"fewer than {count} {method} requests for {path}")

    def reset_counts(self) -> None:
        with self._lock:
            self.seen.clear()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, method: str, path: str, range_header: str, if_match: str) -> tuple[_Object | None, Fault | None]:
        """Notes a request and says what it gets: the object as it is now, and the fault to commit."""
        with self._lock:
            self.seen.append(Seen(method, path, range_header, if_match))
            self._arrived.notify_all()
            item = self._objects.get(path)
            if item is None:
                return None, None
            if method == "GET":
                self._apply_changes(item)
            return _Object(item.data, item.etag), _next_fault(item.faults, method)

    def wait(self, gate: threading.Event) -> None:
        """Waits for the test's event, the end of the server or the deadline, whichever is first."""
        for _ in range(int(GATE_TIMEOUT_S / 0.05)):
            if gate.wait(0.05) or self._closing.is_set():
                return

    def _apply_changes(self, item: _Object) -> None:
        due = [data for requests, data in item.waiting_changes if requests <= 0]
        item.waiting_changes = [(requests - 1, data) for requests, data in item.waiting_changes if requests > 0]
        for data in due:
            item.data, item.etag = data, _etag(data)


def _next_fault(faults: list[Fault], method: str) -> Fault | None:
    for fault in list(faults):
        if method not in fault.methods:
            continue
        if fault.after > 0:
            fault.after -= 1
            return None
        if fault.times is not None:
            fault.times -= 1
            if fault.times <= 0:
                faults.remove(fault)
        return fault
    return None


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    origin: HttpOrigin

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base class's
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if_match = self.headers.get("If-Match", "")
        range_header = self.headers.get("Range", "")
        item, fault = self.server.origin.take(self.command, path, range_header, if_match)
        if fault is not None and fault.gate is not None:
            self.server.origin.wait(fault.gate)
        if item is None:
            return self._status(404)
        if fault is not None and fault.status is not None:
            return self._status(fault.status)
        if fault is not None and fault.reset and fault.body_bytes is None:
            return self._reset()
        if if_match not in ("", "*", item.etag):
            return self._status(412)
        if self.headers.get("If-None-Match", "") == item.etag:
            return self._status(304)
        return self._send(item, range_header, fault, with_body=with_body)

    def _send(self, item: _Object, range_header: str, fault: Fault | None, *, with_body: bool) -> None:
        size = len(item.data)
        span = _span(range_header, size)
        if span is None:
            return self._status(416)
        start, stop = span
        self.send_response(206 if range_header else 200)
        self.send_header("ETag", item.etag)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", "Mon, 23 Nov 2026 12:00:00 GMT")
        self.send_header("Content-Length", str(stop - start))
        if range_header:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if not with_body:
            return None
        cut = fault.body_bytes if fault is not None else None
        self.wfile.write(item.data[start:stop][:cut])
        if cut is not None and fault is not None:
            self.wfile.flush()
            self.close_connection = True
            if fault.reset:
                self._reset()
        return None

    def _status(self, status: int) -> None:
        body = b"" if status in (204, 304) or self.command == "HEAD" else f"status {status}\n".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        """SO_LINGER of zero makes close() send RST instead of FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _span(header: str, size: int) -> tuple[int, int] | None:
    """[start, stop) that a Range header asks for; None when it cannot be satisfied."""
    match = _RANGE.match(header)
    if match is None or match.groups() == ("", ""):
        return 0, size
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    if int(first) >= size:
        return None
    return int(first), min(size, int(last) + 1) if last else size


@contextlib.contextmanager
def serve() -> Iterator[HttpOrigin]:
    origin = HttpOrigin()
    origin.start()
    try:
        yield origin
    finally:
        origin.close()
