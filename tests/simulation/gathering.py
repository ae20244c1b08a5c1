"""The carrying out of a gather: what `shoal_transport.gathering` does with sockets, poll and threads.

The decisions are the real `Gather`'s, and the meaning of requests and answers is that of the real `asking`; here are
simulated connections and timers. A client and a node that reads from its peers use the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from shoal_core import frame, verbs, view
from shoal_core.errors import NodeGone, ShoalError, UnknownObject
from shoal_core.gather import Ask, Drop, Gather, Origin, Probe
from shoal_core.verbs import fetch, get, resolve
from shoal_core.verbs import view as view_verb
from shoal_transport import asking
from shoal_transport.asking import Item
from tests.simulation.network import Connection, Reply
from tests.simulation.world import MS, Future, Work

if TYPE_CHECKING:
    from tests.simulation.reader import Reader


class Payload:
    """What `receiving` takes bytes from: those that came with a reply."""

    def __init__(self, payload: bytes) -> None:
        self._payload = memoryview(payload)
        self._at = 0

    def receive_into(self, view: memoryview, deadline: float) -> None:
        view[:] = self._payload[self._at : self._at + len(view)]
        self._at += len(view)

    def receive_each(self, views: Sequence[memoryview], deadline: float) -> None:
        for one in views:
            self.receive_into(one, deadline)


def encode(kind: int, request: Any) -> bytes:
    """A request as it travels."""
    return frame.encode(kind, 0, verbs.encode(request))


class _Line:
    """The connection to one node, and what was posted on it."""

    def __init__(self, node: view.Node) -> None:
        self.node = node
        self.connection: Connection | None = None
        self.posted: deque[Ask] = deque()
        self.fresh = self.closed = self.told_again = self.begun = False


class GatherRun:
    """One gather under way."""

    def __init__(self, by: Reader, gather: Gather, items: Sequence[Item], until_ns: int, hops: int,
                 got: Callable[[list[int]], None]) -> None:  # fmt: skip
        self._by, self._world, self.gather = by, by.world, gather
        self._items, self._until_ns, self._hops, self._got = items, until_ns, hops, got
        self._lines: dict[str, _Line] = {}
        self._probes: dict[str, _Line] = {}
        self.origin: list[int] = []
        self.over = Future()
        self._woken_ns = 0

    def start(self) -> None:
        self.gather.start(self._world.now_ns)
        self._perform()

    def close(self) -> None:
        self.gather.end()
        for line in (*self._lines.values(), *self._probes.values()):
            line.closed = True
            if line.connection is None:
                continue
            line.connection.on_break = None
            if line.posted or self._probes.get(line.node.id) is line:
                line.connection.close()
            else:
                self._by.give_back(line.node.id, line.connection)
        self._lines.clear()
        self._probes.clear()

    def _perform(self) -> None:
        gather = self.gather
        while gather.actions:
            match action := gather.actions.pop(0):
                case Ask():
                    self._ask(action)
                case Probe(node):
                    self._probe(node)
                case Drop(node):
                    self._drop(node)
                case Origin(items):
                    self.origin += items
        if not gather.left:
            self.over.set()
            return
        wake_ns = gather.wake_ns()
        now_ns = self._world.now_ns
        if wake_ns is not None and (self._woken_ns <= now_ns or wake_ns < self._woken_ns):
            self._woken_ns = max(wake_ns, now_ns + 1)
            self._world.at(self._woken_ns - now_ns, self._by.process, self._wake, self._woken_ns)

    def _wake(self, woken_ns: int) -> None:
        if self.over.done or woken_ns != self._woken_ns or self not in self._by.running:
            return
        self._woken_ns = 0
        self.gather.tick(self._world.now_ns)
        self._perform()

    def _ask(self, ask: Ask) -> None:
        self._by.asked += 1
        line = self._lines.get(ask.node.id)
        if line is None:
            line = self._lines[ask.node.id] = _Line(ask.node)
            self._use(line, self._by.idle(ask.node.id))
            if line.connection is None:
                self._world.spawn(self._by.process, self._connect(line))
        line.posted.append(ask)
        if line.connection is not None:
            self._post(line, ask)

    def _use(self, line: _Line, connection: Connection | None) -> None:
        line.connection = connection
        if connection is not None:
            connection.on_break = lambda: self._renew(line)

    def _post(self, line: _Line, ask: Ask) -> None:
        assert line.connection is not None
        reply = line.connection.post(self._request(ask), twice=True)
        line.begun = False
        reply.began = lambda: self._begun(line, ask, reply)
        reply.then(lambda answer: self._answered(line, ask, answer))

    def _request(self, ask: Ask) -> bytes:
        wanted = [self._items[number] for number in ask.items]
        milliseconds = max(1, (self._until_ns - self._world.now_ns) // MS)
        if ask.only_if_held:
            return encode(fetch.KIND, fetch.Request([item.key for item in wanted], milliseconds))
        numbers: dict[bytes, int] = {}
        claims: dict[bytes, resolve.Wanted | None] = {}
        items: list[get.Item] = []
        for item in wanted:
            number = numbers.setdefault(item.fingerprint, len(numbers))
            claims[item.fingerprint] = item.claim
            items.append(get.Item(number, item.block, item.offset, item.length))
        known = self._by.told.claims(ask.node.id, claims)
        request = get.Request(list(numbers), items, [], milliseconds, True, hops=self._hops, claims=known)
        return encode(get.KIND, request)

    def _connect(self, line: _Line) -> Work:
        try:
            connection = yield from self._by.open(line.node.id, self._until_ns)
        except NodeGone:
            connection = None
        if line.closed:
            if connection is not None:
                connection.close()
            return
        self._use(line, connection)
        line.fresh = True
        if self._probes.get(line.node.id) is line:
            self._ping(line) if connection is not None else self._end_probe(line.node.id)
        elif connection is None:
            self._broke(line)
            self._perform()
        else:
            for ask in list(line.posted):
                self._post(line, ask)

    # Whether a node lives

    def _probe(self, node: view.Node) -> None:
        line = self._probes.get(node.id)
        if line is None:
            line = self._probes[node.id] = _Line(node)
            self._world.spawn(self._by.process, self._connect(line))
        elif line.connection is not None:
            self._ping(line)

    def _ping(self, line: _Line) -> None:
        assert line.connection is not None
        line.connection.post(encode(view_verb.KIND, view_verb.Request(1 << 62))).then(
            lambda answer: self._ponged(line, answer)
        )

    def _ponged(self, line: _Line, answer: Any) -> None:
        if line.closed:
            return
        if isinstance(answer, NodeGone):
            self._end_probe(line.node.id)
            return
        del self._probes[line.node.id]
        line.closed = True
        assert line.connection is not None
        line.connection.on_break = None
        self._by.give_back(line.node.id, line.connection)
        self.gather.alive(line.node, self._world.now_ns)
        self._perform()

    def _end_probe(self, node_id: str) -> None:
        self._shut(self._probes.pop(node_id, None))

    def _drop(self, node: view.Node) -> None:
        self._shut(self._lines.pop(node.id, None))
        self._end_probe(node.id)

    @staticmethod
    def _shut(line: _Line | None) -> None:
        if line is not None:
            line.closed = True
            if line.connection is not None:
                line.connection.on_break = None
                line.connection.close()

    def _broke(self, line: _Line) -> None:
        """What it was asked for goes on elsewhere."""
        if self._lines.get(line.node.id) is line:
            self._drop(line.node)
            self._by.forget(line.node.id)
            self._by.told.forget(line.node.id)
            self.gather.broke(line.node, self._world.now_ns)

    def _renew(self, line: _Line) -> None:
        """An old connection may have died alone; a fresh one that dies means the node."""
        if line.closed:
            return
        if self._probes.get(line.node.id) is line:
            self._end_probe(line.node.id)
            return
        if line.fresh or line.connection is None:
            self._broke(line)
            self._perform()
            return
        if line.begun and line.posted:
            self.gather.unbegun(line.posted[0].request)
        line.begun = False
        line.connection.on_break = None
        line.connection.close()
        line.connection = None
        self._by.forget(line.node.id)
        self._world.spawn(self._by.process, self._connect(line))

    # Replies

    def _begun(self, line: _Line, ask: Ask, reply: Reply) -> None:
        """The first byte of a long answer is there; the rest may take only so long."""
        if line.closed or not line.posted or line.posted[0] is not ask or line.begun:
            return
        line.begun = True
        allowed_ns = self.gather.begun(ask.request, self._world.now_ns)
        if allowed_ns is not None:
            self._world.at(allowed_ns, self._by.process, self._too_slow, line, ask, reply)
        self._perform()

    def _too_slow(self, line: _Line, ask: Ask, reply: Reply) -> None:
        if not line.closed and line.begun and not reply.done and line.posted and line.posted[0] is ask:
            self._world.note("too slow", self._by.process.name, None, line.node.id)
            self._broke(line)
            self._perform()

    def _answered(self, line: _Line, ask: Ask, answer: Any) -> None:
        if line.closed or isinstance(answer, NodeGone):
            return  # of what broke `_renew` is told
        assert line.posted and line.posted[0] is ask
        now_ns = self._world.now_ns
        if not line.begun:
            self.gather.begun(ask.request, now_ns)
        line.begun = False
        header, body, payload = answer
        wanted = [self._items[number] for number in ask.items]
        try:
            outcome = self.outcome(ask, wanted, header, body, payload)
        except UnknownObject:
            self._tell_again(line)
            return
        except NodeGone as error:
            self._note(ask, error)
            self.gather.unbegun(ask.request)
            self._renew(line)
            return
        except ShoalError as error:
            self._note(ask, error)
            self._broke(line)
            self._perform()
            return
        line.posted.popleft()
        line.fresh = line.told_again = False
        self._by.late_epoch = max(self._by.late_epoch, outcome.epoch)
        if outcome.got:
            self._got(outcome.got)
        if outcome.corrupt:
            self._by.corrupt += len(outcome.corrupt)
            self._world.note("corrupt", self._by.process.name, wanted[0].key, line.node.id)
            self._world.spawn(self._by.process, self._by.complain(line.node, outcome.corrupt))
        for position, count in outcome.hot:
            self.gather.is_hot(wanted[position].key, count, now_ns)
        self.gather.answered(ask.request, outcome.results, now_ns, outcome.load)
        if not line.posted and not line.closed:
            del self._lines[line.node.id]
            line.closed = True
            assert line.connection is not None
            line.connection.on_break = None
            self._by.give_back(line.node.id, line.connection)
        self._perform()

    def outcome(
        self, ask: Ask, wanted: list[Item], header: frame.Header, body: bytes, payload: bytes
    ) -> asking.Outcome:
        """What a reply brought, checked against its digests."""
        channel: Any = Payload(payload)
        whole = header._replace(payload_bytes=len(payload)), body
        return asking.outcome(ask, wanted, self.gather.is_wanted, channel, whole, 0)

    def _tell_again(self, line: _Line) -> None:
        """It does not know an object that it was told of: once more, with what they stand for."""
        self._by.told.forget(line.node.id)
        if line.told_again or line.connection is None:
            self._broke(line)
            self._perform()
            return
        line.told_again, line.fresh = True, False
        self.gather.unbegun(line.posted[0].request)
        self._renew(line)

    def _note(self, ask: Ask, error: ShoalError) -> None:
        for number in ask.items:
            if self.gather.is_wanted(number):
                self._items[number].error = error
