"""The door for kubelet and Prometheus: /healthz, /readyz and /metrics over plain HTTP.

    GET /healthz   503 when a watch is dead or the queue stuck: kubelet is to start the process again
    GET /readyz    503 until the first lists are in (on the replica that waits for its turn, too)
    GET /metrics   Prometheus text

Answered by the loop that does the work: a process whose loop hangs answers nothing, which kubelet understands as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web

Check = Callable[[], str]
"""What is wrong; empty: nothing."""


@contextlib.asynccontextmanager
async def serve(
    host: str, port: int, *, alive: Check, ready: Check, metrics: Callable[[], bytes]
) -> AsyncIterator[int]:
    """Serves while entered; gives the port (of port 0, which)."""

    async def healthz(_: web.Request) -> web.Response:
        return _verdict(alive())

    async def readyz(_: web.Request) -> web.Response:
        return _verdict(ready())

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", scrape)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _verdict(wrong: str) -> web.Response:
    return web.Response(text=f"{wrong or 'ok'}\n", status=503 if wrong else 200)
