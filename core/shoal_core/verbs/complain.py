"""complain: a reader found bytes that do not match their digests. The node hashes its own copy and decides.

Only the node's own finding quarantines a block; a reader with bad memory cannot empty the cache.
"""

from __future__ import annotations

import msgspec

KIND = 10


class Request(msgspec.Struct, array_like=True, frozen=True):
    entry: int
    generation: int


class Reply(msgspec.Struct, array_like=True, frozen=True):
    quarantined: bool
