"""The connection to one node: one attachment at a time, and what happens when it breaks.

Any number of request channels, one per call in progress, kept for reuse. One events connection, listened to by a
thread, on which the node asks for grants back; its life is the life of this client's leases. The thread also reports
hits and releases every limits.TOUCH_INTERVAL_S when there are any.

When the node is gone, every grant is forgotten (its memory stays readable for views that live: a dead node writes no
more) and calls fail with NodeGone at once until the next attempt is due, with backoff; the caller reads elsewhere. The
next attempt is another attachment under another identity, so nothing that it does can end the leases of older views.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from shoal.attachment import Attachment
from shoal.grants import Grants
from shoal_core import frame, limits, verbs
from shoal_core.errors import (
    BadRequest,
    Closed,
    DeadlineExceeded,
    Forbidden,
    NodeGone,
    ShoalError,
    TokenExpired,
)  # fmt: skip
from shoal_core.verbs import hello, release, revoke, view
from shoal_transport import links
from shoal_transport.interface import Channel
from shoal_transport.memory import MemoryListener

_BACKOFF_FIRST_S = 0.5
_BACKOFF_MAX_S = 4.0
"""A node that is replaced is away for some seconds, and its readers may have nowhere else to go meanwhile."""
_IDLE_LISTEN_S = 1.0
_REFRESH_S = 5.0
"""A reader that needs nothing hears nothing: so often it asks at home for a later view, lest the addresses that it
has are of yesterday when it does."""
_REPORT_S = 10.0
"""Deadline of a report. Not short: a node that does not answer a new connection within it counts as gone, for all who
read from it."""
_PING_AFTER_S = 0.25
_PONG_S = 0.25
"""A node that answers nothing for so long, and then no ping within this, is not asked for a while."""
_LAST_PONG_S = 2.0
"""And counts as gone if it does not answer within this."""
_GOODBYE_S = 1.0
"""How long a closing client waits to say what it gives back; the end of its connection says the same."""


class Silent(NodeGone):
    """The node does not answer, and may all the same be there."""


class Refused(NodeGone, Forbidden):
    """The node does not let this process in: as good as gone for who reads, until there is another token."""


class Session:
    """One node, as this process is connected to it. Thread-safe."""

    def __init__(
        self, address: str | MemoryListener, grants: Grants, give_token: links.GiveToken = links.no_token
    ) -> None:
        self.address = address
        self._give_token = give_token
        self.grants = grants
        """Its lock guards `attachment` too: both change together."""
        self.attachment: Attachment | None = None
        self._connecting = threading.Lock()
        """Held by the one thread that connects; others wait for it until their own deadlines."""
        self._closed = False
        self.patience_s: float | None = None
        """A node that does not greet, or answer a ping, within this counts as gone: there are others to ask. None:
        there are none, and it has until each call's deadline."""
        self.suspected = False
        """It did not answer a ping lately: others are asked meanwhile."""
        self.attached: Callable[[Session, Attachment], None] = lambda session, attachment: None
        """Called with each new attachment."""
        self.refresh: Callable[[Session], None] = lambda session: None
        """Called every _REFRESH_S while it is connected."""
        self.reached = False
        """Whether it was connected ever: then the node may come back."""
        self._down_until = 0.0
        self._backoff_s = _BACKOFF_FIRST_S
        self._refused = ""
        """Why the node did not let us in, the last time."""

    @property
    def hello(self) -> hello.Reply | None:
        """The node's terms, while it is connected."""
        attachment = self.attachment
        return attachment.terms if attachment is not None else None

    @property
    def is_local(self) -> bool:
        """Whether it is connected to a node of this machine, which brings what it lacks."""
        attachment = self.attachment
        return attachment is not None and attachment.is_local

    @property
    def closed(self) -> bool:
        """Whether `close` was called: nothing is asked here any more."""
        return self._closed

    def attach(self, deadline: float) -> Attachment:
        """The present attachment; a new one if there is none. NodeGone while the node is down."""
        if (present := self._present()) is not None:
            return present
        if not self._connecting.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise DeadlineExceeded(f"{self.address}: not connected within the deadline")
        try:
            if (present := self._present()) is not None:
                return present
            try:
                attachment = Attachment(self.address, self._patient(deadline), self._give_token)
            except ShoalError as error:
                self._down_until = time.monotonic() + self._backoff_s
                self._backoff_s = min(2 * self._backoff_s, _BACKOFF_MAX_S)
                self._refused = f"{self.address}: {error}" if isinstance(error, Forbidden) else ""
                if self._refused:
                    raise Refused(self._refused) from error
                raise
            self._attached(attachment)
        finally:
            self._connecting.release()
        self.attached(self, attachment)
        return attachment

    def attach_soon(self) -> None:
        """Try to connect, in a thread of its own: who can be served elsewhere meanwhile does not wait for it."""
        if self.attachment is None and not self._closed and time.monotonic() >= self._down_until:

            def attach() -> None:
                with contextlib.suppress(ShoalError):
                    self.attach(time.monotonic() + (self.patience_s or _REPORT_S))

            if not self._connecting.locked():
                threading.Thread(target=attach, name="shoal-attach", daemon=True).start()

    def _present(self) -> Attachment | None:
        """Without asking anybody. Raises what is known."""
        if self._closed:
            raise Closed("this client is closed")
        if (attachment := self.attachment) is not None:
            return attachment
        if time.monotonic() < self._down_until:
            if self._refused:
                raise Refused(self._refused)
            raise NodeGone(f"{self.address}: the node did not answer a moment ago")
        return None

    def _attached(self, attachment: Attachment) -> None:
        self._backoff_s = _BACKOFF_FIRST_S
        with self.grants.lock:
            if self._closed:
                raise Closed("this client is closed")
            self.attachment = attachment
            self.reached = True
            self.grants.attach(attachment.holder, attachment.terms.leased_bytes_max)
        references = weakref.ref(self), weakref.ref(attachment)
        arguments = (*references, attachment.holder.channel)
        threading.Thread(target=_listen, args=arguments, name="shoal-events", daemon=True).start()

    def _patient(self, deadline: float) -> float:
        return deadline if self.patience_s is None else min(deadline, time.monotonic() + self.patience_s)

    def await_reply(self, channel: Channel, attachment: Attachment, deadline: float) -> None:
        """Until a reply begins to arrive. Silent when the node lets wait and does not answer a ping either.

        A node that waits for an origin and one that has stopped look the same on this channel. Where there is nobody
        else to ask this returns at once.
        """
        descriptor = channel.fileno()
        if descriptor < 0 or self.patience_s is None:
            return
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not poll.poll(min(_PING_AFTER_S, max(0.0, deadline - time.monotonic())) * 1000):
            if time.monotonic() >= deadline:
                return  # the receive says so
            if not _answers_ping(attachment, min(deadline, time.monotonic() + _PONG_S)):
                self._suspect(attachment)
                raise Silent(f"{self.address}: the node does not answer")

    def _suspect(self, attachment: Attachment) -> None:
        """Ask nothing more of it until it answers. The leases stay, as it may only be busy; if not, it is gone."""
        if self.suspected or self.attachment is not attachment:
            return
        self.suspected = True

        def look() -> None:
            alive = _answers_ping(attachment, time.monotonic() + _LAST_PONG_S)
            if not alive and self.attachment is attachment:
                self._down_until = time.monotonic() + self._backoff_s
                self._backoff_s = min(2 * self._backoff_s, _BACKOFF_MAX_S)
                self.lost(attachment)
            self.suspected = False

        threading.Thread(target=look, name="shoal-ping", daemon=True).start()

    def call(self, kind: int, request: Any, deadline: float) -> Any:
        """One verb whose reply has no payload."""
        try:
            return self._call(kind, request, deadline)
        except TokenExpired:
            pass
        try:
            return self._call(kind, request, deadline)  # on another channel, with the token as it is now
        except TokenExpired as error:
            raise Refused(f"{self.address}: {error}") from error

    def _call(self, kind: int, request: Any, deadline: float) -> Any:
        with self.channel(deadline) as (channel, attachment):
            channel.post(kind, verbs.encode(request), deadline)
            self.await_reply(channel, attachment, deadline)
            return verbs.decode_reply(kind, *channel.take(deadline))

    def channel(self, deadline: float) -> Lent:
        """A request channel for one call, payload included, and the attachment it belongs to."""
        return Lent(self, deadline)

    def close(self) -> None:
        """Give everything back. Views that live keep their leases until they end."""
        with self.grants.lock:
            self._closed = True
            attachment, (released, touches) = self.attachment, self.grants.report()
        channel = attachment.take_idle() if attachment is not None else None
        if attachment is not None and channel is not None:
            if released or touches:
                with contextlib.suppress(ShoalError):
                    request = verbs.encode(release.Request(released, touches))
                    channel.call(release.KIND, request, time.monotonic() + _GOODBYE_S)
            attachment.discard(channel)
        self.lost(attachment)

    def abandon(self) -> None:
        """In a forked child: close the inherited sockets, so that the parent's end is seen, and start over."""
        self.grants.reset_after_fork()
        self._connecting = threading.Lock()
        if self.attachment is not None:
            self.attachment.abandon()
        self.attachment = None

    def report(self, deadline: float) -> None:
        """Send what was released and touched, if anything. What is lost on the way, the node asks for again."""
        with self.grants.lock:
            released, touches = self.grants.report()
        if released or touches:
            with contextlib.suppress(ShoalError):
                self.call(release.KIND, release.Request(released, touches), deadline)

    def lost(self, attachment: Attachment | None) -> None:
        """That attachment is over: no lease of it is used from now on."""
        if attachment is None:
            return
        with self.grants.lock:
            if self.attachment is attachment:
                self.attachment = None
                self.grants.forget_all()
        attachment.ended = True
        attachment.close_idle()


