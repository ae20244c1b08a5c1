"""hello: the first frame of every connection. Says who the client is and which of its two connections this is.

A client has one `events` connection, on which the node asks (revoke) and whose end means that the client is gone, and
any number of `requests` connections. Leases belong to the client, so grants are given only while its events connection
stands.

Where a connection must prove who it is, its token does that here. What it is refused for ends it.
"""

from __future__ import annotations

import msgspec

KIND = 1

REQUESTS = "requests"
EVENTS = "events"


class Request(msgspec.Struct, array_like=True, frozen=True):
    client: bytes
    """16 random bytes, drawn anew for each events connection: it names who holds the leases."""
    role: str
    """`requests` or `events`."""
    process: str
    """Shown by `shoal top`: program name and pid."""
    token: str = ""
    """Proves who asks, where the node wants that proved; see `shoal_core.access`."""


class Reply(msgspec.Struct, array_like=True, frozen=True):
    node: str
    epoch: int
    block_size_bytes: int
    leased_bytes_max: int
    batch_bytes_max: int
    """Most bytes of one `get`: a batch is held whole until its last block is filled, so it is a part of the cache."""
    grants: bool
    """Whether `get` may answer with grants: this door can pass descriptors, and its reader may map the memory."""
    pid: int
    origin_environment: str
    """Digest of the origin settings the node was started with, to tell a client that its own differ."""
