"""The connection to one node: request channels, the events connection, and what happens when either breaks.

Any number of request channels, one per call in progress, kept for reuse. One events connection, listened to by a
thread, on which the node asks for grants back; its life is the life of this client's leases. The thread also reports
hits and releases every limits.TOUCH_INTERVAL_S when there are any.

When the node is gone, every grant is forgotten (its memory stays readable for views that live: a dead node writes no
more) and calls fail with NodeGone at once until the next attempt is due, with backoff; the caller reads elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Generator
from typing import Any

from shoal.grants import Grants
from shoal_core import frame, limits, verbs
from shoal_core.errors import BadRequest, Closed, DeadlineExceeded, NodeGone, ShoalError
from shoal_core.verbs import hello, map, release, revoke
from shoal_transport import tcp, unix
from shoal_transport.interface import Channel
from shoal_transport.mapping import Mapping
from shoal_transport.memory import MemoryListener

log = logging.getLogger("shoal")

_BACKOFF_FIRST_S = 0.5
_BACKOFF_MAX_S = 30.0
_IDLE_CHANNELS_MAX = 16
_IDLE_LISTEN_S = 1.0


def open_channel(address: str | MemoryListener, deadline: float) -> Channel:
    """A channel to "unix:/path", "tcp:host:port", or a memory listener of this process."""
    if isinstance(address, MemoryListener):
        return address.connect()
    door, _, rest = address.partition(":")
    if door == "unix":
        return unix.connect(rest, deadline)
    if door == "tcp":
        return tcp.connect(rest, deadline)
    raise BadRequest(f"address {address!r} begins with neither unix: nor tcp:")


class LeaseHolder:
    """Keeps the events connection open for as long as anybody holds this object: the session, and every live view.

    When the last is gone the socket closes, and only then may the node use the memory again.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._finalizer = weakref.finalize(self, channel.close)
        self._finalizer.atexit = False


