"""evict: drop every block of these objects from every tier. Leased blocks go when their leases end."""

from __future__ import annotations

import msgspec

KIND = 9


class Request(msgspec.Struct, array_like=True, frozen=True):
    fingerprints: list[bytes]


class Reply(msgspec.Struct, array_like=True, frozen=True):
    blocks: int
