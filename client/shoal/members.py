"""The nodes of the cluster, asked directly and all at once, for what concerns each: what it holds, what it counts.

Reads go by distance and load; here every node has its own answer. Each is asked in a thread of its own, and every
question ends at its deadline. Who does not answer is remembered in `silent` with the reason and asked no more: a node
that stopped costs one wait, not one for each question. The node at home is asked over the session, which may be the
only way to it; the others over the links that reads use.

Where there is no cluster, the node that is connected to is the only one, and there is no view.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from shoal.routed import Routed
from shoal.session import Session
from shoal_core import routing, view
from shoal_core.errors import DeadlineExceeded, NodeGone, ProtocolError, ShoalError
from shoal_core.router import Router
from shoal_core.routing import Distance
from shoal_core.verbs import view as view_verb

T = TypeVar("T")

DISTANCES = ("this process", "this host", "same rack", "same zone", "another zone", "origin")
"""For people, by Distance."""

PING_S = 2.0
"""A node that does not say its epoch within this is not asked for anything else."""

_THREADS_MAX = 32
_VIEWS_MAX = 3
"""Times that a later view is taken over before the nodes are asked: it may change while they are."""


def has_others(session: Session, routed: Routed, deadline: float) -> bool:
    """Whether there are other nodes than the one connected to. Connects, if that can be done."""
    with contextlib.suppress(ShoalError):
        session.attach(deadline)
    return routed.active


class Members:
    """One for each command or call. Not for several threads at once."""

    def __init__(self, session: Session, routed: Routed, deadline: float) -> None:
        """Connects, and finds out who answers. NodeGone when nobody is known to be asked."""
        self._session = session
        self._routed = routed
        self.alone = not has_others(session, routed, deadline)
        """Whether the node connected to is all there is."""
        self.silent: dict[str, str] = {}
        """Ids of nodes that did not answer, and why."""
        self.epochs: dict[str, int] = {}
        """Of each node's own view."""
        self.nodes: tuple[view.Node, ...] = ()
        """All of the view, those that are gone too."""
        if self.alone:
            session.attach(deadline)  # raises what is wrong with it
            self.nodes = (view.Node(routed.home_id, (str(session.address),), 0),)
        for _ in range(_VIEWS_MAX):
            if not self._greet(deadline):
                break

    @property
    def view(self) -> view.View | None:
        """The latest that is known; None: there is no cluster."""
        return None if self.alone else self._routed.router.view

    @property
    def router(self) -> Router:
        """What this process knows of the nodes. `router_lock` guards it."""
        return self._routed.router

    @property
    def router_lock(self) -> threading.Lock:
        return self._routed.lock

    @property
    def answering(self) -> list[str]:
        """Ids of those that may be asked."""
        return [node.id for node in self.nodes if node.status != "gone" and node.id not in self.silent]

    def node(self, node_id: str) -> view.Node | None:
        return next((node for node in self.nodes if node.id == node_id), None)

    def is_home(self, node_id: str) -> bool:
        """Whether it is the node that was connected to."""
        return node_id == self._routed.home_id

    def distance(self, node: view.Node) -> Distance:
        """From this process."""
        if self.alone:
            return Distance.NODE if self._routed.local else Distance.FAR
        return routing.distance(self._routed.router.here, node)

    def call(self, node: view.Node, kind: int, request: Any, deadline: float) -> Any:
        """One verb of one node."""
        if self.alone:
            return self._session.call(kind, request, deadline)
        if self.is_home(node.id):
            with contextlib.suppress(NodeGone):  # it may be back, or reachable by its other door
                return self._session.call(kind, request, deadline)
        return self._routed.links.call(node, kind, request, deadline)

    def each(self, ids: Iterable[str], work: Callable[[view.Node], T]) -> dict[str, T]:
        """What `work` gives for each of these nodes. Those that do not answer are missing in it; other errors, which
        nodes answered, are raised."""
        nodes = [node for node in self.nodes if node.id in set(ids) and node.id not in self.silent]
        found: dict[str, T] = {}

        def one(node: view.Node) -> None:
            try:
                found[node.id] = work(node)
            except (NodeGone, ProtocolError, DeadlineExceeded) as error:
                self.silent[node.id] = str(error)

        if len(nodes) == 1:
            one(nodes[0])
        elif nodes:
            with ThreadPoolExecutor(min(len(nodes), _THREADS_MAX), "shoal-members") as pool:
                for done in [pool.submit(one, node) for node in nodes]:
                    done.result()
        return {node.id: found[node.id] for node in nodes if node.id in found}

    def ask(self, kind: int, requests: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        """One verb of several nodes, by id, each with a request of its own; the replies by id."""
        return self.each(requests, lambda node: self.call(node, kind, requests[node.id], deadline))

    def ask_all(self, kind: int, request: Any, deadline: float) -> dict[str, Any]:
        """The same request to every node that answers."""
        return self.ask(kind, dict.fromkeys(self.answering, request), deadline)

    def _greet(self, deadline: float) -> bool:
        """Ask each for its view; whether one had a later one, by which there may be other nodes."""
        known = self.view
        if known is not None:
            self.nodes = known.nodes
        epoch = known.epoch if known is not None else 0
        replies = self.ask_all(view_verb.KIND, view_verb.Request(epoch), min(deadline, time.monotonic() + PING_S))
        self.epochs |= {node_id: reply.epoch for node_id, reply in replies.items()}
        if known is None:
            return False
        for reply in replies.values():
            if reply.view is not None:
                self._routed.adopt(reply.view)
        return self._routed.epoch > epoch
