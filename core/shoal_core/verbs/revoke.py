"""revoke: the node asks a client, on its events connection, to give grants back. The one verb that goes that way.

The client answers at once which it released; the rest have live views and stay leased until their views end. Of a lease
that it does not know it says that it released it, and takes no late grant of that number.
"""

from __future__ import annotations

import msgspec

KIND = 6


class Request(msgspec.Struct, array_like=True, frozen=True):
    grants: list[tuple[int, int]]
    """(entry, lease) of each."""


class Reply(msgspec.Struct, array_like=True, frozen=True):
    released: list[tuple[int, int]]
    busy: list[tuple[int, int]]
