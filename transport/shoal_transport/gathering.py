"""Carrying out a `Gather`: one thread, a connection to each node concerned, and poll between them.

Requests are posted ahead, and whichever node's reply begins to arrive first is received next, straight into its items'
places, digests checked. The decisions (who is asked, who is asked as well, who is given up) are the gather's; here are
sockets and the clock. New connections are made in threads of their own, so that a node that does not take one keeps
nobody waiting. Every wait ends at the deadline. The gather's router is shared by threads: `lock` guards it.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from shoal_core import verbs, view
from shoal_core.errors import DeadlineExceeded, NodeGone, ProtocolError, ShoalError, TokenExpired, UnknownObject
from shoal_core.gather import Ask, Drop, Gather, Origin, Probe
from shoal_core.verbs import view as view_verb
from shoal_transport import asking
from shoal_transport.asking import Item, Told
from shoal_transport.interface import Channel
from shoal_transport.links import Links

_LOOK_S = 0.25
"""How often a wait looks whether its reader was closed."""

_PONG_S = 1.0
"""For the rest of an answer to a ping that has begun to arrive."""


class Gathering:
    """What one reader's gathers share."""

    def __init__(self, links: Links, lock: threading.Lock) -> None:
        self.links = links
        self.lock = lock
        self.told = Told()
        self.corrupt = 0
        """Items whose bytes did not match their digests."""
        self.late_epoch = 0
        """The latest epoch that a node spoke of."""
        self.closed = False
        """What still runs ends soon, by NodeGone."""

    def take_corrupt(self) -> int:
        """Items whose bytes did not match their digests, since the last time this was asked."""
        with self.lock:
            count, self.corrupt = self.corrupt, 0
        return count

    def run(
        self,
        gather: Gather,
        items: Sequence[Item],
        deadline: float,
        hops: int = 0,
        got: Callable[[list[int]], None] = lambda _: None,
    ) -> list[int]:
        """Carry it out; positions of the items that no node gave. Of the others each has a `source` or an `error`.

        `hops`: nodes that passed the reader's request on. `got` is told of items as they arrive, once of each.
        DeadlineExceeded when the deadline comes first.
        """
        run = _Run(self, gather, items, deadline, hops, got)
        try:
            return run.until_done()
        finally:
            run.close()


class _Line:
    """The connection to one node: while it is made, and then what was posted on it."""

    def __init__(self, node: view.Node) -> None:
        self.node = node
        self.channel: Channel | None = None
        self.failed = False
        self.closed = False
        self.posted: deque[Ask] = deque()
        """Asks whose replies are awaited; while the connection is made, those that are to be sent on it."""
        self.numbers: deque[int] = deque()
        """Of the requests that were sent on the present connection, as the channel counts them."""
        self.fresh = False
        self.told_again = False


