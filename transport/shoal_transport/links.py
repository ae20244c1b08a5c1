"""Links: connections of one reader to the other nodes of a cluster, kept for reuse, greeted once each.

A link is for requests whose bytes come through the connection, so it needs no events connection and holds no leases.
Channels are blocking and belong to one call at a time; a call that did not end well closes its channel. Thread-safe.

Where nodes want a token, each new connection over TCP brings one, and a channel is not used again when its token is
about to end.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from shoal_core import access, limits, verbs, view
from shoal_core.errors import BadRequest, NodeGone, ShoalError, TokenExpired
from shoal_core.verbs import hello
from shoal_transport import tcp, unix
from shoal_transport.interface import Channel
from shoal_transport.memory import MemoryListener

IDLE_CHANNELS_MAX = 8
CONNECT_S = 2.0
"""A node that does not take a connection within this counts as gone: another may answer."""
TOKEN_MARGIN_S = 5.0
"""A channel whose token ends within this is not used again: the request is to arrive in time, by the node's clock."""

GiveToken = Callable[[], str]
"""What proves to a node who asks, fresh for each connection; "" where there is nothing."""


def no_token() -> str:
    """For who needs none."""
    return ""


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


def process_name() -> str:
    """What a node shows of who is connected."""
    return f"{os.path.basename(sys.argv[0]) or 'python'}:{os.getpid()}"


def greet(
    channel: Channel, identity: bytes, role: str, process: str, deadline: float, give_token: GiveToken = no_token
) -> hello.Reply:
    """Say hello on a new channel, which is closed if that does not work. Forbidden when the token is not good."""
    try:
        token = give_token() if channel.door == "tcp" else ""
        if token:
            channel.expires_s = access.peek(token).expires_s
        header, body = channel.call(hello.KIND, verbs.encode(hello.Request(identity, role, process, token)), deadline)
        return verbs.decode_reply(hello.KIND, header, body)
    except BaseException:
        channel.close()
        raise


def is_usable(channel: Channel) -> bool:
    """Whether a channel that waited for a call may be used for one."""
    return not channel.broken and (channel.expires_s == math.inf or time.time() < channel.expires_s - TOKEN_MARGIN_S)


class Links:
    """By node id. `reachable` says which of a node's addresses this reader may use."""

    def __init__(
        self,
        process: str,
        reachable: Callable[[str], bool] = lambda address: address.startswith("tcp:"),
        give_token: GiveToken = no_token,
    ) -> None:
        self.give_token = give_token
        self.identity = os.urandom(16)
        self._process = process
        self._reachable = reachable
        self._lock = threading.Lock()
        self._idle: dict[str, list[Channel]] = {}
        self._closed = False
        self._batch_bytes: dict[str, int] = {}
        self.opened = 0
        """Connections made so far."""

    def idle(self, node: view.Node) -> Channel | None:
        """A channel that waits for a call, if there is one."""
        with self._lock:
            idle = self._idle.get(node.id)
            while idle:
                channel = idle.pop()
                if is_usable(channel):
                    return channel
                channel.close()
        return None

    def call(self, node: view.Node, kind: int, request: Any, deadline: float) -> Any:
        """One verb whose reply has no payload. NodeGone when the node takes no connection."""
        channel = self.idle(node)
        if channel is not None:
            try:
                return self._called(node, channel, kind, request, deadline)
            except (NodeGone, TokenExpired):
                self.forget(node)  # an old connection may have died alone, and others as old with it
        return self._called(node, self.open(node, deadline), kind, request, deadline)

    def _called(self, node: view.Node, channel: Channel, kind: int, request: Any, deadline: float) -> Any:
        try:
            header, body = channel.call(kind, verbs.encode(request), deadline)
        except BaseException:
            channel.close()
            raise
        self.give_back(node, channel)
        return verbs.decode_reply(kind, header, body)

    def open(self, node: view.Node, deadline: float) -> Channel:
        """A new channel."""
        error: ShoalError = NodeGone(f"{node.id}: no address that can be reached from here")
        deadline = min(deadline, time.monotonic() + CONNECT_S)
        for address in node.addresses:
            if not self._reachable(address):
                continue
            try:
                channel = open_channel(address, deadline)
                terms = greet(channel, self.identity, hello.REQUESTS, self._process, deadline, self.give_token)
            except ShoalError as failed:
                error = failed
                continue
            self.opened += 1
            self._batch_bytes[node.id] = terms.batch_bytes_max
            return channel
        raise NodeGone(f"{node.id}: {error}")

    @property
    def part_bytes(self) -> int:
        """Of the blocks of one request: the smallest node that was reached must hold all of them at once."""
        return min([limits.PART_BYTES, *self._batch_bytes.values()])

    def give_back(self, node: view.Node, channel: Channel) -> None:
        """The call on it has ended well, its payload received."""
        with self._lock:
            idle = self._idle.setdefault(node.id, [])
            if not self._closed and not channel.broken and len(idle) < IDLE_CHANNELS_MAX:
                idle.append(channel)
                return
        channel.close()

    def forget(self, node: view.Node) -> None:
        """The node broke: what is idle there is of no use."""
        with self._lock:
            idle = self._idle.pop(node.id, [])
        for channel in idle:
            channel.close()

    def keep_only(self, known: view.View) -> None:
        """Nodes that have left the view are not connected to any more."""
        ids = {node.id for node in known.nodes}
        self._batch_bytes = {node_id: size for node_id, size in self._batch_bytes.items() if node_id in ids}
        with self._lock:
            gone = [channel for node_id in self._idle.keys() - ids for channel in self._idle.pop(node_id)]
        for channel in gone:
            channel.close()

    def close(self) -> None:
        """Twice is fine."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
        for channels in idle.values():
            for channel in channels:
                channel.close()

    def abandon(self) -> None:
        """In a forked child: close the inherited sockets and start over under a name of its own."""
        self._lock = threading.Lock()
        idle, self._idle = self._idle, {}
        for channels in idle.values():
            for channel in channels:
                channel.close()
        self.identity = os.urandom(16)
