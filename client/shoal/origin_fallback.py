"""Reading from the origin without a node: what a client does when the node is gone or cannot hold a block.

Slower by design and always visible: counted as `direct` and said once. The same code as the node's reads the bytes,
with the credentials of this process's environment. In a forked child of a process that has read so before, a process of
its own does it (see `origin_process`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from shoal.objects import ObjectInfo
from shoal.origin_process import OriginProcess
from shoal_core import keys, limits
from shoal_core.errors import NodeGone, NotFound
from shoal_transport.origins import ObjectMeta, Origins

T = TypeVar("T")
_FINGERPRINT_SPACE = bytes(8)
_used_in: list[int] = []
"""The process that first read here, and so has obstore's threads."""
_processes: dict[int, OriginProcess] = {}
"""Helpers by the process that started them: a child has no use for its parent's."""


class OriginReader:
    """Blocking reads from origins. A loop of its own per call: this is the slow path."""

    def __init__(self, datasets: Mapping[str, str]) -> None:
        self.datasets = dict(datasets)

    def head(self, url: str, deadline: float) -> ObjectInfo:
        """The object as the origin has it now."""
        origin = self.origin_url(url)
        helper = _helper()
        meta = helper.head(origin, deadline) if helper is not None else head_here(origin, deadline)
        size = limits.BLOCK_BYTES_DEFAULT
        fingerprint = keys.object_fingerprint(_FINGERPRINT_SPACE, meta.url, meta.etag, meta.size, size)
        return ObjectInfo(url, meta.size, meta.etag, fingerprint, size, origin)

    def read(self, info: ObjectInfo, offset: int, into: memoryview, deadline: float) -> None:
        """Fill `into` from `offset` of exactly that version."""
        if info.origin.startswith(keys.DERIVED):
            raise NotFound(f"{info.url}: not in the cache, and no origin has it")
        meta = ObjectMeta(info.origin, info.size, info.etag)
        helper = _helper()
        (helper.fetch if helper is not None else fetch_here)(meta, offset, into, deadline)

    def origin_url(self, url: str) -> str:
        """The URL at the origin. A dataset's name can be translated only if the configuration says what it means."""
        if not url.startswith("shoal://"):
            return url
        name, _, path = url.removeprefix("shoal://").partition("/")
        if name not in self.datasets:
            raise NodeGone(f"{url}: the node is gone, and nothing here says where dataset {name!r} comes from")
        if not path:
            raise NotFound(f"{url}: names a dataset, not an object")
        return f"{self.datasets[name].rstrip('/')}/{path}"


def head_here(url: str, deadline: float) -> ObjectMeta:
    """In this process, with obstore."""

    async def ask() -> ObjectMeta:
        origins = Origins({})
        try:
            return await origins.head(url, timeout_s=_seconds(deadline))
        finally:
            await origins.close()

    return _run(ask())


def fetch_here(meta: ObjectMeta, offset: int, into: memoryview, deadline: float) -> None:
    """In this process, with obstore."""

    async def fetch() -> None:
        origins = Origins({})
        try:
            await origins.fetch(meta, offset, [into], timeout_s=_seconds(deadline))
        finally:
            await origins.close()

    _run(fetch())


def _helper() -> OriginProcess | None:
    """Who reads in our place, in a forked child of a process that has read here; else nobody."""
    process_id = os.getpid()
    if not _used_in:
        _used_in.append(process_id)
    return None if _used_in[0] == process_id else _processes.setdefault(process_id, OriginProcess())


def _seconds(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    # A thread of its own when the caller is inside an event loop already.
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