class _Run:
    def __init__(
        self,
        by: Gathering,
        gather: Gather,
        items: Sequence[Item],
        deadline: float,
        hops: int,
        got: Callable[[list[int]], None],
    ) -> None:
        self._by = by
        self._gather = gather
        self._items = items
        self._deadline = deadline
        self._hops = hops
        self._got = got
        self._lines: dict[str, _Line] = {}
        self._probes: dict[str, _Line] = {}
        self._origin: list[int] = []
        self._wake = -1
        """An eventfd: a connection was made, or not."""
        self._made: deque[tuple[_Line, Channel | None]] = deque()

    def until_done(self) -> list[int]:
        gather, lock = self._gather, self._by.lock
        with lock:
            gather.start(time.monotonic_ns())
        self._perform()
        while gather.left:
            self._wait()
            if self._by.closed:
                raise NodeGone("this reader is closed")
            if gather.left and time.monotonic() >= self._deadline:
                raise DeadlineExceeded("no node answered within the deadline")
            with lock:
                gather.tick(time.monotonic_ns())
            self._perform()
        return self._origin

    def close(self) -> None:
        with self._by.lock:
            self._gather.end()
            for line in (*self._lines.values(), *self._probes.values()):
                line.closed = True  # a thread that still connects sees it, under the lock
            unused = [channel for _, channel in self._made]
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1
        for line in self._lines.values():
            if line.channel is not None and not line.posted:
                self._by.links.give_back(line.node, line.channel)
            else:
                unused.append(line.channel)  # replies are under way on it
        unused += [line.channel for line in self._probes.values()]
        for channel in unused:
            if channel is not None:
                channel.close()

    # What the gather decided

    def _perform(self) -> None:
        gather = self._gather
        while gather.actions:
            action = gather.actions.pop(0)  # one by one: a node that breaks takes back what it was still to be asked
            match action:
                case Ask():
                    self._ask(action)
                case Probe(node):
                    self._probe(node)
                case Drop(node):
                    self._drop(node)
                case Origin(items):
                    self._origin += items

    def _ask(self, ask: Ask) -> None:
        line = self._lines.get(ask.node.id)
        if line is None:
            line = self._lines[ask.node.id] = _Line(ask.node)
            line.channel = self._by.links.idle(ask.node)
            if line.channel is None:
                self._connect(line)
        line.posted.append(ask)
        if line.channel is not None:
            self._post(line, ask)

    def _post(self, line: _Line, ask: Ask) -> bool:
        channel = line.channel
        assert channel is not None
        try:
            wanted = [self._items[number] for number in ask.items]
            number = channel.post(
                *asking.request(self._by.told, ask, wanted, self._deadline, self._hops), self._deadline
            )
            line.numbers.append(number)
        except NodeGone:
            self._renew(line)
            return False
        except DeadlineExceeded:
            return False  # the loop ends at the deadline
        return True

    def _probe(self, node: view.Node) -> None:
        line = self._probes.setdefault(node.id, _Line(node))
        if line.channel is None and not line.failed:
            self._connect(line)
        elif line.channel is not None:
            self._ping(line)

    def _ping(self, line: _Line) -> None:
        assert line.channel is not None
        try:
            line.channel.post(view_verb.KIND, verbs.encode(view_verb.Request(1 << 62)), self._deadline)
        except ShoalError:
            self._end_probe(line.node.id)

    def _drop(self, node: view.Node) -> None:
        line = self._lines.pop(node.id, None)
        if line is not None:
            line.closed = True
            if line.channel is not None:
                line.channel.close()
        self._end_probe(node.id)

    def _end_probe(self, node_id: str) -> None:
        line = self._probes.pop(node_id, None)
        if line is not None:
            line.closed = True
            if line.channel is not None:
                line.channel.close()

    def _broke(self, line: _Line) -> None:
        """What it was asked for goes on elsewhere."""
        if self._lines.get(line.node.id) is line:
            self._drop(line.node)
            self._by.links.forget(line.node)
            self._by.told.forget(line.node.id)
            with self._by.lock:
                self._gather.broke(line.node, time.monotonic_ns())

    # Connections

    def _connect(self, line: _Line) -> None:
        if self._wake < 0:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        threading.Thread(target=self._make, args=(line,), name="shoal-connect", daemon=True).start()

    def _make(self, line: _Line) -> None:
        channel: Channel | None = None
        try:
            channel = self._by.links.open(line.node, self._deadline)
        except ShoalError:
            line.failed = True
        with self._by.lock:
            if line.closed or self._wake < 0:
                if channel is not None:
                    channel.close()
                return
            # Given to the line by the loop: until then nothing is posted, so that nothing is posted twice.
            self._made.append((line, channel))
            os.eventfd_write(self._wake, 1)

    def _renew(self, line: _Line) -> None:
        """An old connection may have died alone; a fresh one that dies means the node."""
        if line.fresh or line.channel is None:
            self._broke(line)
            return
        line.channel.close()
        line.channel = None
        line.numbers.clear()
        self._by.links.forget(line.node)
        self._connect(line)

    # Waiting

    def _wait(self) -> None:
        """Until something can be done; does it."""
        by_descriptor: dict[int, tuple[_Line, bool]] = {}
        poll = select.poll()
        for lines, probing in ((self._lines, False), (self._probes, True)):
            for line in list(lines.values()):
                if line.channel is not None and line.channel.broken:
                    self._broke(line) if not probing else self._end_probe(line.node.id)
                elif line.channel is not None and (line.posted or probing):
                    descriptor = line.channel.fileno()
                    by_descriptor[descriptor] = line, probing
                    poll.register(descriptor, select.POLLIN)
        if self._wake >= 0:
            poll.register(self._wake, select.POLLIN)
        if self._gather.actions:
            return
        with self._by.lock:
            wake_ns = self._gather.wake_ns()
        left_ms = min(max(0.0, self._deadline - time.monotonic()), _LOOK_S) * 1000
        if wake_ns is not None:
            left_ms = min(left_ms, max(0, wake_ns - time.monotonic_ns()) / 1e6)
        for descriptor, _ in poll.poll(int(left_ms) + 1):
            if descriptor == self._wake:
                os.eventfd_read(self._wake)
                self._connected()
                continue
            line, probing = by_descriptor[descriptor]
            if line.closed:
                continue
            self._probed(line) if probing else self._receive(line)
            self._perform()

    def _connected(self) -> None:
        while self._made:
            line, line.channel = self._made.popleft()
            line.fresh = True
            if line.closed:
                if line.channel is not None:
                    line.channel.close()
                continue
            if self._probes.get(line.node.id) is line:
                self._ping(line) if line.channel is not None else self._end_probe(line.node.id)
            elif line.channel is None:
                self._broke(line)
            else:
                # A post that fails has the rest dealt with as well.
                all(self._post(line, ask) for ask in list(line.posted))

    def _probed(self, line: _Line) -> None:
        assert line.channel is not None
        try:
            header, body = line.channel.take(min(self._deadline, time.monotonic() + _PONG_S))
            verbs.decode_reply(view_verb.KIND, header, body)
        except ShoalError:
            self._end_probe(line.node.id)
            return
        del self._probes[line.node.id]
        line.closed = True
        line.channel.close()  # kept, each ping would leave one more
        with self._by.lock:
            self._gather.alive(line.node, time.monotonic_ns())

    # Replies

    def _receive(self, line: _Line) -> None:
        ask, channel = line.posted[0], line.channel
        assert channel is not None
        with self._by.lock:
            allowed_ns = self._gather.begun(ask.request, time.monotonic_ns())
        until = self._deadline if allowed_ns is None else min(self._deadline, time.monotonic() + allowed_ns / 1e9)
        wanted = [self._items[number] for number in ask.items]
        try:
            reply = channel.take(until)
            if not line.numbers or reply[0].request != line.numbers.popleft():
                raise ProtocolError(f"{line.node.id}: a reply to another request than the next")
            outcome = asking.outcome(ask, wanted, self._gather.is_wanted, channel, reply, until)
        except UnknownObject:
            self._tell_again(line)
            return
        except (NodeGone, TokenExpired) as error:
            self._note(ask, error)
            with self._by.lock:
                self._gather.unbegun(ask.request)
            self._renew(line)
            return
        except ShoalError as error:
            self._note(ask, error)
            self._broke(line)
            return
        line.posted.popleft()
        line.fresh = line.told_again = False
        self._by.late_epoch = max(self._by.late_epoch, outcome.epoch)
        if outcome.got:
            self._got(outcome.got)
        if outcome.corrupt:
            self._by.corrupt += len(outcome.corrupt)
            asking.complain_of(self._by.links, line.node, outcome.corrupt)
        with self._by.lock:
            now_ns = time.monotonic_ns()
            for position, count in outcome.hot:
                self._gather.is_hot(wanted[position].key, count, now_ns)
            self._gather.answered(ask.request, outcome.results, now_ns, outcome.load)
        if not line.posted and not line.closed:
            del self._lines[line.node.id]
            self._by.links.give_back(line.node, channel)

    def _tell_again(self, line: _Line) -> None:
        """It does not know an object that it was told of, as after a restart: once more, with what they stand for."""
        self._by.told.forget(line.node.id)
        if line.told_again or line.channel is None:
            self._broke(line)
            return
        line.told_again = True
        line.fresh = False
        with self._by.lock:
            self._gather.unbegun(line.posted[0].request)
        self._renew(line)

    def _note(self, ask: Ask, error: ShoalError) -> None:
        for number in ask.items:
            if self._gather.is_wanted(number):  # else another node's answer was the last word
                self._items[number].error = error
