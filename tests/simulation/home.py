"""The node on a client's own host, as the client knows it: a session over the Unix door, grants and views.

The real `Grants` keeps the leases; a view is a real memoryview of the node's memory, and while one lives the node must
not let its bytes change. Each is looked at when it is granted and again when it is let go. A node that lets wait is
pinged; if it does not answer that either, the session is over and the reads go elsewhere.
"""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, ClassVar

from shoal.grants import Grant, Grants
from shoal_core import frame, verbs
from shoal_core.errors import (
    Corrupt,
    DeadlineExceeded,
    NodeGone,
    ProtocolError,
    ShoalError,
    UnknownObject,
    from_wire,
)
from shoal_core.verbs import complain, get, hello, release, resolve, revoke
from shoal_core.verbs import view as view_verb
from shoal_transport import receiving
from shoal_transport.asking import Item
from tests.simulation.gathering import Payload, encode
from tests.simulation.network import Connection
from tests.simulation.world import LATE, MS, S, Work

if TYPE_CHECKING:
    from tests.simulation.sim_client import Piece, SimClient
    from tests.simulation.sim_node import Segment, SimNode

_PATIENCE_NS = 500 * MS
_BACKOFF_FIRST_NS = 100 * MS
_BACKOFF_MAX_NS = 5 * S
_TRIES_MAX = 6
_CORRUPT_TRIES = 2


class Mapping:
    """A segment, as the client maps it: it stays as long as somebody looks at it, also when the node has ended."""

    _kinds: ClassVar[dict[int, Any]] = {}

    def __init__(self, segment: Segment) -> None:
        self._buffer: Any = segment.memory.obj
        self.memory = segment.memory.toreadonly()
        self.size = segment.size

    def exporter(self, offset: int, size: int) -> Any:
        kind = self._kinds.get(size)
        if kind is None:
            kind = self._kinds[size] = ctypes.c_ubyte * size
        return kind.from_buffer(self._buffer, offset)


class Attachment:
    """One session with one process of the node."""

    def __init__(self, node: SimNode, events: Connection, identity: bytes) -> None:
        self.node, self.events, self.identity = node, events, identity
        self.idle: list[Connection] = []
        self.mappings: dict[int, Mapping] = {}
        self.view_count = 0
        self.ended = False

    def mapping(self, segment: int) -> Mapping:
        found = self.mappings.get(segment)
        if found is None:
            found = self.mappings[segment] = Mapping(self.node.segments[segment])  # type: ignore[arg-type]
        return found

    def close_if_unused(self) -> None:
        """The node hears that its leases are given back when nobody looks at anything any more."""
        if self.ended and not self.view_count:
            self.events.close()


