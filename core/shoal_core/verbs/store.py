"""store: put one block of a derived object into the cache, where no origin could fill it from.

Only for derived objects (`keys.DERIVED`): nobody may say what an origin's object contains. The node copies the block
into a slot of its own, hashes that copy and publishes it, so a store that fails was never visible. A block that is
there already stays as it is.
"""

from __future__ import annotations

import msgspec

KIND = 14


class Request(msgspec.Struct, array_like=True, frozen=True):
    fingerprint: bytes
    block: int
    data: bytes
    """All of the block. A cache whose blocks do not fit a frame's body keeps no derived objects."""
    deadline_ms: int


class Reply(msgspec.Struct, array_like=True, frozen=True):
    stored: bool
    """False: it was there already."""
