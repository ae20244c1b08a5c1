"""A loader's plan, told to the nodes that its reads go to: each hears of the blocks that it will be asked for.

A plan names runs of blocks, and the blocks of a run lie on many nodes. Each node gets a plan of its own, over a session
of its own (streams end with their client's events connection, so that a loader that dies leaves no plan behind), with
the same stream and position. Of the whole plan as much counts as dealt with as every node has dealt with.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from shoal.grants import Grants
from shoal.objects import ObjectInfo
from shoal.session import Session
from shoal_core import keys
from shoal_core.errors import NodeGone, ShoalError, UnknownObject
from shoal_core.verbs import plan, resolve
from shoal_core.view import Node

if TYPE_CHECKING:
    from shoal.client import Client

_AT_ONCE = 8


class Answer(NamedTuple):
    accepted: int
    settled: bool
    connections: bytes
    """Names the sessions that the replies came over."""


class _Part:
    """What one node is told. `of` says for each of its uses which one of the whole plan it is part of."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.objects: dict[bytes, ObjectInfo] = {}
        self.uses: list[plan.Use] = []
        self.of: list[int] = []

    def add(self, info: ObjectInfo, block: int, use_at: int, of: int) -> None:
        number = list(self.objects).index(info.fingerprint) if info.fingerprint in self.objects else len(self.objects)
        self.objects[info.fingerprint] = info
        last = self.uses[-1] if self.uses else None
        if (
            last is not None
            and self.of[-1] == of
            and last.object == number
            and last.first_block + last.block_count == block
        ):
            self.uses[-1] = plan.Use(number, last.first_block, last.block_count + 1, use_at)
            return
        self.uses.append(plan.Use(number, block, 1, use_at))
        self.of.append(of)


class RoutedPlans:
    """One per planner."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._sessions: dict[str, Session] = {}
        self._pool: ThreadPoolExecutor | None = None

    def send(self, request: plan.Request, objects: list[ObjectInfo], deadline: float) -> Answer:
        """Tell every node its part; those that read nothing of it hear of the position all the same, once known."""
        parts = self._parts(request, objects)
        for node_id, session in self._sessions.items():
            if node_id not in parts and session.attachment is not None:
                parts[node_id] = _Part(self._node(node_id))
        if not parts:
            return Answer(0, False, b"")
        self._pool = self._pool or ThreadPoolExecutor(_AT_ONCE, "shoal-plans")
        first = next(iter(parts))
        told = [
            self._pool.submit(self._tell, part, request, deadline, node_id == first) for node_id, part in parts.items()
        ]
        replies = [future.result() for future in told]
        accepted = len(request.uses)
        for part, reply in zip(parts.values(), replies, strict=True):
            done = reply.accepted if reply is not None else 0
            if done < len(part.of):
                accepted = min(accepted, part.of[done])
        if all(reply is None for reply in replies):
            raise NodeGone("no node took its part of a plan")
        settled = all(reply is not None and reply.settled for reply in replies)
        attached = [session.attachment for session in self._sessions.values()]
        return Answer(accepted, settled, b"".join(sorted(each.identity for each in attached if each is not None)))

    def close(self) -> None:
        """The nodes see the ends of the sessions, and with them of the stream."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            session.close()

    def _node(self, node_id: str) -> Node:
        view = self._client._routed.router.view
        place = view.position(node_id) if view is not None else None
        return view.nodes[place] if view is not None and place is not None else Node(node_id, (), 0)

    def _parts(self, request: plan.Request, objects: list[ObjectInfo]) -> dict[str, _Part]:
        known = {info.fingerprint: info for info in objects}
        infos = [known[fingerprint] for fingerprint in request.fingerprints]
        routed = self._client._routed
        parts: dict[str, _Part] = {}
        now_ns = time.monotonic_ns()
        with routed.lock:
            for of, use in enumerate(request.uses):
                info = infos[use.object]
                for block in range(use.first_block, use.first_block + use.block_count):
                    key = keys.block_key(info.fingerprint, block)
                    place = routed.router.candidates(key, info.replica_count, now_ns)[0].place
                    if place is None:
                        continue
                    node = routed.router.node(place)
                    parts.setdefault(node.id, _Part(node)).add(info, block, use.use_at, of)
        return parts

    def _tell(self, part: _Part, request: plan.Request, deadline: float, reports: bool) -> plan.Reply | None:
        """None where it did not work: a plan is advice."""
        own = plan.Request(
            request.stream, request.position, list(part.objects), part.uses, request.fill_until, request.evict_until,
            request.waited_s if reports else 0.0, request.steps if reports else 0, request.ended,
        )  # fmt: skip
        try:
            session = self._session(part.node)
            try:
                return session.call(plan.KIND, own, deadline)
            except UnknownObject:
                wanted = [resolve.Wanted(info.url, info.size, info.etag) for info in part.objects.values()]
                milliseconds = max(1, int((deadline - time.monotonic()) * 1000))
                session.call(resolve.KIND, resolve.Request(wanted, milliseconds), deadline)
                return session.call(plan.KIND, own, deadline)
        except (ShoalError, OSError):
            return None

    def _session(self, node: Node) -> Session:
        session = self._sessions.get(node.id)
        address = next((address for address in node.addresses if address.startswith("tcp:")), None)
        if address is None:
            raise NodeGone(f"{node.id}: no address that can be reached from here")
        if session is None or session.address != address:
            session = self._sessions[node.id] = Session(address, Grants(), self._client.give_token)
            session.patience_s = 1.0
        return session
