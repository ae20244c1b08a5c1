"""Single flight: of all who want the same block at once, one brings it.

The first to join leads and does the work, the others wait. Everybody may leave at any time (a deadline, a cancelled
task), the leader too: then the one who has waited longest leads, so a flight with anybody in it always has a leader who
knows it. Only the present leader can finish a flight; one who was replaced comes too late, and is told so by an empty
answer. This module keeps the lists; running, waking and passing on the outcome is the caller's.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

from shoal_core.errors import InvariantBroken

K = TypeVar("K", bound=Hashable)
W = TypeVar("W", bound=Hashable)


class Flights(Generic[K, W]):
    """All flights of a node or client. A waiter is whatever the caller can wake, and joins a flight once."""

    def __init__(self) -> None:
        # Per flight its members, longest in it first; the first leads. A dict, so that leaving is O(1).
        self._members: dict[K, dict[W, None]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, key: K) -> bool:
        return key in self._members

    def join(self, key: K, waiter: W) -> bool:
        """True: this waiter leads, and must see that the work is done."""
        members = self._members.get(key)
        if members is None:
            self._members[key] = {waiter: None}
            return True
        if waiter in members:
            raise InvariantBroken(f"{waiter!r} joined the flight of {key!r} twice")
        members[waiter] = None
        return False

    def leader(self, key: K) -> W | None:
        """Who leads the flight of `key`; None when there is none."""
        members = self._members.get(key)
        return None if members is None else next(iter(members))

    def leave(self, key: K, waiter: W) -> W | None:
        """A waiter gives up. Returns the new leader if it led and others wait: they must be told to take over.

        When the last one leaves, the flight has ended without an outcome. Who is in no flight may leave as well.
        """
        members = self._members.get(key)
        if members is None or waiter not in members:
            return None
        led = next(iter(members)) == waiter
        del members[waiter]
        if not members:
            del self._members[key]
            return None
        return next(iter(members)) if led else None

    def finish(self, key: K, leader: W) -> list[W]:
        """The work is done, well or not: everybody in the flight, leader first, to be given the outcome."""
        members = self._members.get(key)
        if members is None or next(iter(members)) != leader:
            return []
        return list(self._members.pop(key))