class Session:
    """One node, as this process is connected to it. Thread-safe."""

    def __init__(self, address: str | MemoryListener, grants: Grants) -> None:
        self.address = address
        self.grants = grants
        self.hello: hello.Reply | None = None
        self.mappings: dict[int, Mapping] = {}
        self._identity = os.urandom(16)
        self._idle: list[Channel] = []
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        """Held by the one thread that connects; others wait for it until their own deadlines."""
        self._holder: LeaseHolder | None = None
        self._closed = False
        self._down_until = 0.0
        self._backoff_s = _BACKOFF_FIRST_S

    @property
    def holder(self) -> LeaseHolder | None:
        """What views must keep alive."""
        return self._holder

    def connect(self, deadline: float) -> hello.Reply:
        """Open the events connection if there is none, and learn the node's terms. NodeGone while it is down."""
        if (said := self._terms()) is not None:
            return said
        if not self._connecting.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise DeadlineExceeded(f"{self.address}: not connected within the deadline")
        try:
            if (said := self._terms()) is not None:
                return said
            try:
                channel = open_channel(self.address, deadline)
                said = self._say_hello(channel, hello.EVENTS, deadline)
            except ShoalError:
                self._down_until = time.monotonic() + self._backoff_s
                self._backoff_s = min(2 * self._backoff_s, _BACKOFF_MAX_S)
                raise
            self._connected(channel, said)
            return said
        finally:
            self._connecting.release()

    def _terms(self) -> hello.Reply | None:
        """What the node said, while connected. Raises what is known without asking."""
        with self._lock:
            if self._closed:
                raise Closed("this client is closed")
            if self._holder is not None and self.hello is not None:
                return self.hello
            if time.monotonic() < self._down_until:
                raise NodeGone(f"{self.address}: the node did not answer a moment ago")
            return None

    def _connected(self, channel: Channel, said: hello.Reply) -> None:
        with self._lock:
            if self._closed:
                channel.close()
                raise Closed("this client is closed")
            self._backoff_s = _BACKOFF_FIRST_S
            self.hello = said
            self._holder = LeaseHolder(channel)
            self.grants.leased_bytes_max = said.leased_bytes_max
            references = weakref.ref(self), weakref.ref(self._holder)
        threading.Thread(target=_listen, args=references, name="shoal-events", daemon=True).start()

    def call(self, kind: int, request: Any, deadline: float) -> Any:
        """One verb whose reply has no payload."""
        with self.channel(deadline) as channel:
            header, body = channel.call(kind, verbs.encode(request), deadline)
            return verbs.decode_reply(kind, header, body)

    @contextlib.contextmanager
    def channel(self, deadline: float) -> Generator[Channel]:
        """A request channel for one call, payload included. A broken one is not used again."""
        self.connect(deadline)
        channel = self._take()
        fresh = channel is None
        if channel is None:
            channel = self._open_request_channel(deadline)
        try:
            yield channel
        except NodeGone:
            self._lost(fresh)
            raise
        finally:
            if channel.broken or self._closed or len(self._idle) >= _IDLE_CHANNELS_MAX:
                channel.close()
            else:
                self._idle.append(channel)

    def mapping(self, segment: int, channel: Channel, deadline: float) -> Mapping:
        """The segment, mapped once per process; asked for on `channel`, between calls."""
        found = self.mappings.get(segment)
        if found is None:
            header, body = channel.call(map.KIND, verbs.encode(map.Request(segment)), deadline, descriptors=1)
            reply = verbs.decode_reply(map.KIND, header, body)
            descriptors = channel.take_descriptors()
            if len(descriptors) != 1:
                raise NodeGone(f"{self.address}: segment {segment} came without its descriptor")
            found = self.mappings.setdefault(segment, Mapping(descriptors[0], reply.size))
        return found

    def close(self) -> None:
        """Give everything back. Views that live keep their leases until they end."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        self.report(time.monotonic() + 1.0, idle)
        for channel in idle:
            channel.close()
        with self.grants.lock:
            self.grants.forget_all()
        self._holder = None

    def abandon(self) -> None:
        """In a forked child: close the inherited sockets, so that the parent's end is seen, and start over."""
        channels = [*self._idle, *([self._holder.channel] if self._holder is not None else [])]
        for channel in channels:
            channel.close()
        self._idle = []
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self.grants.lock = threading.Lock()
        self.grants.forget_all()
        self.mappings = {}
        self._holder = None
        self.hello = None
        self._identity = os.urandom(16)

    def report(self, deadline: float, channels: list[Channel] | None = None) -> None:
        """Send what was released and touched, if anything. If the node is gone, it does not matter."""
        with self.grants.lock:
            released, touches = self.grants.report()
        if not released and not touches:
            return
        request = release.Request(released, touches)
        with contextlib.suppress(ShoalError):
            if channels is None:
                self.call(release.KIND, request, deadline)
            elif channels:
                channels[-1].call(release.KIND, verbs.encode(request), deadline)

    def lost(self, holder: LeaseHolder | None) -> None:
        """The events connection ended: all leases with it."""
        with self._lock:
            if self._holder is not holder:
                return
            self._holder = None
            self.hello = None
            self.mappings = {}
            idle, self._idle = self._idle, []
        for channel in idle:
            channel.close()
        with self.grants.lock:
            self.grants.forget_all()

    def _lost(self, fresh: bool) -> None:
        # An old channel may have died alone; a fresh one that dies means the node.
        for channel in self._idle:
            channel.close()
        self._idle = []
        if fresh:
            self.lost(self._holder)

    def _take(self) -> Channel | None:
        while True:
            try:
                channel = self._idle.pop()
            except IndexError:
                return None
            if not channel.broken:
                return channel

    def _open_request_channel(self, deadline: float) -> Channel:
        try:
            channel = open_channel(self.address, deadline)
            self._say_hello(channel, hello.REQUESTS, deadline)
        except (NodeGone, DeadlineExceeded):
            self.lost(self._holder)
            raise
        return channel

    def _say_hello(self, channel: Channel, role: str, deadline: float) -> hello.Reply:
        process = f"{os.path.basename(sys.argv[0]) or 'python'}:{os.getpid()}"
        try:
            header, body = channel.call(
                hello.KIND, verbs.encode(hello.Request(self._identity, role, process)), deadline
            )
            return verbs.decode_reply(hello.KIND, header, body)
        except ShoalError:
            channel.close()
            raise


def _listen(session_ref: weakref.ref[Session], holder_ref: weakref.ref[LeaseHolder]) -> None:
    """The events thread. It holds no reference while it waits, so that a dropped client and dead views can end."""
    wait_s = limits.TOUCH_INTERVAL_S
    holder = holder_ref()
    channel = holder.channel if holder is not None else None
    del holder
    while channel is not None:
        try:
            received = channel.listen(wait_s)
        except (ShoalError, OSError, ValueError):
            received = None
            if (session := session_ref()) is not None:
                session.lost(holder_ref())
            return
        session = session_ref()
        if session is None or session.holder is None or session.holder.channel is not channel:
            return  # closed: the node hears nothing more until the last view ends
        if received is not None:
            _answer(session, channel, *received)
        active = bool(session.grants.touched or session.grants.released)
        if active:
            session.report(time.monotonic() + 1.0)
        wait_s = limits.TOUCH_INTERVAL_S if active else _IDLE_LISTEN_S
        del session


def _answer(session: Session, channel: Channel, header: frame.Header, body: bytes) -> None:
    try:
        request = verbs.decode_request(header.kind, body)
        if header.kind != revoke.KIND:
            raise BadRequest(f"{verbs.name(header.kind)} is not for a client to answer")
        with session.grants.lock:
            released, busy = session.grants.revoke(request.grants)
        reply = frame.encode(revoke.KIND | frame.REPLY, header.request, verbs.encode(revoke.Reply(released, busy)))
    except ShoalError as error:
        reply = frame.encode(frame.FAILURE, header.request, verbs.failure(error))
    with contextlib.suppress(ShoalError):
        channel.answer(reply)
