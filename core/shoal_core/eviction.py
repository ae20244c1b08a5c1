"""Who goes first: the order in which the entries of one (space, class) of one tier are evicted.

The caller asks for a `victim`, which stays where it is, and then says `evict` (dropped to make room: the policy may
remember it) or `remove` (gone for any other reason). `skip` is the caller's word that an entry cannot go now, because
it is leased or in transfer; a skipped entry moves to the far end of its queue, as one in use should, and after
`limits.VICTIM_SKIPS_MAX` of them the answer is None: not now. Asking again goes on with others.

Times are whole seconds of the caller's clock and never run backwards; nothing here reads a clock. Every policy takes
a TTL, which needs no policy of its own: what has expired is asked for apart from victims. Where a reader says what it
will read next, `with_next_use` puts that order around the policy that the space has (see `next_use`).
"""

from collections.abc import Callable
from typing import Literal, Protocol

from shoal_core.next_use import Clock, NextUse
from shoal_core.queues import Links, Timed
from shoal_core.s3fifo import S3Fifo
from shoal_core.scan import Scan

PolicyName = Literal["s3fifo", "epoch", "pin"]


class Policy(Protocol):
    """What a tier asks of an order of eviction."""

    def __len__(self) -> int: ...
    def insert(self, entry: int, key_hash: int, now_s: int) -> None:
        """`key_hash` is 64 bits of the key, the same for the same key always."""
        ...

    def touch(self, entry: int, count: int = 1) -> None: ...
    def remove(self, entry: int) -> None: ...
    def evict(self, entry: int, key_hash: int) -> None:
        """Removes a victim, and remembers its key where that tells a returning block from a new one."""
        ...

    def victim(self, skip: Callable[[int], bool]) -> int | None: ...
    def keeps(self, entry: int) -> bool:
        """Whether the entry would outlive its next turn, so that lending it out does not stand in the way."""
        ...

    def oldest_s(self) -> int | None:
        """When the likely next victim was queued: the policy that answers the earliest time gives way first."""
        ...

    def sort_births(self) -> None:
        """To be called when entries were inserted with times out of order, before anything else is asked."""
        ...

    def expired(self, now_s: int, count_max: int = 256) -> list[int]:
        """Entries older than the TTL, oldest first; the caller removes them. O(1) when there are none."""
        ...


class Pin(Timed):
    """'pin': nothing ever makes room; a full space refuses newcomers."""

    __slots__ = ("_length",)

    def __init__(self, links: Links, ttl_s: int | None = None) -> None:
        super().__init__(links, ttl_s)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def insert(self, entry: int, key_hash: int, now_s: int) -> None:
        self._length += 1
        self.birth(entry, now_s)

    def touch(self, entry: int, count: int = 1) -> None:
        pass

    def remove(self, entry: int) -> None:
        self._length -= 1
        self.forget_birth(entry)

    def evict(self, entry: int, key_hash: int) -> None:
        self.remove(entry)

    def victim(self, skip: Callable[[int], bool]) -> int | None:
        return None

    def keeps(self, entry: int) -> bool:
        return True

    def oldest_s(self) -> int | None:
        return None


def policy(name: PolicyName, links: Links, ttl_s: int | None = None) -> Policy:
    """The policy that a space's configuration names."""
    return {"s3fifo": S3Fifo, "epoch": Scan, "pin": Pin}[name](links, ttl_s)


def with_next_use(base: Policy, links: Links, clock: Clock) -> Policy:
    """`base`, entries and all, inside the order by next use. What is pinned stays as it is, whoever reads it next."""
    return NextUse(base, links, clock) if isinstance(base, S3Fifo | Scan) else base
