"""list: the objects below a URL, a page at a time, as the origin lists them. Each needs no HEAD afterwards."""

from __future__ import annotations

import msgspec

from shoal_core.verbs.resolve import Object

KIND = 7


class Request(msgspec.Struct, array_like=True, frozen=True):
    url: str
    cursor: int
    """0 starts a listing; then what the last reply said."""
    deadline_ms: int


class Reply(msgspec.Struct, array_like=True, frozen=True):
    objects: list[Object]
    cursor: int
    """0 when this was the last page."""
