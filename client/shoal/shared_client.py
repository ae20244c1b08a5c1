"""One client per process and way of connecting, for adapters whose hosts make objects freely.

fsspec makes a file system per thread, pandas one per call, a DataLoader a data set per worker. None of them has a
moment at which to close a connection of its own, so they share these, which live as long as the process. A forked
child inherits the entry, and the client in it connects anew there; a spawned one starts with an empty table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import shoal

if TYPE_CHECKING:
    from shoal.client import Client

_clients: dict[tuple[tuple[str, Any], ...], Client] = {}


def get(**options: Any) -> Client:
    """The client for these options of `shoal.connect`; None means not given."""
    given = tuple(sorted((name, value) for name, value in options.items() if value is not None))
    client = _clients.get(given)
    if client is None:
        # No lock, which a fork could copy while it is held: of two threads that meet here, one closes its client again.
        made = shoal.connect(**dict(given))
        client = _clients.setdefault(given, made)
        if client is not made:
            made.close()
    return client
