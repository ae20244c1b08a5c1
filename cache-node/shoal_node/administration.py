"""Verbs that give nobody a block: what URLs stand for, what is cached, what is to be dropped or stored, complaints.

Each is a function from a request to the body of its reply, the same on every connection that may do everything; of one
that may not, `reader_verbs` has its own. They run in the asking connection's thread and may wait for the origin, within
the request's deadline. Verbs that give out blocks, or that concern the client who sent them, are the session's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from shoal_core import limits
from shoal_core.errors import DeadlineExceeded, ShoalError
from shoal_core.verbs import (
    complain,
    dataset,
    drain,
    evict,
    holding,
    inspect,
    listing,
    offer,
    resolve,
    stat,
    store,
    view,
)
from shoal_node import inspection, passing, stores
from shoal_node.resolver import Resolver
from shoal_node.runtime import Node

_GRACE_S = 1.0
"""A loop call may end this long after its deadline before its thread gives up on it."""

T = TypeVar("T")


class Administration:
    """One for the whole node; `verbs` is its table."""

    def __init__(self, node: Node, resolver: Resolver) -> None:
        self._node = node
        self._resolver = resolver
        self.verbs: dict[int, Callable[[Any], Any]] = {
            resolve.KIND: self._resolve, listing.KIND: self._list, inspect.KIND: self._inspect,
            evict.KIND: self._evict, complain.KIND: self._complain, dataset.KIND: self._dataset, stat.KIND: self._stat,
            store.KIND: self._store, offer.KIND: self._offer, view.KIND: self._view, holding.KIND: self._holding,
            drain.KIND: self._drain,
        }  # fmt: skip

    def _resolve(self, request: resolve.Request) -> resolve.Reply:
        return on_loop(self._node, self._resolver.resolve(request), request.deadline_ms)

    def _list(self, request: listing.Request) -> listing.Reply:
        return on_loop(self._node, self._resolver.list(request), request.deadline_ms)

    def _inspect(self, request: inspect.Request) -> inspect.Reply:
        return inspection.residency(self._node, request)

    def _evict(self, request: evict.Request) -> evict.Reply:
        return inspection.evict_objects(self._node, request)

    def _complain(self, request: complain.Request) -> complain.Reply:
        return complain.Reply(inspection.complain(self._node, request.entry, request.generation))

    def _dataset(self, request: dataset.Request) -> dataset.Reply:
        return dataset.Reply(self._node.datasets.declare(request))

    def _stat(self, request: stat.Request) -> stat.Reply:
        return stat.Reply(self._node.status())

    def _store(self, request: store.Request) -> store.Reply:
        return on_loop(self._node, stores.put(self._node, request), request.deadline_ms)

    def _offer(self, request: offer.Request) -> offer.Reply:
        return passing.take_over(self._node, request)

    def _view(self, request: view.Request) -> view.Reply:
        return passing.tell_view(self._node, request)

    def _holding(self, request: holding.Request) -> holding.Reply:
        return passing.tell_holding(self._node, request)

    def _drain(self, request: drain.Request) -> drain.Reply:
        return drain.Reply(self._node.drain(request.action))


def on_loop(node: Node, coroutine: Coroutine[Any, Any, T], deadline_ms: int) -> T:
    """What it returns or raises; DeadlineExceeded, and its end, a moment after the deadline."""
    future = asyncio.run_coroutine_threadsafe(coroutine, node.loop)
    try:
        return future.result(min(deadline_ms / 1000, limits.DEADLINE_S_MAX) + _GRACE_S)
    except TimeoutError as error:
        future.cancel()
        raise error if isinstance(error, ShoalError) else DeadlineExceeded("not done within the deadline") from None
