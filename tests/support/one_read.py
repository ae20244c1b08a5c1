"""One gather over the nodes a, b and c, with a clock that tests turn by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence

from shoal_core import view
from shoal_core.gather import Action, Gather
from shoal_core.router import Router
from shoal_core.routing import Attempt, Distance, Here

T = 1_000_000_000
MS = 1_000_000
A, B, C = range(3)


class Read:
    """One gather over nodes a, b, c, and what it wants done."""

    def __init__(
        self, *ways: list[Attempt], sizes: Sequence[int] | None = None, hedges: bool = True, **limit: int
    ) -> None:
        self.router = Router(Here(), random.Random(1))
        known = view.make(1, [view.Node(node_id, (), 1) for node_id in "abc"])
        self.router.adopt(known)
        self.a, self.b, self.c = known.nodes
        while not hedges and self.router.may_hedge():
            pass
        self.gather = Gather(self.router, sizes or [10] * len(ways), ways, **limit)

    def done(self) -> list[Action]:
        """The actions since the last time."""
        actions, self.gather.actions = self.gather.actions, []
        return actions

    def start(self, now_ns: int = T) -> list[Action]:
        self.gather.start(now_ns)
        return self.done()

    def tick(self, now_ns: int) -> list[Action]:
        self.gather.tick(now_ns)
        return self.done()

    def answer(self, request: int, *results: int, now_ns: int = T + MS) -> list[Action]:
        self.gather.begun(request, now_ns)
        self.gather.answered(request, results, now_ns)
        return self.done()

    def failures(self) -> list[int]:
        return [self.router.peer(node_id).failure_count for node_id in "abc"]

    def in_flight(self) -> list[int]:
        return [self.router.peer(node_id).in_flight for node_id in "abc"]


def ways(*places: int, held: int | None = None) -> list[Attempt]:
    first = [] if held is None else [Attempt(held, Distance.FAR, True)]
    return [*first, *(Attempt(place, Distance.FAR) for place in places), Attempt(None, Distance.ORIGIN)]
