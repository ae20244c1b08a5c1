"""What a door is: a `Channel` for the client's end, a `Connection` for the node's end, a `Listener` that makes them.

A channel's replies come in the order of its requests: `call` sends a frame and returns the reply's header and body; if
the header announces a payload, the caller receives all of it (`receive_into`, `receive_each`, `receive`) before the
next reply. With `post` and `take`, a few small requests may be under way at once. Payload bytes go from the sender's
views to the receiver's views; a door adds no copy of its own in Python. Every wait of a channel ends at the deadline it
was given. A channel on which anything went wrong is broken for good: its owner closes it and opens another, because
what is still under way on it can no longer be told from what comes next.

The node's end waits for requests without a deadline (an idle client is no fault) and is ended by `close`; its sends
are bounded by SEND_STALL_S, so that a client that stops reading cannot hold a lease for ever.

tests/contract/test_transport.py holds every door to this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shoal_core.frame import Header

SEND_STALL_S = 30.0
"""A node's send that makes no progress for this long ends the connection."""


class Channel(Protocol):
    """Client's end. Not thread-safe: one owner at a time."""

    door: str
    """`memory`, `unix` or `tcp`."""
    broken: bool
    expires_s: float
    """Seconds since 1970, from when on the node answers nothing more on it; math.inf: there is no such time."""

    def call(self, kind: int, body: bytes, deadline: float, descriptors: int = 0) -> tuple[Header, bytes]:
        """Send one frame, wait for its reply. `deadline` is on the monotonic clock, seconds.

        With `descriptors`, that many may come with the reply: see `take_descriptors`.
        Raises NodeGone, DeadlineExceeded, ProtocolError; the channel is broken after each.
        """
        ...

    def post(self, kind: int, body: bytes, deadline: float) -> int:
        """Send one frame; its number, which its reply's header will have. The reply is taken later.

        A few KiB at most may be under way, else both ends could wait.
        """
        ...

    def take(self, deadline: float) -> tuple[Header, bytes]:
        """The reply to the oldest frame posted."""
        ...

    def receive_into(self, view: memoryview, deadline: float) -> None:
        """Fill `view` with the next bytes of the payload."""
        ...

    def receive_each(self, views: Sequence[memoryview], deadline: float) -> None:
        """Fill these, one after the other, with the next bytes of the payload: many small ones cost what one does."""
        ...

    def receive(self, size: int, deadline: float) -> bytes:
        """The next `size` bytes of the payload, as one bytes object that was received into directly."""
        ...

    def take_descriptors(self) -> list[int]:
        """Descriptors that came with the last reply; the caller owns them."""
        ...

    def listen(self, seconds: float) -> tuple[Header, bytes] | None:
        """A frame that the node sent unasked, or None when there was none within about that time. NodeGone at the end.

        For the one connection on which the node asks; `call` is not used on it after the first.
        """
        ...

    def answer(self, data: bytes) -> None:
        """Send a reply to a frame that was listened for."""
        ...

    def fileno(self) -> int:
        """A descriptor that is readable when a reply begins to arrive, for `poll`; -1 where the door has none."""
        ...

    def close(self) -> None: ...


class Connection(Protocol):
    """Node's end of one channel. `receive` belongs to one thread; `close` may be called from any."""

    door: str
    grants: bool
    """Whether descriptors can be passed, so that shared memory can be granted."""

    def receive(self) -> tuple[Header, bytes] | None:
        """The next frame, or None when the peer has gone or the connection was closed. ProtocolError on garbage."""
        ...

    def send(self, data: bytes, payload: Sequence[memoryview] = (), descriptors: Sequence[int] = ()) -> None:
        """Send one frame and its payload straight from the views. NodeGone when the peer has gone."""
        ...

    def hang_up(self) -> None:
        """The peer sees the end, and whoever works on this connection finds it ended, and closes it."""
        ...

    def close(self) -> None: ...


class Listener(Protocol):
    address: str

    def accept(self) -> Connection | None:
        """The next connection, or None once closed."""
        ...

    def close(self) -> None: ...
