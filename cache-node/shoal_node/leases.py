"""Who holds which blocks: leases by client, pure.

A client may look at a block's bytes until it has released the last grant of it that it was given, or is gone. Grants
are numbered, because a release and the next grant of the same block may pass each other on two connections: a release
that names an earlier number than the last is void. How many views a client has is its own business. The index counts
leases of all kinds per entry (clients' and those of transfers in progress); a block's slot is used again only when
that count is 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from shoal_core import limits
from shoal_core.index import Index


class Client:
    """One connected client."""

    __slots__ = ("asked", "connections", "entries", "grant_count", "leased_bytes", "process", "standing")

    def __init__(self, process: str) -> None:
        self.process = process
        self.entries: dict[int, int] = {}
        """The number of the last grant of each entry that it may look at."""
        self.grant_count = 0
        self.leased_bytes = 0
        self.connections = 0
        self.asked: set[int] = set()
        """Entries it was asked to give back and has not answered for."""
        self.standing = False
        """Whether its events connection is there: only then may it hold leases."""


class Leases:
    """All clients' leases. Returns entries that lost their last lease, for the state to act on."""

    def __init__(self, entries: Index, client_bytes_max: int) -> None:
        self._index = entries
        self.client_bytes_max = client_bytes_max
        self.clients: dict[bytes, Client] = {}

    def client(self, identity: bytes, process: str) -> Client:
        """One more connection of the client of that identity, made when it says hello for the first time."""
        found = self.clients.get(identity)
        if found is None:
            found = self.clients[identity] = Client(process)
        found.connections += 1
        return found

    def may_grant(self, client: Client, entry: int) -> bool:
        """Whether one more lease fits the client's limits; one that it holds already always does."""
        return entry in client.entries or (
            client.standing
            and client.leased_bytes + self._index.size[entry] <= self.client_bytes_max
            and len(client.entries) < limits.LEASES_PER_CLIENT_MAX
        )

    def grant(self, client: Client, entry: int) -> int:
        """Turns one transfer lease on `entry` into the client's lease; its number."""
        if entry in client.entries:
            self._index.leases[entry] -= 1
        else:
            client.leased_bytes += self._index.size[entry]
        client.grant_count += 1
        client.entries[entry] = client.grant_count
        client.asked.discard(entry)
        return client.grant_count

    def release(self, client: Client, entry: int, lease: int) -> bool:
        """The client gives a grant back. Whether it was the last of that block, and the lease has ended."""
        if client.entries.get(entry) != lease:
            return False
        del client.entries[entry]
        client.asked.discard(entry)
        client.leased_bytes -= self._index.size[entry]
        self._index.leases[entry] -= 1
        return True

    def gone(self, identity: bytes, events: bool) -> list[int]:
        """A connection of the client ended; with its events connection all its leases do. The entries concerned."""
        client = self.clients[identity]
        client.connections -= 1
        if not client.connections:
            del self.clients[identity]
        if not events:
            return []
        entries, client.entries = list(client.entries), {}
        client.asked.clear()
        client.leased_bytes = 0
        client.standing = False
        for entry in entries:
            self._index.leases[entry] -= 1
        return entries

    def ask_back(self, entries: Iterable[int]) -> dict[bytes, list[tuple[int, int]]]:
        """(entry, lease) of who holds these, by client, each that was not asked for already; from now on it is."""
        wanted: dict[bytes, list[tuple[int, int]]] = {}
        for entry in entries:
            for identity, client in self.holders(entry):
                if entry not in client.asked:
                    client.asked.add(entry)
                    wanted.setdefault(identity, []).append((entry, client.entries[entry]))
        return wanted

    def holders(self, entry: int) -> list[tuple[bytes, Client]]:
        return [(identity, client) for identity, client in self.clients.items() if entry in client.entries]

    @property
    def count(self) -> int:
        return sum(len(client.entries) for client in self.clients.values())

    @property
    def leased_bytes(self) -> int:
        return sum(client.leased_bytes for client in self.clients.values())

    def check(self) -> None:
        """Assert that the counts agree; for tests and simulation."""
        held: Counter[int] = Counter()
        for client in self.clients.values():
            assert client.standing or not client.entries, "leases without an events connection"
            assert client.leased_bytes == sum(self._index.size[entry] for entry in client.entries)
            assert client.leased_bytes <= self.client_bytes_max
            assert client.asked <= client.entries.keys()
            held.update(client.entries.keys())
        assert all(self._index.leases[entry] >= count for entry, count in held.items())
