"""holding: which of these blocks are here, in which tier, and if not, why. For people, `warm` and `explain`.

A block that is missed may be one of an object that was replaced at its origin: so one may ask for versions as well.
"""

from __future__ import annotations

import msgspec

KIND = 18

DRAM, DISK, NEAR, CORRUPT = 1, 2, 4, 8
"""Bits of a state. NEAR: a copy on a node that does not own the block. CORRUPT: it was looked at and was not good."""


class Ending(msgspec.Struct, array_like=True, frozen=True, gc=False):
    key: int
    """Position in `keys`."""
    reason: str
    age_s: int


class Version(msgspec.Struct, array_like=True, frozen=True, gc=False):
    url: int
    """Position in `urls`."""
    size: int
    etag: str
    fingerprint: bytes
    block_size_bytes: int


class Request(msgspec.Struct, array_like=True, frozen=True):
    keys: list[bytes]
    verify: bool = False
    """Hash each copy, in memory or on disk, against its digests first."""
    urls: list[str] = []
    """URLs at the origin: which versions of them are remembered here is told as well."""


class Reply(msgspec.Struct, array_like=True, frozen=True):
    states: bytes
    """One for each key; 0: not here."""
    endings: list[Ending]
    """Of those that are not here and once were, or could not be brought."""
    versions: list[Version] = []
