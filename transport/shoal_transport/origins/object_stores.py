"""Object stores, web servers and local files, through obstore.

A read asks for one version (`If-Match`), and the answer's etag and size are compared again, because plain web servers
ignore `If-Match`; a local file is looked at once more after the read, because it may be written to meanwhile. obstore
retries with backoff and jitter: 5xx, lost connections, and a body that broke off (from where it broke off, under the
same etag). How long all of it may take is the caller's timeout, not obstore's.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, cast
from urllib.parse import quote

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore

from shoal_core.errors import NotFound, ObjectChanged, OriginError, ShoalError
from shoal_transport.origins.interface import ObjectMeta, shown
from shoal_transport.origins.own_options import OwnOptions
from shoal_transport.origins.stores import Stores
from shoal_transport.origins.translation import translated

SCHEMES = ("s3", "gs", "az", "http", "https", "file")
LIST_CHUNK = 1000
"""Objects in one chunk of a listing: what S3 sends in one answer."""
PIECE_BYTES = 1 << 20
"""Pieces in which a body arrives. Of 256 KiB, 1 MiB, 4 MiB and the whole body at once, 1 MiB took the least CPU time: a
piece is still in the CPU's cache when it is copied on, and costs one step of the event loop. What is no longer than
that is taken whole."""

_UNREADABLE_LOCAL_NAME = re.compile(r"#\d+(?:/|$)|[\x00-\x1f\x7f]")
_ERRORS = (BaseError, ValueError, OSError)


def can_read(url: str) -> bool:
    """False for other schemes, and for local names with control characters or '#' and digits at the end: those are
    obstore's own staging files."""
    scheme = url.partition("://")[0].lower()
    return scheme in SCHEMES and not (scheme == "file" and _UNREADABLE_LOCAL_NAME.search(url))


class ObstoreSource:
    """A `Source` over obstore."""

    def __init__(
        self, settings: Mapping[str, Mapping[str, str]], own_options: OwnOptions, *, retry_count_max: int
    ) -> None:
        self._stores = Stores(settings, own_options, retry_count_max=retry_count_max)

    async def head(self, url: str, dataset: str) -> ObjectMeta:
        place = self._stores.locate(url, dataset)
        try:
            return _meta(url, await obstore.head_async(place.store, place.key))
        except _ERRORS as error:
            raise _ours(error, url, place.host) from None

    async def fetch(self, meta: ObjectMeta, offset: int, length: int, dataset: str) -> AsyncGenerator[memoryview, None]:
        place = self._stores.locate(meta.url, dataset)
        options: dict[str, Any] = {}
        if length != meta.size:  # without a range, small objects can be read from servers that know no ranges
            options["range"] = (offset, offset + length)
        if meta.etag and not meta.etag.startswith(("mtime:", "W/")):  # no weak etag ever satisfies If-Match
            options["if_match"] = meta.etag
        try:
            result = await obstore.get_async(place.store, place.key, options=cast("obstore.GetOptions", options))
            _check_version(meta, result.meta)
            if result.range != (offset, offset + length):
                raise OriginError(f"{shown(meta.url)}: {place.host} answered with another range than was asked for")
            local = isinstance(place.store, LocalStore)  # its stream comes in pieces of 8 KiB
            if local or length <= PIECE_BYTES:  # at once: a stream of one piece costs 0.1 ms more
                got = memoryview(await result.bytes_async())
                if local:
                    _check_version(meta, await obstore.head_async(place.store, place.key))
                yield got
                return
            async for piece in result.stream(PIECE_BYTES):
                yield memoryview(piece)
        except _ERRORS as error:
            raise _ours(error, meta.url, place.host) from None

    async def list(self, url: str, dataset: str) -> AsyncIterator[list[ObjectMeta]]:
        place = self._stores.locate(url, dataset, is_prefix=True)
        scheme, _, rest = url.partition("://")
        web, local = scheme.lower().startswith("http"), scheme.lower() == "file"
        base = "file:///" if local else f"{scheme}://{rest.partition('/')[0]}/"
        try:
            if isinstance(place.store, LocalStore) and place.key:
                await _require_directory(place.store, place.key)
            async for chunk in obstore.list(place.store, place.key or None, chunk_size=LIST_CHUNK):
                kept = chunk if local else _without_markers(chunk)
                yield [_meta(base + (quote(found["path"]) if web else found["path"]), found) for found in kept]
        except _ERRORS as error:
            if web and not isinstance(error, (FileNotFoundError, PermissionError)):
                text = f"{shown(url)}: {place.host} gives no listing; name its objects one by one"
                raise OriginError(text) from None
            raise _ours(error, url, place.host) from None

    async def close(self) -> None:
        self._stores.close()


def _ours(error: Exception, url: str, host: str) -> ShoalError:
    return error if isinstance(error, ShoalError) else translated(error, url, host)


def _meta(url: str, found: obstore.ObjectMeta) -> ObjectMeta:
    return ObjectMeta(url, found["size"], _version(found))


def _version(found: obstore.ObjectMeta) -> str:
    if found["e_tag"]:
        return found["e_tag"]
    modified: datetime = found["last_modified"]  # obstore's word for 'not given' is 1970
    return f"mtime:{modified.isoformat()}" if modified.timestamp() > 0 else ""


def _check_version(meta: ObjectMeta, found: obstore.ObjectMeta) -> None:
    if _version(found) != meta.etag or found["size"] != meta.size:
        raise ObjectChanged(f"{shown(meta.url)}: changed at the origin since it was opened")


def _without_markers(chunk: Sequence[obstore.ObjectMeta]) -> list[obstore.ObjectMeta]:
    """Object stores keep empty 'directory/' objects, which obstore lists as 'directory', right before its contents."""
    following = [found["path"] for found in chunk[1:]] + [""]
    return [f for f, after in zip(chunk, following, strict=True) if f["size"] or not after.startswith(f["path"] + "/")]


async def _require_directory(store: LocalStore, path: str) -> None:
    """obstore lists a directory that is not there as an empty one."""
    try:
        await obstore.head_async(store, path)
    except FileNotFoundError as error:
        if "is directory" in str(error):
            return
        raise
    raise NotFound(f"file:///{path}: is a file, not a directory")
