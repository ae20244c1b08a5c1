"""Calls on `Origins` as tests make them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from shoal_transport.origins import ObjectMeta, Origins

SECONDS = 20.0


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """An async test as a plain one, on a loop of its own."""

    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> None:
        asyncio.run(test(*arguments, **options))

    return run


async def read(origins: Origins, meta: ObjectMeta, offset: int, *lengths: int) -> list[bytes]:
    """The bytes, in buffers that held something else before."""
    buffers = [bytearray(b"\xee" * length) for length in lengths]
    await origins.fetch(meta, offset, [memoryview(buffer) for buffer in buffers], timeout_s=SECONDS)
    return [bytes(buffer) for buffer in buffers]


async def read_all(url: str, settings: dict[str, dict[str, str]] | None = None) -> bytes:
    origins = Origins(settings or {})
    meta = await origins.head(url, timeout_s=SECONDS)
    [got] = await read(origins, meta, 0, meta.size)
    await origins.close()
    return got
