"""fetch: whole blocks by key, if they are here. One node asks another.

Nothing is brought from elsewhere for it, so it never waits for an origin, and no two nodes can wait for each other. The
key says which bytes are meant: fingerprint and version are in it. What comes is checked against the digests by who
asked, and can then be published there under the same key.
"""

from __future__ import annotations

import msgspec

from shoal_core.verbs.get import Bypass, Inline

KIND = 15


class Request(msgspec.Struct, array_like=True, frozen=True):
    keys: list[bytes]
    deadline_ms: int


class Reply(msgspec.Struct, array_like=True, frozen=True):
    items: list[Inline | Bypass]
    """In order; a whole block each, or why it is not here. The bytes are in the payload."""
    epoch: int
    load: float
