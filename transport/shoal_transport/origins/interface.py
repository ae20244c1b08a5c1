"""What the node knows of an object at its origin, and what a kind of origin must be able to do.

A `Source` speaks to one family of origins (obstore's stores, fsspec's file systems). It knows nothing of deadlines
or of the cache's memory: `reader.Origins` bounds every call and alone writes into slots. That matters: a read that was
given up must never write into memory that meanwhile belongs to somebody else, so a source hands over pieces of its own
memory, and whoever waits for them copies them, or is gone.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol
from urllib.parse import urlsplit

import msgspec


class ObjectMeta(msgspec.Struct, frozen=True):
    """One version of one object."""

    url: str
    size: int
    etag: str
    """The origin's etag; 'mtime:<text>' where it gives only a time; '' where it gives neither (then only the size is
    compared)."""


class Source(Protocol):
    """One family of origins. Methods raise errors of `shoal_core.errors` that name the URL. `dataset`: whose
    options are used; see `own_options`."""

    async def head(self, url: str, dataset: str) -> ObjectMeta: ...

    def fetch(self, meta: ObjectMeta, offset: int, length: int, dataset: str) -> AsyncGenerator[memoryview, None]:
        """The bytes of exactly this version, in order, in pieces of any size that nobody else writes to."""
        ...

    def list(self, url: str, dataset: str) -> AsyncIterator[list[ObjectMeta]]: ...

    async def close(self) -> None: ...


_USER_INFO = re.compile(r"(?<=//)[^/@\s]*@")
_QUERY = re.compile(r"\?\S*")


def shown(url: str) -> str:
    """The URL as error texts and logs may show it: without user and password, without a signed query."""
    if urlsplit(url[:16]).scheme in ("http", "https"):
        url = _QUERY.sub("?...", url)
    return _USER_INFO.sub("", url)