class Lent:
    """`with session.channel(deadline) as (channel, attachment)`. Whatever goes wrong inside, it is not used again.

    A class, because it is on the way of every request: a generator would cost 2 us more.
    """

    __slots__ = ("_attachment", "_channel", "_fresh", "_session")

    def __init__(self, session: Session, deadline: float) -> None:
        self._session = session
        self._attachment = attachment = session.attach(deadline)
        channel = attachment.take_idle()
        self._fresh = channel is None
        if channel is None:
            try:
                channel = attachment.open_request_channel(deadline)
            except (NodeGone, DeadlineExceeded):
                session.lost(attachment)
                raise
            except Forbidden as error:
                session.lost(attachment)
                raise Refused(f"{session.address}: {error}") from error
        self._channel = channel

    def __enter__(self) -> tuple[Channel, Attachment]:
        return self._channel, self._attachment

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._attachment.give_back(self._channel)
            return
        self._attachment.discard(self._channel)
        if isinstance(error, NodeGone) and not isinstance(error, Silent):
            # An old channel may have died alone, and others as old with it; a fresh one that dies means the node.
            self._attachment.close_idle()
            if self._fresh:
                self._session.lost(self._attachment)


def _answers_ping(attachment: Attachment, deadline: float) -> bool:
    """Over a connection of its own."""
    try:
        ping = attachment.open_request_channel(deadline)
        try:
            ping.call(view.KIND, verbs.encode(view.Request(1 << 62)), deadline)
        finally:
            attachment.discard(ping)
    except ShoalError:
        return False
    return True


def _listen(session_ref: weakref.ref[Session], attachment_ref: weakref.ref[Attachment], channel: Channel) -> None:
    """The events thread. It holds no reference while it waits, so that a dropped client and dead views can end."""
    wait_s = limits.TOUCH_INTERVAL_S
    refresh_at = time.monotonic() + _REFRESH_S
    while True:
        try:
            received = channel.listen(wait_s)
        except (ShoalError, OSError, ValueError):
            if (session := session_ref()) is not None:
                session.lost(attachment_ref())
            return
        session = session_ref()
        if session is None or session.attachment is None or session.attachment is not attachment_ref():
            return  # closed: the node hears nothing more until the last view ends
        if received is not None:
            _answer(session, channel, *received)
        with session.grants.lock:
            active = session.grants.to_report
        if active:
            session.report(time.monotonic() + _REPORT_S)
        if time.monotonic() >= refresh_at:
            session.refresh(session)
            refresh_at = time.monotonic() + _REFRESH_S
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
