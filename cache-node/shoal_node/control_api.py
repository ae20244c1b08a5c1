"""The control door: HTTP for kubelet, Prometheus and people. The only module that knows FastAPI and uvicorn.

    GET /healthz   the process answers (liveness)
    GET /readyz    it takes new readers (readiness); 503 and the reason while it does not
    GET /metrics   Prometheus text
    GET /status    everything `shoal stat` shows, JSON
    GET /view      the view as this node holds it, JSON with an ETag, for others to follow; 404 where it is alone
    POST /drain    hand over to the other nodes, stop granting and filling; answers 202 with the progress; with a key
                   file only to an operator's token
    DELETE /drain  take new readers again, after all; whoever may drain may do that
    GET /drain     the progress

No byte of cached data passes here. All calls into the node are plain and short and run on the node's own loop, so that
a probe answers only while that loop turns. Without a key file whoever may connect may drain: the address decides who
that is (a Unix socket is made for this user alone). Importing this module costs about 30 MiB and most of a second, so
the runtime imports it only where a control address is configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import stat
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from shoal_core.errors import ConfigError, Forbidden
from shoal_node import metrics

_JSON = "application/json"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_CONNECTIONS_MAX = 64
"""Probes and scrapes need a handful; one more is answered 503."""

_PROBE_S = 1.0

_GRACE_S = 2
"""How long open requests may take once the node ends; scrapes take milliseconds."""


class Node(Protocol):
    """What the control door needs of the runtime. Nothing here may block."""

    def status(self) -> dict[str, Any]:
        """The stat verb's values: plain data."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Whether new readers are welcome, and if not, why."""
        ...

    def check_operator(self, authorization: str) -> None:
        """Forbidden, unless a request with this header may change what the node does."""
        ...

    def start_drain(self) -> dict[str, Any]:
        """Grant and fill no more, finish what runs. Idempotent; returns the progress."""
        ...

    def cancel_drain(self) -> dict[str, Any]:
        """Be as before `start_drain`; returns the progress."""
        ...

    def drain_progress(self) -> dict[str, Any]: ...

    def view(self) -> tuple[int, bytes] | None:
        """Epoch and JSON of the view; None where the node is alone."""
        ...

    def metrics_values(self) -> tuple[metrics.Counters, metrics.Gauges]: ...


def make_app(node: Node) -> FastAPI:
    """The application over one node."""
    # No documentation pages: they load scripts from elsewhere, and a person has `shoal stat`.
    app = FastAPI(title="Shoal cache node", docs_url=None, redoc_url=None)

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        return "ok\n"

    @app.get("/readyz", response_class=PlainTextResponse)
    async def readyz() -> PlainTextResponse:
        ready, reason = node.ready()
        return PlainTextResponse("ok\n" if ready else f"{reason}\n", status_code=200 if ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        return Response(metrics.render(*node.metrics_values()), media_type=_PROMETHEUS)

    @app.get("/status")
    async def status() -> Response:
        return _json(node.status())

    @app.get("/view")
    async def view(request: Request) -> Response:
        known = node.view()
        if known is None:
            return PlainTextResponse("this node is alone\n", status_code=404)
        etag = f'"{known[0]}"'
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={"ETag": etag})
        return Response(known[1], media_type=_JSON, headers={"ETag": etag})

    def changed(request: Request, change: Callable[[], dict[str, Any]]) -> Response:
        try:
            node.check_operator(request.headers.get("authorization", ""))
        except Forbidden as error:
            return PlainTextResponse(f"{error}\n", status_code=401, headers={"WWW-Authenticate": "Bearer"})
        return _json(change(), status_code=202)

    @app.post("/drain", status_code=202)
    async def drain(request: Request) -> Response:
        return changed(request, node.start_drain)

    @app.delete("/drain", status_code=202)
    async def cancel_drain(request: Request) -> Response:
        return changed(request, node.cancel_drain)

    @app.get("/drain")
    async def drain_progress() -> Response:
        return _json(node.drain_progress())

    # Decorators register them; the names are for tracebacks.
    del healthz, readyz, prometheus, status, view, drain, cancel_drain, drain_progress
    return app


def _json(values: dict[str, Any], *, status_code: int = 200) -> Response:
    return Response(msgspec.json.encode(values), status_code=status_code, media_type=_JSON)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers (signals belong to the node) and without its ten wake-ups a second."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def main_loop(self) -> None:
        # uvicorn closes its sockets only when this returns; `serve` raises the cancellation again.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()


async def serve(app: FastAPI, address: str, *, listening: Callable[[str], None] | None = None) -> None:
    """Serve until cancelled, on "host:port" or "unix:/path". `listening` is told the address (of port 0, which)."""
    bound, path = _bind(address)
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        log_level=logging.WARNING,  # its greetings say nothing that the node's own do not
        access_log=False,
        server_header=False,
        date_header=False,
        ws="none",
        timeout_graceful_shutdown=_GRACE_S,
        limit_concurrency=_CONNECTIONS_MAX,
    )
    try:
        if listening is not None:
            listening(_address(bound))
        await _Server(config).serve(sockets=[bound])
    finally:
        bound.close()
        if path:
            path.unlink(missing_ok=True)
    raise asyncio.CancelledError


def _bind(address: str) -> tuple[socket.socket, Path | None]:
    """A bound socket, and its path if it is a Unix one. uvicorn would end the process where this raises."""
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        bound = socket.socket(socket.AF_UNIX)
        try:
            _remove_stale(path)
            bound.bind(str(path))
            path.chmod(0o600)
            bound.listen()
        except OSError as error:
            bound.close()
            raise ConfigError(f"doors.control: cannot listen on {address}: {error.strerror or error}") from None
        return bound, path
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f'doors.control: {address!r} is neither "host:port" nor "unix:/path"')
    host = host.strip("[]")
    try:
        family = socket.getaddrinfo(host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family[0], socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(family[4])
            bound.listen()
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ConfigError(f"doors.control: cannot listen on {address}: {error.strerror or error}") from None
    return bound, None


def _address(bound: socket.socket) -> str:
    name = bound.getsockname()
    if bound.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if bound.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def _remove_stale(path: Path) -> None:
    """Remove the socket of a node that died. One that answers is in use, and anything else is not ours to remove."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
