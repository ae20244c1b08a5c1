"""map: the descriptor of a segment, passed beside the reply. Only on doors that can pass descriptors."""

from __future__ import annotations

import msgspec

KIND = 5


class Request(msgspec.Struct, array_like=True, frozen=True):
    segment: int


class Reply(msgspec.Struct, array_like=True, frozen=True):
    size: int
    """Bytes of the segment; the descriptor is sealed, so this cannot change."""
