"""The streams whose loaders publish plans, by space, and the one clock that each space's uses are put on. Pure.

A stream counts its own items. When its first plan comes, its position there is set equal to the space's clock, and so
the uses that several streams tell of (ranks of one job, a job that was resumed) stand in one order. A stream lives as
long as the client that published it, or until it says that it has ended; with the last one the clock stands still, and
the next stream goes on from there. What is known then of the one before is right if it is the same job that goes on,
passes by if it is another.
"""

from __future__ import annotations

from shoal_core import limits
from shoal_core.next_use import CLOCK_MAX, Clock

SLACK_ITEMS_MIN = 64
"""A use has passed by when its stream is so much beyond it, or a whole window: readers run ahead and behind."""

SLACK_ITEMS_MAX = 4096
"""Also for a stream whose window is all that is left of it."""

IDLE_S = 60
"""A stream that said nothing for so long does not hold back what has passed by for the others."""


class Stream:
    """One loader's pass."""

    __slots__ = ("offset", "position", "told_s", "window_end")

    def __init__(self, offset: int) -> None:
        self.offset = offset
        """What is added to its positions to put them on the clock."""
        self.position = 0
        self.window_end = 0
        """Both on the clock."""
        self.told_s = 0


class _Space:
    """Streams of one space, the one that spoke last at the end."""

    __slots__ = ("begun_at", "begun_s", "clock", "streams")

    def __init__(self) -> None:
        self.clock = Clock()
        self.streams: dict[tuple[bytes, bytes], Stream] = {}
        self.begun_at = self.begun_s = 0
        """Where the clock stood when its first living stream began."""


class Streams:
    """All streams of a node, told apart by (client, the name the client gave)."""

    def __init__(self) -> None:
        self._spaces: dict[int, _Space] = {}

    def clock(self, space: int) -> Clock:
        """The same object for as long as the node lives."""
        return self._space(space).clock

    def tell(self, space: int, name: tuple[bytes, bytes], position: int, window_end: int, now_s: int) -> int | None:
        """A stream is at `position`, and reads up to `window_end` at present; what puts its positions on the clock.

        None: the clock has gone too far, and starts over. All that is known is to be forgotten and this said again.
        """
        here = self._space(space)
        clock = here.clock
        if clock.now > CLOCK_MAX:
            here.streams.clear()
            clock.now = clock.passed = clock.window_end = 0
            clock.live = False
            return None
        stream = here.streams.pop(name, None) or Stream(clock.now - position)
        here.streams[name] = stream
        if len(here.streams) > limits.STREAMS_MAX:
            del here.streams[next(iter(here.streams))]
        stream.position = max(0, position + stream.offset)
        stream.window_end = max(stream.position, window_end + stream.offset)
        stream.told_s = now_s
        if not clock.live:
            here.begun_at, here.begun_s = clock.now, now_s
            clock.live = True
        _advance(here, now_s)
        return stream.offset

    def spaces(self, name: tuple[bytes, bytes]) -> list[int]:
        """Those that the stream has told of."""
        return [space for space, here in self._spaces.items() if name in here.streams]

    def ended(self, name: tuple[bytes, bytes]) -> None:
        """That stream will be read no further."""
        for here in self._spaces.values():
            if here.streams.pop(name, None) is not None:
                here.clock.live = bool(here.streams)

    def gone(self, client: bytes) -> None:
        """With its client all its streams are dead."""
        for here in self._spaces.values():
            for name in [name for name in here.streams if name[0] == client]:
                self.ended(name)

    def _space(self, space: int) -> _Space:
        found = self._spaces.get(space)
        if found is None:
            found = self._spaces[space] = _Space()
        return found


def _advance(here: _Space, now_s: int) -> None:
    clock = here.clock
    active = [stream for stream in here.streams.values() if stream.told_s + IDLE_S >= now_s]
    clock.now = max(stream.position for stream in active)
    clock.window_end = max(stream.window_end for stream in active)
    clock.passed = max(0, min(stream.position - _slack(stream) for stream in active))
    clock.told_s = now_s
    if now_s > here.begun_s:
        clock.items_per_s = max(0, clock.now - here.begun_at) / (now_s - here.begun_s)


def _slack(stream: Stream) -> int:
    return min(max(stream.window_end - stream.position, SLACK_ITEMS_MIN), SLACK_ITEMS_MAX)
