"""Sessions: what each connection's thread does with each verb.

A request is decoded, answered, forgotten; a bad one is answered by an error and the connection lives on. Only bytes
that are no frame end it, and a token that is worth nothing, or nothing any more. The reply to `get` is built here:
a grant where the door passes descriptors and the client may hold more, else bytes sent straight out of the segment
(see `inline`), held until the send returned.

A session whose reader may read some data sets only has a scope, and with it another table of verbs: what is not in it
is refused.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from shoal_core import frame, limits, verbs
from shoal_core.errors import (
    BadRequest,
    Forbidden,
    NodeGone,
    NoSpace,
    ProtocolError,
    ShoalError,
    TokenExpired,
    UnknownObject,
    to_wire,
)  # fmt: skip
from shoal_core.verbs import fetch, get, hello, map, plan, release, revoke, token
from shoal_node import batches, inline, passing, planning
from shoal_node.batches import Delivered
from shoal_node.inline import HeldBlock
from shoal_node.leases import Client
from shoal_node.objects import ObjectRecord
from shoal_node.reader_verbs import ReaderVerbs
from shoal_node.scope import OutOfScope, Scope
from shoal_node.state import NodeState
from shoal_transport.interface import Connection

if TYPE_CHECKING:
    from shoal_node.serve import Server


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


class Session:
    """One connection's life."""

    def __init__(self, server: Server, connection: Connection, scope: Scope | None = None) -> None:
        """`scope`: what the door lets in; None: hello says who it is, or everybody may do everything here."""
        self._node = server.node
        self._resolver = server.resolver
        self._connection = connection
        self._scope: Scope | None = None
        self._expires_s: float | None = None
        self._grants = connection.grants
        """Whether segments may be mapped through this connection."""
        self._over = False
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
            fetch.KIND: self._fetch,
            token.KIND: self._token,
        }
        """Each returns the body of its reply, or a `Reply` where more travels with it."""
        if scope is not None:
            self._restrict(scope)

    def _restrict(self, scope: Scope) -> None:
        """From now on only what a reader may ask, of what it may read."""
        self._scope = scope
        self._grants = self._connection.grants and scope.shares_memory
        own = {kind: self._verbs[kind] for kind in (hello.KIND, get.KIND, release.KIND, map.KIND, plan.KIND)}
        self._verbs = own | ReaderVerbs(self._node, self._resolver, scope).verbs

    def run(self) -> None:
        """Until the peer goes, or sends what is no frame, or may ask nothing."""
        try:
            while not self._over:
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
            if self._client is None and header.kind != hello.KIND:
                raise ProtocolError("the first verb of a connection is hello")
            if self._expires_s is not None and time.time() >= self._expires_s:
                raise TokenExpired(f"node {self._node.config.node_name}: the token of this connection has expired")
            answer = self._verbs.get(header.kind)
            if answer is None and self._scope is not None:
                raise self._scope.refusal(f"the verb {verbs.name(header.kind)}")
            if answer is None:
                raise ProtocolError(f"{verbs.name(header.kind)} is not for a node to answer")
            answered = answer(request)
            reply = answered if isinstance(answered, Reply) else Reply(answered)
            size = sum(len(view) for view in reply.payload)
            data = frame.encode(header.kind | frame.REPLY, header.request, verbs.encode(reply.body), size)
            self._send(data, reply.payload, reply.descriptors)
        except NodeGone:
            raise
        except Exception as error:  # whatever it is, the peer is told and the connection lives
            if isinstance(error, Forbidden):
                self._count_refusal(error, header.kind)
            self._send(frame.encode(frame.FAILURE, header.request, verbs.failure(error)))
        finally:
            if reply is not None and reply.done is not None:
                reply.done()

    def _count_refusal(self, error: Forbidden, kind: int) -> None:
        """Who may ask nothing is told so, and that was all."""
        self._over = isinstance(error, TokenExpired) or kind == hello.KIND
        if self._over or isinstance(error, OutOfScope):
            why = "expired" if isinstance(error, TokenExpired) else "token" if self._over else "scope"
            with self._node.step():
                self._node.counters.refusals[why] += 1

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
        if self._scope is None:
            scope, self._expires_s = node.admission.enter(self._connection.door, request.token)
            if scope is not None:
                self._restrict(scope)
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
            epoch=node.epoch,
            block_size_bytes=node.config.fill.block_size_bytes,
            leased_bytes_max=node.state.leases.client_bytes_max,
            batch_bytes_max=node.batch_bytes_max,
            grants=self._grants,
            pid=os.getpid(),
            origin_environment=node.origin_environment,
        )

    def _get(self, request: get.Request) -> Reply:
        node = self._node
        if node.refusing:
            raise NodeGone(f"node {node.config.node_name} is draining")
        deadline = time.monotonic() + min(request.deadline_ms / 1000, limits.DEADLINE_S_MAX)
        if request.released or request.touches:
            self._report(request.released, request.touches)
        records = self._records(request)
        batches.check_items(records, request)
        items, held = node.get(records, request, deadline, functools.partial(self._items, request))
        payload: list[memoryview] = []
        checked: set[tuple[int, int]] = set()
        for position, block in held:
            items[position], view = inline.answer(request.items[position], block, checked)
            payload.append(view)
        also = self._also(records, request.likely) if request.likely and self._grants else []
        hot = node.peers.hot(held) if node.peers is not None and held else []
        body = get.Reply(items, also, node.epoch, passing.load(node), hot)
        return Reply(body, payload, done=functools.partial(self._unhold, held) if held else None)

    def _token(self, _: token.Request) -> token.Reply:
        """Not through TCP: there it would be a way to have a token for ever."""
        if self._connection.door == "tcp":
            raise Forbidden("a token for other nodes is given at this node's own socket only")
        return token.Reply(self._node.admission.peer_token())

    def _records(self, request: get.Request) -> list[ObjectRecord]:
        """What the fingerprints stand for; one that is not remembered may be claimed in the same request."""
        try:
            records = self._node.records(request.fingerprints)
        except UnknownObject:
            if len(request.claims) != len(request.fingerprints):
                raise
            records = self._resolver.claimed(request.fingerprints, request.claims, self._scope)
        if self._scope is not None:
            self._scope.check_records(self._node.state.spaces, records)
        return records

    def _fetch(self, request: fetch.Request) -> Reply:
        if self._node.refusing:
            raise NodeGone(f"node {self._node.config.node_name} is draining")
        given = passing.give(self._node, request)
        for answer in given.body.items:
            if isinstance(answer, get.Inline):
                self._reads[answer.source] += 1
                self._read_bytes[answer.source] += answer.length
        return Reply(given.body, given.payload, done=given.done)

    def _also(self, records: list[ObjectRecord], likely: list[get.Ahead]) -> list[get.Also]:
        """Grants of what is likely to be wanted next, as far as that costs nobody anything."""
        client = self._client
        assert client is not None
        also: list[get.Also] = []
        with self._node.step() as state:
            for place, block, entry in self._node.arrivals.in_memory(state, records, likely):
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
        may_grant = self._grants and client.standing and not request.inline
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
                block = blocks[entry] = passing.held_block(self._node, state, entry, source)
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
                if 0 <= entry < state.index.capacity and self._may_touch(state, entry):
                    state.touch(entry, generation, min(max(count, 0), 3))
                    self._node.counters.granted_hits += max(count, 0)
                    name = state.spaces[state.index.space[entry]].name
                    self._node.counters.dataset_hits[name] += max(count, 0)
            return state.released(self._identity, released)

    def _may_touch(self, state: NodeState, entry: int) -> bool:
        """Whether what is said of the block counts."""
        return self._scope is None or self._scope.touches(state.spaces[state.index.space[entry]].name)

    def _map(self, request: map.Request) -> Reply:
        if not self._connection.grants:
            raise BadRequest(f"map: the {self._connection.door} door passes no descriptors")
        if not self._grants and self._scope is not None:
            raise OutOfScope(f"map: this node shares no memory with namespace {self._scope.namespace}")
        if not 0 <= request.segment < len(self._node.segments):
            raise BadRequest(f"map: there is no segment {request.segment}")
        segment = self._node.segments[request.segment]
        if segment.tenant != self._node.tenant:
            raise Forbidden(f"map: segment {request.segment} belongs to another tenant")
        return Reply(map.Reply(segment.size), descriptors=[segment.descriptor])

    def _plan(self, request: plan.Request) -> plan.Reply:
        if self._scope is not None:
            self._scope.check_records(self._node.state.spaces, self._node.records(request.fingerprints))
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
