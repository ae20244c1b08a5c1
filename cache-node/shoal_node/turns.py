"""Turns: at most so many at once, and of those who wait the lowest rank first. Belongs to one event loop.

A ticket's rank may be lowered while it waits, for instance because a reader now waits for what was only prefetched.
Whoever is cancelled while it waits, or just as its turn came, leaves no turn behind.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from types import TracebackType
from typing import TypeVar

Rank = tuple[int, int]

T = TypeVar("T")


class Ticket:
    """`async with turns.ticket(rank) as ticket`; before and during the wait, `hurry` may be called."""

    __slots__ = ("_turns", "future", "rank")

    def __init__(self, turns: Turns, rank: Rank) -> None:
        self._turns = turns
        self.rank = rank
        self.future: asyncio.Future[None] | None = None
        """Set while it waits."""

    def hurry(self, rank: Rank) -> None:
        """Be of this rank from now on, if it is lower."""
        if rank < self.rank:
            self.rank = rank
            if self.future is not None:
                self._turns.queue(self)

    async def __aenter__(self) -> None:
        await self._turns.enter(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns.leave()


class Turns:
    """The turns of one kind of work."""

    def __init__(self, count: int) -> None:
        self._free = count
        """0 while anybody waits."""
        self._waiting: list[tuple[Rank, int, Ticket]] = []
        """A heap. A ticket that hurried is in it twice; the entry of its former rank is void."""
        self._numbers = itertools.count()

    def ticket(self, rank: Rank) -> Ticket:
        return Ticket(self, rank)

    async def enter(self, ticket: Ticket) -> None:
        if self._free:
            self._free -= 1
            return
        future = ticket.future = asyncio.get_running_loop().create_future()
        self.queue(ticket)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.leave()
            raise
        finally:
            ticket.future = None

    def queue(self, ticket: Ticket) -> None:
        heapq.heappush(self._waiting, (ticket.rank, next(self._numbers), ticket))

    def leave(self) -> None:
        """A turn has ended: the next one's begins."""
        while self._waiting:
            rank, _, ticket = heapq.heappop(self._waiting)
            if ticket.future is not None and not ticket.future.done() and rank == ticket.rank:
                ticket.future.set_result(None)
                return
        self._free += 1


async def in_thread(work: asyncio.Future[T]) -> T:
    """Wait for a thread that writes into slots, also when cancelled: it must have ended before they are given away."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise
