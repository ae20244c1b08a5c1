"""Page digests and block checksums: how bytes are known to be the bytes that were filled.

A block's digest table is one xxh3_64 (8 bytes, little endian) per 64 KiB page, the last page as long as it is. The
block's checksum is the xxh3_64 of that table, so a table can be rebuilt from the payload and checked against 8 bytes.
A reader of a range fetches whole pages and checks only those.
"""

from __future__ import annotations

import struct

import xxhash

from shoal_core.limits import DIGEST_BYTES, PAGE_BYTES

_hash = xxhash.xxh3_64_intdigest
_FULL_TABLE = struct.Struct("<64Q")


def page_count(size: int) -> int:
    """Pages of a block of `size` bytes."""
    return -(-size // PAGE_BYTES)


def page_digests(payload: memoryview) -> bytes:
    """Digest table of `payload`: 8 bytes for each started 64 KiB page, in order."""
    size = len(payload)
    if size <= PAGE_BYTES:
        return _hash(payload).to_bytes(8, "little") if size else b""
    values = [_hash(payload[start : start + PAGE_BYTES]) for start in range(0, size, PAGE_BYTES)]
    if len(values) == 64:
        return _FULL_TABLE.pack(*values)
    return struct.pack(f"<{len(values)}Q", *values)


def checksum(table: bytes) -> int:
    """The block's checksum: xxh3_64 of its digest table."""
    return _hash(table)


def matches(payload: memoryview, table: bytes) -> bool:
    """Whether `payload`, which starts at a page boundary, has exactly the digests in `table`."""
    return len(table) == page_count(len(payload)) * DIGEST_BYTES and page_digests(payload) == table
