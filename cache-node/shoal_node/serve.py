"""Sessions: what each connection's thread does with each verb.

One thread per connection, blocked in the kernel while idle. A request is decoded, answered, forgotten; a bad one is
answered by an error and the connection lives on. Only bytes that are no frame end it. The reply to `get` is built here:
a grant where the door passes descriptors and the client may hold more, else bytes sent straight out of the segment
(see `inline`), held until the send returned.
"""

from __future__ import annotations

import functools
import os
import resource
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from shoal_core import frame, limits, verbs
from shoal_core.errors import (
    BadRequest,
    Forbidden,
    NodeGone,
    NoSpace,
    ProtocolError,
    ShoalError,
    to_wire,
)  # fmt: skip
from shoal_core.verbs import get, hello, map, plan, release, revoke
from shoal_node import inline, planning
from shoal_node.administration import Administration
from shoal_node.batches import Delivered
from shoal_node.inline import HeldBlock
from shoal_node.leases import Client
from shoal_node.objects import ObjectRecord
from shoal_node.resolver import Resolver
from shoal_node.runtime import Node
from shoal_node.state import NodeState
from shoal_transport.interface import Connection, Listener

_DESCRIPTORS_KEPT = 256
"""Connections leave so many descriptors to segments, the disk tier and origins: else no miss could be filled."""


class Reply:
    """What goes back: a body, and what travels beside it."""

    __slots__ = ("body", "descriptors", "done", "payload")

    def __init__(
        self,
        body: Any,
        payload: Sequence[memoryview] = (),
        descriptors: Sequence[int] = (),
        done: Callable[[], None] | None = None,
    ) -> None:
        self.body = body
        self.payload = payload
        self.descriptors = descriptors
        self.done = done
        """Called after the send, whether it worked or not: holds end here."""


class Server:
    """Accepts on listeners and runs a session per connection."""

    def __init__(self, node: Node, resolver: Resolver) -> None:
        self.node = node
        self.resolver = resolver
        self.administration = Administration(node, resolver)
        self._listeners: list[Listener] = []
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._closed = False
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._connections_max = min(limits.CLIENTS_MAX, max(descriptors - _DESCRIPTORS_KEPT, 1))
        self._empty_since = time.monotonic()

    def idle_s(self) -> float:
        """How long no connection has been open; 0 while one is."""
        return 0.0 if self._connections else time.monotonic() - self._empty_since

    @property
    def addresses(self) -> list[str]:
        return [listener.address for listener in self._listeners]

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener,), name="shoal-accept", daemon=True).start()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        for listener in self._listeners:
            listener.close()
        for connection in connections:
            connection.close()

    def _accept(self, listener: Listener) -> None:
        while (connection := listener.accept()) is not None:
            with self._lock:
                full = self._closed or len(self._connections) >= self._connections_max
                if not full:
                    self._connections.add(connection)
            if full:
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="shoal-session", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        try:
            Session(self, connection).run()
        finally:
            connection.close()
            with self._lock:
                self._connections.discard(connection)
                if not self._connections:
                    self._empty_since = time.monotonic()


