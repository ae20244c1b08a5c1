"""/healthz: whether the driver's sockets still let callers in.

kubelet's plugin directory may be emptied under a running driver; its sockets then exist for nobody but itself, and only
a restart helps. The API server is no part of it.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

_CONNECT_S = 1.0


@contextlib.contextmanager
def served(port: int, sockets: Sequence[Path]) -> Iterator[None]:
    """The answer is to be had at `port` for the length of a block; with 0 there is none."""
    if not port:
        yield
        return

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 5.0

        def do_GET(self) -> None:
            closed = [str(path) for path in sockets if not _lets_in(path)]
            text = f"no answer at {', '.join(closed)}\n" if closed else "ok\n"
            status = 404 if self.path != "/healthz" else 503 if closed else 200
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    server = _Server(("", port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(http.server.ThreadingHTTPServer):
    """On every address, of both kinds where there are two: kubelet asks at the pod's."""

    daemon_threads = True
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _lets_in(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_CONNECT_S)
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True
