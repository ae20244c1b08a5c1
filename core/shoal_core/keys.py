"""Fingerprints and block keys: the identity of bytes.

A fingerprint (16 bytes, blake2b) holds everything that must match before bytes may be shared; for an object of a space
that is the space's uid, the URI, the version and the size. A block's key adds an opaque content key (for objects the
block's number) and is again 16 bytes. Nothing here is a bare path, and nothing depends on Python's `hash()`. Because
the space's uid is inside, two spaces, hence two tenants, can never meet on a key.
"""

from __future__ import annotations

import hashlib

FINGERPRINT_BYTES = 16
KEY_BYTES = 16

DERIVED = "derived:"
"""Begins the URL of an object that has no origin: it was made from others, and whoever misses it makes it again."""


def _digest(*parts: bytes) -> bytes:
    # Length prefixes make the encoding injective: ("ab", "c") and ("a", "bc") differ.
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(4, "little"))
        state.update(part)
    return state.digest()


def space_uid(tenant: str, name: str) -> bytes:
    """8 bytes that name a space of a tenant, the same on every node and over restarts."""
    return _digest(b"space", tenant.encode(), name.encode())[:8]


def object_fingerprint(space: bytes, url: str, version: str, size: int, block_size_bytes: int) -> bytes:
    """Fingerprint of one version of an object. The block size is part of it: it decides where blocks begin."""
    return _digest(
        b"object", space, url.encode("utf-8", "surrogatepass"), version.encode("utf-8", "surrogatepass"),
        size.to_bytes(8, "little"), block_size_bytes.to_bytes(4, "little"),
    )  # fmt: skip


def block_key(fingerprint: bytes, block: int) -> bytes:
    """Key of block number `block` of an object (16 bytes)."""
    return hashlib.blake2b(block.to_bytes(8, "little"), key=fingerprint, digest_size=16).digest()


def block_count(size: int, block_size_bytes: int) -> int:
    """Blocks of an object of `size` bytes; a zero-byte object has none."""
    return -(-size // block_size_bytes)
