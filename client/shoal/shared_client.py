"""One client per process and way of connecting, for adapters whose hosts make objects freely.

fsspec makes a file system per thread, pandas one per call, a DataLoader a data set per worker. None of them has a
moment at which to close a connection of its own, so they share these, which live as long as the process. A forked
child inherits the entry, and the client in it connects anew there; a spawned one starts with an empty table.

What comes from another process and says how that one was connected (`way`) is read here through a client connected
likewise (`like`): one that was offered, one of these, or a new one of these.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, TypeVar

import shoal

if TYPE_CHECKING:
    from shoal.client import Client

Name = TypeVar("Name")

Way = tuple[str, float, tuple[tuple[str, str], ...], tuple[str, str], str | None]
"""(address, seconds until a deadline, names of datasets and where they come from, zone and rack, token file)."""

_clients: dict[tuple[tuple[str, Any], ...], Client] = {}
_likewise: dict[Way, Client] = {}
_offered: weakref.WeakValueDictionary[Way, Client] = weakref.WeakValueDictionary()


def get(**options: Any) -> Client:
    """The client for these options of `shoal.connect`; None means not given."""
    given = tuple(sorted((name, value) for name, value in options.items() if value is not None))
    client = _open(_clients, given)
    if client is None:
        # No lock, which a fork could copy while it is held: of two threads that meet here, one closes its client again.
        made = shoal.connect(**dict(given))
        client = _clients.setdefault(given, made)
        if client is not made:
            made.close()
    return client


def way(client: Client) -> Way:
    """How this client is connected, for another process. BadRequest over the memory door."""
    address, deadline_s, datasets, place, token_file = client.__reduce__()[1]
    return address, deadline_s, tuple(sorted(datasets.items())), place, token_file


def offer(client: Client) -> None:
    """Let `like` find this client. Not kept alive; over the memory door, which leads nowhere else, nothing happens."""
    if isinstance(client.address, str):
        _offered[way(client)] = client


def like(way_: Way) -> Client:
    """A client of this process that is connected this way."""
    client = _offered.get(way_)
    if client is None or client.session.closed:
        shared = [each for each in list(_clients.values()) if isinstance(each.address, str) and not each.session.closed]
        client = next((each for each in shared if way(each) == way_), None) or _open(_likewise, way_)
    if client is None:
        address, deadline_s, datasets, (zone, rack), token_file = way_
        made = shoal.connect(
            address, deadline_s=deadline_s, datasets=dict(datasets), zone=zone, rack=rack, token_file=token_file
        )
        client = _likewise.setdefault(way_, made)
    return client


def _open(clients: dict[Name, Client], name: Name) -> Client | None:
    """The one of this name. One that somebody closed goes, so that another is made: others of this process need it."""
    client = clients.get(name)
    if client is not None and client.session.closed:
        clients.pop(name, None)
        return None
    return client
