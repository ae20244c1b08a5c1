"""What binds this process to one run of a node: from the hello of its events connection until that ends.

Everything that a new connection would make wrong goes with it: the identity under which leases are held, the mapped
segments, the request channels that said hello under that identity. So a reply that was under way when the node went
cannot be mixed up with what its successor says. Views keep only the `LeaseHolder`, and with it the events connection.
"""

from __future__ import annotations

import os
import weakref

from shoal_core import verbs
from shoal_core.errors import NodeGone
from shoal_core.verbs import hello, map
from shoal_transport import links
from shoal_transport.interface import Channel
from shoal_transport.mapping import Mapping
from shoal_transport.memory import MemoryListener

_IDLE_CHANNELS_MAX = 16


class LeaseHolder:
    """Keeps the events connection open for as long as anybody holds this object: the session, and every live view.

    When the last is gone the socket closes, and only then may the node use the memory again.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._finalizer = weakref.finalize(self, channel.close)
        self._finalizer.atexit = False
        _holders.add(self)


_holders: weakref.WeakSet[LeaseHolder] = weakref.WeakSet()


class Attachment:
    """One run of the node, as this client is connected to it."""

    def __init__(
        self, address: str | MemoryListener, deadline: float, give_token: links.GiveToken = links.no_token
    ) -> None:
        self.address = address
        self._give_token = give_token
        self.identity = os.urandom(16)
        self._idle: list[Channel] = []
        self._open: set[Channel] = set()
        self._mappings: dict[int, Mapping] = {}
        self.ended = False
        # Dropped without being ended: nobody else closes its sockets then.
        weakref.finalize(self, _close_all, self._open).atexit = False
        channel, self.terms = self._open_channel(hello.EVENTS, deadline)
        self.holder = LeaseHolder(channel)

    def take_idle(self) -> Channel | None:
        """A request channel that waits for a call, if there is one."""
        while True:
            try:
                channel = self._idle.pop()
            except IndexError:
                return None
            if links.is_usable(channel):
                return channel
            self.discard(channel)

    @property
    def is_local(self) -> bool:
        """Whether the node is on this machine."""
        return self.terms.grants or (isinstance(self.address, str) and self.address.startswith("unix:"))

    def open_request_channel(self, deadline: float) -> Channel:
        """A new one."""
        channel, _ = self._open_channel(hello.REQUESTS, deadline)
        self._open.add(channel)
        return channel

    def give_back(self, channel: Channel) -> None:
        """A call on it has ended well, its payload received."""
        if channel.broken or len(self._idle) >= _IDLE_CHANNELS_MAX:
            self.discard(channel)
            return
        self._idle.append(channel)
        if self.ended:
            self.close_idle()

    def discard(self, channel: Channel) -> None:
        """A call on it did not end well: what is under way on it cannot be told from what comes next."""
        channel.close()
        self._open.discard(channel)

    def close_idle(self) -> None:
        """One by one: each channel has one owner at any time, also while others take them."""
        while (channel := self.take_idle()) is not None:
            self.discard(channel)

    def mapping(self, segment: int, deadline: float) -> Mapping:
        """The segment, mapped once; asked for on a channel of its own, because on others replies may be under way."""
        found = self._mappings.get(segment)
        if found is None:
            channel = self.open_request_channel(deadline)
            try:
                found = self._mappings.setdefault(segment, self._mapped(segment, channel, deadline))
            finally:
                self.discard(channel)
        return found

    def _mapped(self, segment: int, channel: Channel, deadline: float) -> Mapping:
        header, body = channel.call(map.KIND, verbs.encode(map.Request(segment)), deadline, descriptors=1)
        reply = verbs.decode_reply(map.KIND, header, body)
        descriptors = channel.take_descriptors()
        if len(descriptors) != 1:
            for descriptor in descriptors:
                os.close(descriptor)
            raise NodeGone(f"{self.address}: segment {segment} came without its descriptor")
        return Mapping(descriptors[0], reply.size)

    def abandon(self) -> None:
        """In a forked child: close the inherited sockets, so that the parent's end is seen."""
        _close_all(self._open)
        self._idle = []

    def _open_channel(self, role: str, deadline: float) -> tuple[Channel, hello.Reply]:
        channel = links.open_channel(self.address, deadline)
        name = links.process_name()
        return channel, links.greet(channel, self.identity, role, name, deadline, self._give_token)


def _close_all(channels: set[Channel]) -> None:
    for channel in list(channels):
        channel.close()


def abandon_holders() -> None:
    """In a forked child: the parent's leases hang on its own sockets; this process must not keep them open."""
    for holder in list(_holders):
        holder.channel.close()
