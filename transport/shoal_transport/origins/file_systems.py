"""Every origin that obstore does not know, through fsspec, in threads of its own.

The fallback, not the fast path: correctness first. An object's version is whatever its file system's `info` tells
(etag or checksum, else a time); `cat_file` cannot ask for a version, so `info` is asked again after each read. The
threads are few, and daemons: a file system that hangs costs its threads, never the node's exit; whoever waits for one
has a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, TypeVar, cast

from shoal_core.errors import BadRequest, Forbidden, NotFound, ObjectChanged, OriginError, ShoalError
from shoal_transport.origins.interface import ObjectMeta, shown

THREADS_MAX = 4
LIST_CHUNK = 1000

_T = TypeVar("_T")
_KNOWN = "s3, gs, az, http, https, file"
_ETAG_FIELDS = ("ETag", "etag", "e_tag", "checksum", "md5", "sha256")
_TIME_FIELDS = ("mtime", "LastModified", "last_modified", "modified", "updated", "created")


class FsspecSource:
    """A `Source` over fsspec, if it can be imported. It knows no options of data sets: those are for object stores."""

    def __init__(self, settings: Mapping[str, Mapping[str, str]]) -> None:
        self._settings = settings
        self._open: dict[str, Any] = {}
        self._permits = asyncio.Semaphore(THREADS_MAX)

    async def head(self, url: str, dataset: str) -> ObjectMeta:
        return await self._in_thread(url, lambda: self._info(url))

    async def fetch(self, meta: ObjectMeta, offset: int, length: int, dataset: str) -> AsyncGenerator[memoryview, None]:
        yield await self._in_thread(meta.url, lambda: self._read(meta, offset, length))

    async def list(self, url: str, dataset: str) -> AsyncIterator[list[ObjectMeta]]:
        found = await self._in_thread(url, lambda: self._find(url))
        for start in range(0, len(found), LIST_CHUNK):
            yield found[start : start + LIST_CHUNK]

    async def close(self) -> None:
        self._open.clear()

    def _info(self, url: str) -> ObjectMeta:
        system, path = self._system(url)
        system.invalidate_cache()  # what a listing remembered may be old
        found = system.info(path)
        if found.get("type") == "directory":
            raise NotFound(f"{shown(url)}: names a directory, not an object")
        return _meta(url, found)

    def _read(self, meta: ObjectMeta, offset: int, length: int) -> memoryview:
        system, path = self._system(meta.url)
        got = memoryview(system.cat_file(path, start=offset, end=offset + length))
        if self._info(meta.url) != meta:
            raise ObjectChanged(f"{shown(meta.url)}: changed at the origin since it was opened")
        return got

    def _find(self, url: str) -> list[ObjectMeta]:
        system, path = self._system(url)
        system.invalidate_cache()
        if not system.exists(path):
            raise NotFound(f"{shown(url)}: no such directory")
        found: dict[str, Any] = system.find(path, detail=True)
        return [_meta(system.unstrip_protocol(name), found[name]) for name in sorted(found)]

    def _system(self, url: str) -> tuple[Any, str]:
        """The file system and the path in it."""
        scheme, _, rest = url.partition("://")
        name = f"{scheme}://{rest.partition('/')[0]}"
        system = self._open.get(name)
        if system is not None:
            return system, system._strip_protocol(url)
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise BadRequest(f"{scheme}://: unknown scheme; known: {_KNOWN}; fsspec would add more") from None
        covering = [p for p in self._settings if url == p or url.startswith(p if p.endswith("/") else p + "/")]
        try:
            system, path = url_to_fs(url, **self._settings.get(max(covering, key=len, default=""), {}))
        except (ValueError, ImportError) as error:
            text = f"{scheme}://: unknown scheme; known: {_KNOWN}, and what fsspec knows: {_first_line(error)}"
            raise BadRequest(text) from None
        if "::" not in url:  # a chained file system belongs to one path
            self._open[name] = system
        return system, path

    async def _in_thread(self, url: str, function: Callable[[], _T]) -> _T:
        """The permit goes back when the thread ends, not when its caller gives up: threads stay bounded."""
        await self._permits.acquire()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[_T] = loop.create_future()

        def settle(result: _T | None, error: Exception | None) -> None:
            self._permits.release()
            if outcome.done():
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(cast("_T", result))

        def work() -> None:
            result, error = None, None
            try:
                result = function()
            except Exception as raised:
                error = _translated(raised, url)
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(settle, result, error)

        threading.Thread(target=work, name="origin-fsspec", daemon=True).start()
        return await outcome


def _meta(url: str, found: Mapping[str, Any]) -> ObjectMeta:
    size = found.get("size")
    if size is None:
        raise OriginError(f"{shown(url)}: the origin does not tell the object's size")
    etag = next((str(found[field]) for field in _ETAG_FIELDS if found.get(field)), "")
    time = next((f"mtime:{found[field]}" for field in _TIME_FIELDS if found.get(field)), "")
    return ObjectMeta(url, int(size), etag or time)


def _first_line(error: BaseException) -> str:
    return shown(str(error).partition("\n")[0])[:300]


def _translated(error: Exception, url: str) -> ShoalError:
    if isinstance(error, ShoalError):
        return error
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return NotFound(f"{shown(url)}: no such object")
    if isinstance(error, PermissionError):
        return Forbidden(f"{shown(url)}: the origin refused access")
    return OriginError(f"{shown(url)}: {type(error).__name__}: {_first_line(error)}")