class Session:
    """One connection's life."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self._node = server.node
        self._connection = connection
        self._identity = b""
        self._client: Client | None = None
        self._events = False
        self._send_lock = threading.Lock()
        self._reads, self._read_bytes = self._node.counters.door(connection.door)
        self._granted, self._granted_bytes = self._node.counters.door("shared_memory")
        self._verbs: dict[int, Callable[[Any], Any]] = {
            **server.administration.verbs,
            hello.KIND: self._hello,
            get.KIND: self._get,
            release.KIND: self._release,
            map.KIND: self._map,
            plan.KIND: self._plan,
        }
        """Each returns the body of its reply, or a `Reply` where more travels with it."""

    def run(self) -> None:
        """Until the peer goes, or sends what is no frame."""
        try:
            while True:
                try:
                    received = self._connection.receive()
                except ProtocolError as error:
                    self._send(frame.encode(frame.FAILURE, 0, verbs.failure(error)))
                    return
                if received is None:
                    return
                header, body = received
                if self._events and header.kind == revoke.KIND | frame.REPLY:
                    self._revoked(header, body)
                else:
                    self._answer(header, body)
        except NodeGone:
            return
        finally:
            if self._client is not None:
                with self._node.step() as state:
                    if self._events:
                        self._node.counters.revokes["gone"] += len(self._client.asked)
                    state.connection_ended(self._identity, self._events)
                    if self._events:
                        self._node.events.pop(self._identity, None)

    def _answer(self, header: frame.Header, body: bytes) -> None:
        reply: Reply | None = None
        try:
            if header.version != limits.WIRE_VERSION:
                raise ProtocolError(f"wire version {header.version}; this node speaks {limits.WIRE_VERSION}")
            request = verbs.decode_request(header.kind, body)
            answer = self._verbs.get(header.kind)
            if answer is None:
                raise ProtocolError(f"{verbs.name(header.kind)} is not for a node to answer")
            if self._client is None and header.kind != hello.KIND:
                raise ProtocolError("the first verb of a connection is hello")
            answered = answer(request)
            reply = answered if isinstance(answered, Reply) else Reply(answered)
            size = sum(len(view) for view in reply.payload)
            data = frame.encode(header.kind | frame.REPLY, header.request, verbs.encode(reply.body), size)
            self._send(data, reply.payload, reply.descriptors)
        except NodeGone:
            raise
        except Exception as error:  # whatever it is, the peer is told and the connection lives
            self._send(frame.encode(frame.FAILURE, header.request, verbs.failure(error)))
        finally:
            if reply is not None and reply.done is not None:
                reply.done()

    def _send(self, data: bytes, payload: Sequence[memoryview] = (), descriptors: Sequence[int] = ()) -> None:
        with self._send_lock:
            self._connection.send(data, payload, descriptors)

    # Verbs

    def _hello(self, request: hello.Request) -> hello.Reply:
        node = self._node
        if request.role not in (hello.REQUESTS, hello.EVENTS) or len(request.client) != 16:
            raise BadRequest(f"hello: role {request.role!r} or a client id of {len(request.client)} bytes")
        if self._client is not None:
            raise BadRequest("hello: said already")
        with node.step() as state:
            known = state.leases.clients.get(request.client)
            if request.role == hello.EVENTS and known is not None and known.standing:
                raise BadRequest("hello: this client has an events connection already")
            self._identity = request.client
            self._client = state.leases.client(request.client, request.process[:200])
            if request.role == hello.EVENTS:
                self._events = self._client.standing = True
                node.events[request.client] = self._send_revoke
        return hello.Reply(
            node=node.config.node_name,
            epoch=0,
            block_size_bytes=node.config.fill.block_size_bytes,
            leased_bytes_max=node.state.leases.client_bytes_max,
            batch_bytes_max=node.batch_bytes_max,
            grants=self._connection.grants,
            pid=os.getpid(),
            origin_environment=node.origin_environment,
        )

    def _get(self, request: get.Request) -> Reply:
        node = self._node
        if node.draining:
            raise NodeGone(f"node {node.config.node_name} is draining")
        deadline = time.monotonic() + min(request.deadline_ms / 1000, limits.DEADLINE_S_MAX)
        if request.released or request.touches:
            self._report(request.released, request.touches)
        records = node.records(request.fingerprints)
        node.check_items(records, request)
        items, held = node.get(records, request, deadline, functools.partial(self._items, request))
        payload: list[memoryview] = []
        checked: set[tuple[int, int]] = set()
        for position, block in held:
            items[position], view = inline.answer(request.items[position], block, checked)
            payload.append(view)
        also = self._also(records, request.likely) if request.likely and self._connection.grants else []
        return Reply(get.Reply(items, also), payload, done=functools.partial(self._unhold, held) if held else None)

    def _also(self, records: list[ObjectRecord], likely: list[get.Ahead]) -> list[get.Also]:
        """Grants of what is likely to be wanted next, as far as that costs nobody anything."""
        client = self._client
        assert client is not None
        also: list[get.Also] = []
        with self._node.step() as state:
            for place, block, entry in self._node.in_memory(state, records, likely):
                if (
                    not client.standing
                    or not state.leases.may_grant(client, entry)
                    or not state.dram.lends(entry, True)
                ):
                    break
                state.hold(entry)
                also.append(get.Also(place, block, self._grant(state, client, entry, get.SOURCE_DRAM, keep=True)))
        return also

    def _items(
        self, request: get.Request, state: NodeState, outcomes: list[Delivered | Exception]
    ) -> tuple[list[Any], list[tuple[int, HeldBlock]]]:
        """Reply items, and by position the blocks whose bytes are still to be put in. Inside a step."""
        client = self._client
        assert client is not None
        may_grant = self._connection.grants and client.standing and not request.inline
        items: list[Any] = [None] * len(outcomes)
        held: list[tuple[int, HeldBlock]] = []
        blocks: dict[int, HeldBlock] = {}
        for position, (item, outcome) in enumerate(zip(request.items, outcomes, strict=True)):
            if not isinstance(outcome, Delivered):
                items[position] = _refused(outcome)
                if isinstance(outcome, NoSpace):
                    self._node.counters.fallbacks["bypass"] += 1
                continue
            entry, source = outcome
            if may_grant and state.leases.may_grant(client, entry):
                keep = state.dram.lends(entry, source == get.SOURCE_DRAM)
                items[position] = self._grant(state, client, entry, source, keep)
                self._granted[source] += 1
                self._granted_bytes[source] += item.length
                continue
            if may_grant:
                self._node.counters.fallbacks["lease_limit"] += 1
            block = blocks.get(entry)
            if block is None:
                memory, table = self._node.entry_memory(entry), bytes(state.digest_table(entry))
                block = blocks[entry] = HeldBlock(entry, state.index.generation[entry], source, memory, table)
            held.append((position, block))
            self._reads[source] += 1
            self._read_bytes[source] += item.length
        return items, held

    @staticmethod
    def _grant(state: NodeState, client: Client, entry: int, source: int, keep: bool) -> get.Grant:
        segment, offset = state.address(entry)
        lease = state.leases.grant(client, entry)
        size, generation = state.index.size[entry], state.index.generation[entry]
        return get.Grant(source, segment, offset, size, entry, generation, lease, keep)

    def _unhold(self, held: list[tuple[int, HeldBlock]]) -> None:
        with self._node.step() as state:
            for _, block in held:
                state.unhold(block.entry)

    def _release(self, request: release.Request) -> release.Reply:
        return release.Reply(self._report(request.grants, request.touches))

    def _report(self, released: list[tuple[int, int]], touches: list[tuple[int, int, int]]) -> int:
        """What a client gave back and how often it hit what it holds; leases that ended."""
        with self._node.step() as state:
            for entry, generation, count in touches:
                if 0 <= entry < state.index.capacity:
                    state.touch(entry, generation, min(max(count, 0), 3))
                    self._node.counters.granted_hits += max(count, 0)
            return state.released(self._identity, released)

    def _map(self, request: map.Request) -> Reply:
        if not self._connection.grants:
            raise BadRequest(f"map: the {self._connection.door} door passes no descriptors")
        if not 0 <= request.segment < len(self._node.segments):
            raise BadRequest(f"map: there is no segment {request.segment}")
        segment = self._node.segments[request.segment]
        if segment.tenant != self._node.tenant:
            raise Forbidden(f"map: segment {request.segment} belongs to another tenant")
        return Reply(map.Reply(segment.size), descriptors=[segment.descriptor])

    def _plan(self, request: plan.Request) -> plan.Reply:
        return planning.answer(self._node, self._identity, request)

    # Events

    def _send_revoke(self, grants: list[tuple[int, int]]) -> None:
        try:
            self._send(frame.encode(revoke.KIND, 0, verbs.encode(revoke.Request(grants))))
        except ShoalError:
            # Not closed here, which would end its leases while it may look at them: the client's own end does that.
            self._node.events.pop(self._identity, None)

    def _revoked(self, header: frame.Header, body: bytes) -> None:
        try:
            answer = verbs.decode_reply(revoke.KIND, header, body)
        except ShoalError:
            return
        with self._node.step() as state:
            state.released(self._identity, answer.released)
            state.revoke_busy(self._identity, answer.busy)
            self._node.counters.revokes["released"] += len(answer.released)
            self._node.counters.revokes["busy"] += len(answer.busy)


def _refused(error: Exception) -> get.Bypass | get.Failed:
    if isinstance(error, NoSpace):
        return get.Bypass(str(error))
    return get.Failed(*to_wire(error))
