"""Reads from origins: object stores, web servers, local files, and whatever fsspec knows.

`Origins` picks the source by the URL's scheme, bounds every call by the caller's time, and copies what arrives into
the slots it was given, piece by piece: the only copy on our side of the store library. The copy is made by the caller's
own task, so that nothing is written any more once the call has ended; memory holds the object only if it ended well.
Whoever calls decides what is fetched when, how many at once, and what to do on an error.

URLs: `s3://bucket/key`, `gs://bucket/key`, `az://container/key`, `http(s)://host/path`, `file:///absolute/path`. The
key is what follows the slash, taken verbatim: '%', '#', '?' and spaces are themselves, except in http URLs, which
follow the web's rules. Any other scheme is tried with fsspec.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence

from shoal_core import keys
from shoal_core.errors import BadRequest, DeadlineExceeded, Forbidden, NotFound, OriginError
from shoal_transport.origins.file_systems import FsspecSource
from shoal_transport.origins.interface import ObjectMeta, Source, shown
from shoal_transport.origins.object_stores import ObstoreSource, can_read
from shoal_transport.origins.own_options import OwnOptions

RETRY_COUNT_MAX = 3
"""Repeats of one request, with backoff and jitter, all inside the caller's time."""


class Origins:
    """All origins of one node. Used from one event loop; any number of calls at once."""

    def __init__(self, settings: Mapping[str, Mapping[str, str]], *, retry_count_max: int = RETRY_COUNT_MAX) -> None:
        self.own_options = OwnOptions()
        """Options of data sets; everything else is read as `settings` and the environment say."""
        self._obstore = ObstoreSource(settings, self.own_options, retry_count_max=retry_count_max)
        self._fsspec = FsspecSource(settings)

    def _source(self, url: str) -> Source:
        scheme, separator, _ = url.partition("://")
        scheme = scheme.lower()
        if url.startswith(keys.DERIVED):
            raise NotFound(f"{url}: was made of other objects; no origin has it")
        if not separator:
            raise BadRequest(f"{shown(url)!r} is not a URL: expected scheme://..., such as s3://bucket/key")
        if scheme.startswith("shoal"):
            raise BadRequest(f"{shown(url)}: an origin cannot be a Shoal URL; name the store itself")
        return self._obstore if can_read(url) else self._fsspec

    async def head(self, url: str, *, timeout_s: float, dataset: str = "") -> ObjectMeta:
        """Size and version of the object as it is now. `dataset`: the data set that it is read for."""
        source = self._source(url)
        try:
            async with asyncio.timeout(timeout_s):
                await self.own_options.ready(dataset)
                with self._watched(dataset):
                    return await source.head(url, dataset)
        except TimeoutError as error:
            raise _late(error, url, timeout_s) from None

    async def fetch(
        self,
        meta: ObjectMeta,
        offset: int,
        into: Sequence[memoryview],
        *,
        timeout_s: float,
        filled: Callable[[memoryview], None] | None = None,
        dataset: str = "",
    ) -> None:
        """Fill the writable byte views one after the other with this version's bytes from `offset` on.

        `filled` is called with each view when its last byte is there, and the CPU still has it in its cache. After an
        error the views hold anything.
        """
        length = sum(len(view) for view in into)
        if offset < 0 or offset + length > meta.size:
            raise BadRequest(
                f"{shown(meta.url)}: bytes {offset} to {offset + length} of an object of {meta.size} bytes"
            )
        if length == 0:
            return
        source = self._source(meta.url)
        try:
            async with asyncio.timeout(timeout_s):
                await self.own_options.ready(dataset)
                with self._watched(dataset):
                    async with contextlib.aclosing(source.fetch(meta, offset, length, dataset)) as pieces:
                        await _scatter(meta, pieces, into, length, filled)
        except TimeoutError as error:
            raise _late(error, meta.url, timeout_s) from None

    async def list(self, url: str, *, timeout_s: float, dataset: str = "") -> AsyncIterator[list[ObjectMeta]]:
        """Every object below the prefix, recursively, in chunks. The time bounds each chunk, not the whole."""
        chunks = aiter(self._source(url).list(url, dataset))
        while True:
            try:
                async with asyncio.timeout(timeout_s):
                    await self.own_options.ready(dataset)
                    with self._watched(dataset):
                        chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise _late(error, url, timeout_s) from None
            yield chunk

    @contextlib.contextmanager
    def _watched(self, dataset: str) -> Generator[None]:
        """Whoever keeps a data set's credentials is told that they were refused."""
        try:
            yield
        except Forbidden:
            options = self.own_options.options(dataset)
            if options is not None and options.has_credentials:
                self.own_options.refused(dataset)
            raise

    async def close(self) -> None:
        """Forget connections. Closing twice is fine."""
        await self._obstore.close()
        await self._fsspec.close()


async def _scatter(
    meta: ObjectMeta,
    pieces: AsyncIterator[memoryview],
    into: Sequence[memoryview],
    length: int,
    filled: Callable[[memoryview], None] | None,
) -> None:
    """Copy pieces into the views, one after the other, as they come; exactly `length` bytes."""
    views = iter(into)
    view = room = memoryview(b"")
    count = 0
    async for piece in pieces:
        count += len(piece)
        if count > length:
            break
        while piece:
            if not room:
                view = room = next(views)
            part = min(len(room), len(piece))
            room[:part] = piece[:part]
            room, piece = room[part:], piece[part:]
            if filled is not None and not room:
                filled(view)
    if count != length:
        word = "fewer" if count < length else "more"
        raise OriginError(f"{shown(meta.url)}: short read: {count} bytes, {word} than the {length} asked for")


def _late(error: TimeoutError, url: str, timeout_s: float) -> DeadlineExceeded:
    if isinstance(error, DeadlineExceeded):
        return error
    return DeadlineExceeded(f"{shown(url)}: the origin did not answer within {timeout_s:g} s")