class Home:
    """One for each client on a node's host."""

    def __init__(self, client: SimClient, node_id: str) -> None:
        self._client, self._world = client, client.world
        self.node_id = node_id
        self.grants = Grants()
        self.attachment: Attachment | None = None
        self._attachments = 0
        self._down_until_ns = 0
        self._backoff_ns = _BACKOFF_FIRST_NS
        self.views = 0

    # Coming and going

    def _attach(self, until_ns: int) -> Generator[Any, Any, Attachment]:
        client, world = self._client, self._world
        if self.attachment is not None:
            return self.attachment
        if world.now_ns < self._down_until_ns:
            raise NodeGone(f"{self.node_id}: it did not answer a moment ago")
        self._attachments += 1
        identity = f"{client.name}.{self._attachments}".encode().ljust(16, b"h")
        until_ns = min(until_ns, world.now_ns + _PATIENCE_NS)
        try:
            events = yield from client.simulation.network.connect(
                client.process, client.machine, self.node_id, identity, hello.EVENTS, until_ns, local=True
            )
        except NodeGone:
            self._down()
            raise
        self._backoff_ns = _BACKOFF_FIRST_NS
        node: Any = events.accepted_at
        attachment = self.attachment = Attachment(node, events, identity)
        self.grants.attach(attachment, node.state.leases.client_bytes_max)
        events.on_break = lambda: self.lost(attachment)
        events.on_push = lambda data: self._asked_back(attachment, data)
        client.heard(node.epoch)
        return attachment

    def _down(self) -> None:
        self._down_until_ns = self._world.now_ns + self._backoff_ns
        self._backoff_ns = min(2 * self._backoff_ns, _BACKOFF_MAX_NS)

    def lost(self, attachment: Attachment) -> None:
        """That session is over: no lease of it is used from now on."""
        if self.attachment is attachment:
            self.attachment = None
            self.grants.forget_all()
        attachment.ended = True
        for connection in attachment.idle:
            connection.close()
        attachment.idle.clear()
        attachment.close_if_unused()

    def close(self) -> Work:
        """Views that still live keep their leases until they end."""
        attachment = self.attachment
        if attachment is not None:
            released, touches = self.grants.report()
            if released:
                try:
                    yield from self._call(attachment, release.KIND, release.Request(released, touches), S)
                except ShoalError:
                    pass
            self.lost(attachment)

    def _asked_back(self, attachment: Attachment, data: bytes) -> None:
        header = frame.parse_header(data)
        request = verbs.decode_request(header.kind, data[frame.HEADER_BYTES :])
        if self.attachment is attachment:
            released, busy = self.grants.revoke(request.grants)
        else:
            released, busy = [], request.grants
        body = verbs.encode(revoke.Reply(released, busy))
        attachment.events.say(frame.encode(revoke.KIND | frame.REPLY, header.request, body))

    # Calls

    def _channel(self, attachment: Attachment, until_ns: int) -> Generator[Any, Any, Connection]:
        while attachment.idle:
            connection = attachment.idle.pop()
            if not connection.broken:
                return connection
        client = self._client
        try:
            return (
                yield from client.simulation.network.connect(
                    client.process, client.machine, self.node_id, attachment.identity, hello.REQUESTS,
                    min(until_ns, self._world.now_ns + _PATIENCE_NS), local=True,
                )
            )  # fmt: skip
        except NodeGone:
            self.lost(attachment)
            self._down()
            raise

    def _called(self, attachment: Attachment, kind: int, request: Any, until_ns: int) -> Generator[Any, Any, Any]:
        """(header, body, payload) of the reply. A node that lets wait must answer a ping."""
        world = self._world
        connection = yield from self._channel(attachment, until_ns)
        reply = connection.post(encode(kind, request))
        while (answer := (yield reply, min(_PATIENCE_NS, until_ns - world.now_ns))) is LATE:
            if world.now_ns >= until_ns:
                connection.close()
                raise DeadlineExceeded("the node did not answer within the deadline")
            try:
                ping = yield from self._channel(attachment, until_ns)
                patience_ns = min(_PATIENCE_NS, until_ns - world.now_ns)
                pong = yield ping.post(encode(view_verb.KIND, view_verb.Request(1 << 62))), patience_ns
                if pong is LATE or isinstance(pong, NodeGone):
                    ping.close()
                    raise NodeGone(f"{self.node_id}: the node does not answer")
            except NodeGone:
                connection.close()
                self._down()
                self.lost(attachment)
                raise
            attachment.idle.append(ping)
        if isinstance(answer, NodeGone):
            raise NodeGone(str(answer))
        if attachment.ended:
            connection.close()
        else:
            attachment.idle.append(connection)
        return answer

    def _call(self, attachment: Attachment, kind: int, request: Any, limit_ns: int) -> Generator[Any, Any, Any]:
        header, body, _ = yield from self._called(attachment, kind, request, self._world.now_ns + limit_ns)
        return verbs.decode_reply(kind, header, body)

    # Reads

    def read(self, pieces: list[Piece], until_ns: int) -> Work:
        """Complete what the node can give; what it cannot is left."""
        tries = 0
        elsewhere: dict[Piece, None] = {}
        while tries < _TRIES_MAX:
            missing = [piece for piece in self._not_held(pieces) if piece not in elsewhere]
            if not missing:
                return
            tries += 1
            try:
                yield from self._ask(missing[: self._together()], missing[self._together() :], elsewhere, until_ns)
            except UnknownObject:
                yield from self._resolve(missing[0], until_ns)
            except NodeGone:
                if tries > 1 or self.attachment is None:
                    return
            except DeadlineExceeded as error:
                for piece in missing:
                    piece.error = error
                return
            else:
                tries -= len(missing) > len([piece for piece in missing if not piece.ended and piece not in elsewhere])

    def _together(self) -> int:
        """Blocks of one request: the node must hold all at once."""
        if self.attachment is None:
            return 1
        return max(1, self.attachment.node.batch_bytes_max // self._client.simulation.plan.block_size_bytes)

    def _not_held(self, pieces: list[Piece]) -> list[Piece]:
        missing: list[Piece] = []
        for piece in pieces:
            if piece.ended:
                continue
            grant = self.grants.by_key.get((piece.record.fingerprint, piece.block))
            if grant is None or self.attachment is None:
                missing.append(piece)
            else:
                self.grants.touch(grant)
                self._take(piece, grant)
        return missing

    def _resolve(self, piece: Piece, until_ns: int) -> Work:
        wanted = resolve.Wanted(piece.stored.name, piece.record.size, piece.record.etag)
        try:
            attachment = yield from self._attach(until_ns)
            limit_ns = until_ns - self._world.now_ns
            yield from self._call(attachment, resolve.KIND, resolve.Request([wanted], max(1, limit_ns // MS)), limit_ns)
        except (NodeGone, DeadlineExceeded):
            return

    def _ask(self, part: list[Piece], later: list[Piece], elsewhere: dict[Piece, None], until_ns: int) -> Work:
        attachment = yield from self._attach(until_ns)
        number = self.grants.begin_get()
        try:
            self.grants.make_room(sum(piece.record.block_bytes(piece.block) for piece in part))
            released, touches = self.grants.report()
            items = [get.Item(0, piece.block, piece.offset, piece.length) for piece in part]
            ahead = [get.Ahead(0, piece.block, 1) for piece in later[:8]]
            likely = [get.Ahead(0, part[-1].block + 1, 4)] if self._world.chance.random() < 0.3 else []
            request = get.Request(
                [part[0].record.fingerprint], items, ahead, max(1, (until_ns - self._world.now_ns) // MS), False,
                released, touches, likely,
            )  # fmt: skip
            header, body, payload = yield from self._called(attachment, get.KIND, request, until_ns)
            reply = verbs.decode_reply(get.KIND, header, body)
            self._client.heard(reply.epoch)
            if len(reply.items) != len(part):
                raise ProtocolError("get: answers to other items")
            self._use(attachment, part, reply, payload, elsewhere)
        finally:
            self.grants.end_get(number)

    def _use(
        self, attachment: Attachment, part: list[Piece], reply: get.Reply, payload: bytes, elsewhere: dict[Piece, None]
    ) -> None:
        inline: list[tuple[Piece, Item, get.Inline]] = []
        for piece, answer in zip(part, reply.items, strict=True):
            match answer:
                case get.Grant():
                    self._granted(attachment, piece, answer)
                case get.Inline():
                    item = Item(
                        piece.key, piece.record.fingerprint, None, piece.block, piece.offset, piece.length, None
                    )  # fmt: skip
                    inline.append((piece, item, answer))
                case get.Bypass():
                    elsewhere[piece] = None
                case get.Failed():
                    error = from_wire(answer.code, answer.text)
                    if isinstance(error, NodeGone):
                        elsewhere[piece] = None
                    else:
                        piece.error = error
        pairs = [(item, answer) for _, item, answer in inline]
        good = receiving.receive(Payload(payload), len(payload), pairs, 0) if pairs else []  # type: ignore[arg-type]
        for (piece, item, answer), right in zip(inline, good, strict=True):
            if right and item.part is not None:
                piece.data, piece.source = bytes(item.part), f"{self.node_id} inline"
            else:
                self._corrupt(attachment, piece, answer, elsewhere)
        for also in reply.also:
            key = part[0].record.fingerprint, also.block
            self.grants.add(Grant(key, also.grant, attachment.mapping(also.grant.segment), attachment))  # type: ignore[arg-type]

    def _corrupt(self, attachment: Attachment, piece: Piece, answer: get.Inline, elsewhere: dict[Piece, None]) -> None:
        self._client.reader.corrupt += 1
        piece.tries += 1
        if piece.tries >= _CORRUPT_TRIES:
            elsewhere[piece] = None

        def complaining() -> Work:
            try:
                request = complain.Request(answer.entry, answer.generation)
                yield from self._call(attachment, complain.KIND, request, S)
            except (NodeGone, DeadlineExceeded, Corrupt):
                return

        self._world.spawn(self._client.process, complaining())

    def _granted(self, attachment: Attachment, piece: Piece, answer: get.Grant) -> None:
        key = piece.record.fingerprint, piece.block
        mapping: Any = attachment.mapping(answer.segment)
        grant = self.grants.add(Grant(key, answer, mapping, attachment))
        if grant is None:
            return  # given back before it arrived: asked for again
        if not answer.keep:
            self.grants.give_back_soon(grant)
        self._take(piece, grant)

    def _take(self, piece: Piece, grant: Grant) -> None:
        """Look at the bytes now, and sometimes for longer."""
        chance = self._world.chance
        seen = grant.view()[piece.offset : piece.offset + piece.length]
        piece.data, piece.source = bytes(seen), f"{self.node_id} granted"
        if chance.random() < 0.3:
            attachment: Any = grant.holder
            attachment.view_count += 1
            self.views += 1
            limit_ns = int(chance.random() ** 2 * 3 * S)
            self._world.spawn(self._client.process, self._looking(attachment, piece, seen, limit_ns))

    def _looking(self, attachment: Attachment, piece: Piece, seen: memoryview, limit_ns: int) -> Work:
        """A view lives for so long, and shows the same bytes all the time."""
        yield limit_ns
        self._client.simulation.watch.view_ended(self._client, piece, bytes(seen))
        del seen
        attachment.view_count -= 1
        self.views -= 1
        attachment.close_if_unused()
        if self.attachment is attachment and self.grants.to_report:
            released, touches = self.grants.report()
            try:
                yield from self._call(attachment, release.KIND, release.Request(released, touches), S)
            except (NodeGone, DeadlineExceeded):
                return
