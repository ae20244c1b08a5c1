"""Many blocks wanted at once, from many nodes: who is asked for which, and what happens when one does not answer.

Each block has its ways: attempts in the order in which they are to be tried. Blocks whose next way is the same node
travel together, in parts, a few parts ahead of what was answered. A part that is answered finishes its blocks or sends
them on along their ways; a node that breaks sends on everything it was asked for. A node that lets wait is not alone
for long: after the usual time for a first byte (`Router.hedge_ns`) the blocks are asked of their next nodes as well,
and whoever answers first wins; after PROBE_NS it is asked whether it lives at all, over a connection of its own,
because a node that waits for the origin and a node that has stopped look the same; who does not answer that is given
up. What no node has is left to the caller, to be read from the origin. So a read ends even where every node fails, and
what ended is never asked for again.

Pure: `actions` says what is to be done, and the methods are told what happened and when. The client's reads, a node's
fills from its peers and the simulation all run on this.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from shoal_core import limits, view
from shoal_core.router import Router
from shoal_core.routing import Attempt

GOT, ABSENT, BAD, FINAL = 0, 1, 2, 3
"""What came of a block in an answer: its bytes, verified; nothing; bytes that are not its own; an error that no other
node would answer otherwise."""

PROBE_NS = 500_000_000
PROBE_EVERY_NS = 1_000_000_000
PROBE_ANSWER_NS = 2_000_000_000
"""A node that lives answers a ping within this, however busy it is: to give up one that is only busy sends its readers
to the origin, all together. Who has other nodes to ask has asked them long before."""

HELD_NS = 100_000_000
"""Who is asked only for what it holds has nothing to wait for: beyond this and the usual time it is given up."""

HEDGE_AGAIN_NS = 500_000_000
"""Without any hedge saved up, one is made all the same after so long."""


class Ask(NamedTuple):
    """Send a request for these blocks. Replies of one node come in the order of its requests."""

    request: int
    node: view.Node
    items: list[int]
    only_if_held: bool


class Probe(NamedTuple):
    """Ask the node whether it lives; then `alive`, or nothing."""

    node: view.Node


class Drop(NamedTuple):
    """Nobody waits for the replies of this node any more: end the connection they would come over."""

    node: view.Node


class Origin(NamedTuple):
    """No node gives these."""

    items: list[int]


Action = Ask | Probe | Drop | Origin


class _Request:
    __slots__ = ("began_ns", "hedge_at_ns", "hedged", "items", "number", "only_if_held", "refused", "since_ns")

    def __init__(self, number: int, items: list[int], only_if_held: bool) -> None:
        self.number = number
        self.items = items
        self.only_if_held = only_if_held
        self.since_ns = 0
        """When it became the next to be answered."""
        self.began_ns = 0
        """When its answer began to arrive."""
        self.hedge_at_ns = 0
        self.hedged = False
        """Of what it is waited for, nothing more can be asked of others."""
        self.refused = False
        """A hedge was due, and none saved up."""


class _Lane:
    """What one node was asked for, and is to be asked for."""

    __slots__ = ("node", "probe_at_ns", "probed_ns", "under_way", "waiting")

    def __init__(self, node: view.Node) -> None:
        self.node = node
        self.under_way: deque[_Request] = deque()
        self.waiting: deque[_Request] = deque()
        self.probe_at_ns = 0
        self.probed_ns = 0
        """When it was asked whether it lives, and has not answered; 0: not."""


class Gather:
    """One read. `ways` by block, each an order of attempts; None among the places means the origin and is last.

    Times are of one clock, and positive.
    """

    def __init__(
        self,
        router: Router,
        sizes: Sequence[int],
        ways: Sequence[Sequence[Attempt]],
        *,
        part_bytes: int = limits.PART_BYTES,
        part_items: int = limits.PART_ITEMS,
    ) -> None:
        assert router.view is not None and len(sizes) == len(ways)
        self.actions: list[Action] = []
        self.left = len(sizes)
        """Blocks that are neither there nor left to the origin, nor failed for good."""
        self._router = router
        self._nodes = router.view.nodes
        self._sizes = sizes
        self._ways = [[way for way in of if way.place is not None] for of in ways]
        self._next = [0] * len(sizes)
        """Which way is the next to try."""
        self._running = [0] * len(sizes)
        """Requests under way or waiting that name the block, while it is not done."""
        self._done = [False] * len(sizes)
        self._lanes: dict[str, _Lane] = {}
        self._given_up: set[str] = set()
        """Nodes that this read asks nothing more."""
        self._part_bytes, self._part_items = part_bytes, part_items
        self._numbers = 0
        self._requests: dict[int, _Lane] = {}

    # Events

    def start(self, now_ns: int) -> None:
        self._send_on(range(len(self._sizes)), now_ns)

    def begun(self, request: int, now_ns: int) -> int | None:
        """The answer begins to arrive. How long its bytes may take, ns; None where there is nobody else to ask."""
        lane = self._requests[request]
        head = lane.under_way[0]
        assert head.number == request, "replies come in the order of requests"
        head.began_ns = now_ns
        lane.probed_ns = 0
        items = [item for item in head.items if not self._done[item]]
        if not all(self._has_way(item) for item in items):
            return None
        return self._router.slow_ns(lane.node, sum(self._sizes[item] for item in items))

    def unbegun(self, request: int) -> None:
        """The answer that began to arrive did not; the same request was sent anew."""
        self._requests[request].under_way[0].began_ns = 0

    def is_hot(self, key: bytes, holder_count: int, now_ns: int) -> None:
        """A node said that so many in a block's line of owners hold it."""
        self._router.is_hot(key, holder_count, now_ns)

    def answered(self, request: int, results: Sequence[int], now_ns: int, load: float | None = None) -> None:
        """All of an answer was received; `results` by item of its request."""
        lane = self._requests.pop(request)
        head = lane.under_way.popleft()
        began_ns = head.began_ns or now_ns
        size = sum(self._sizes[item] for item, result in zip(head.items, results, strict=True) if result == GOT)
        self._router.answered(lane.node, began_ns - head.since_ns, size, now_ns - began_ns, load, now_ns)
        onward: list[int] = []
        elsewhere = overtaken = False
        for item, result in zip(head.items, results, strict=True):
            self._running[item] -= 1
            if self._done[item]:
                overtaken = True
                continue
            if result in (GOT, FINAL):
                overtaken = overtaken or self._running[item] > 0
                self._finish(item)
            elif not self._running[item]:
                onward.append(item)
            else:
                elsewhere = True
        if elsewhere:
            self._hedge_anew(self._lanes.values(), now_ns)
        self._turn(lane, now_ns)
        self._send_on(onward, now_ns)
        if overtaken:  # looked at only then: with many nodes it costs more than the rest
            self._drop_idle(now_ns)

    def broke(self, node: view.Node, now_ns: int) -> None:
        """The connection to a node ended, or the node is given up: what it was asked for goes on elsewhere."""
        self._leave(node, now_ns, failed=True)

    def _leave(self, node: view.Node, now_ns: int, *, failed: bool) -> None:
        lane = self._lanes.pop(node.id, None)
        if lane is None:
            return
        self._given_up.add(node.id)
        # What was not sent yet is not to be sent any more.
        self.actions = [
            action for action in self.actions if not (isinstance(action, Ask) and action.node.id == node.id)
        ]
        onward: list[int] = []
        for number, request in enumerate((*lane.under_way, *lane.waiting)):
            if number < len(lane.under_way):
                del self._requests[request.number]
                self._router.failed(node, now_ns) if failed and not number else self._router.cancelled(node)
            for item in request.items:
                self._running[item] -= 1
                if not self._done[item] and not self._running[item]:
                    onward.append(item)
        self._hedge_anew(self._lanes.values(), now_ns)
        self._send_on(onward, now_ns)

    def alive(self, node: view.Node, now_ns: int) -> None:
        """It answered the probe: it waits for something itself."""
        lane = self._lanes.get(node.id)
        if lane is not None:
            lane.probed_ns = 0
            lane.probe_at_ns = now_ns + PROBE_EVERY_NS

    def tick(self, now_ns: int) -> None:
        """Time has passed."""
        for lane in list(self._lanes.values()):
            head = lane.under_way[0] if lane.under_way else None
            if head is None or head.began_ns:
                continue
            if not head.hedged and now_ns >= head.hedge_at_ns:
                self._hedge(lane, head, now_ns)
            if head.only_if_held and now_ns >= head.since_ns + HELD_NS + self._router.hedge_ns(lane.node):
                self._give_up(lane.node, now_ns)
            elif lane.probed_ns:
                if now_ns >= lane.probed_ns + PROBE_ANSWER_NS:
                    self._give_up(lane.node, now_ns)
            elif now_ns >= max(lane.probe_at_ns, head.since_ns + PROBE_NS):
                lane.probed_ns = now_ns
                self.actions.append(Probe(lane.node))

    def wake_ns(self) -> int | None:
        """When `tick` has something to do, if nothing happens before."""
        times: list[int] = []
        for lane in self._lanes.values():
            head = lane.under_way[0] if lane.under_way else None
            if head is None or head.began_ns:
                continue
            if not head.hedged:
                times.append(head.hedge_at_ns)
            if head.only_if_held:
                times.append(head.since_ns + HELD_NS + self._router.hedge_ns(lane.node))
            times.append(
                lane.probed_ns + PROBE_ANSWER_NS if lane.probed_ns else max(lane.probe_at_ns, head.since_ns + PROBE_NS)
            )
        return min(times, default=None)

    def end(self) -> None:
        """The caller stops waiting: nothing more is to be done."""
        for lane in self._lanes.values():
            for request in lane.under_way:
                self._router.cancelled(lane.node)
                del self._requests[request.number]
            if lane.under_way:
                self.actions.append(Drop(lane.node))
        self._lanes.clear()

    def is_wanted(self, item: int) -> bool:
        """Whether the block's bytes are still of use."""
        return not self._done[item]

    # Inside

    def _send_on(self, items: Iterable[int], now_ns: int) -> None:
        """Each along its next way; what has none left is for the origin."""
        groups: dict[tuple[int, bool], list[int]] = {}
        origin: list[int] = []
        for item in items:
            if not self._has_way(item):
                origin.append(item)
                self._finish(item)
                continue
            way = self._ways[item][self._next[item]]
            self._next[item] += 1
            assert way.place is not None
            groups.setdefault((way.place, way.only_if_held), []).append(item)
        for (place, only_if_held), group in groups.items():
            node = self._nodes[place]
            lane = self._lanes.setdefault(node.id, _Lane(node))
            for part in self._parts(group):
                self._numbers += 1
                lane.waiting.append(_Request(self._numbers, part, only_if_held))
                for item in part:
                    self._running[item] += 1
            self._hedge_anew([lane], now_ns)
            self._turn(lane, now_ns)
        if origin:
            self.actions.append(Origin(origin))

    def _has_way(self, item: int) -> bool:
        """Whether there is a node left to try for it, from `_next` on."""
        ways, number = self._ways[item], self._next[item]
        while number < len(ways) and self._nodes[ways[number].place or 0].id in self._given_up:
            number += 1
        self._next[item] = number
        return number < len(ways)

    def _parts(self, items: list[int]) -> list[list[int]]:
        parts: list[list[int]] = []
        size = 0
        for item in items:
            size += self._sizes[item]
            if not parts or size > self._part_bytes or len(parts[-1]) >= self._part_items:
                parts.append([])
                size = self._sizes[item]
            parts[-1].append(item)
        return parts

    def _turn(self, lane: _Lane, now_ns: int) -> None:
        """Send what may be sent; the first under way is the next to be answered from now on."""
        while lane.waiting and len(lane.under_way) < limits.PARTS_AHEAD:
            request = lane.waiting.popleft()
            request.items = [item for item in request.items if not self._done[item]]
            if not request.items:
                continue
            lane.under_way.append(request)
            self._requests[request.number] = lane
            self._router.began(lane.node, now_ns)
            self.actions.append(Ask(request.number, lane.node, request.items, request.only_if_held))
        if lane.under_way:
            head = lane.under_way[0]
            if not head.since_ns:
                head.since_ns = now_ns
                head.hedge_at_ns = now_ns + self._router.hedge_ns(lane.node)

    def _hedge(self, lane: _Lane, head: _Request, now_ns: int) -> None:
        """Ask the next nodes in line for what this one was asked for and has not begun to give."""
        able = [
            item
            for request in (*lane.under_way, *lane.waiting)
            for item in request.items
            if not self._done[item] and self._running[item] == 1 and self._has_way(item)
        ]
        if not able:
            head.hedged = True
        elif head.refused or self._router.may_hedge():
            head.hedged = True
            head.refused = False
            self._send_on(able, now_ns)
        else:
            head.refused = True
            head.hedge_at_ns = now_ns + HEDGE_AGAIN_NS

    def _hedge_anew(self, lanes: Iterable[_Lane], now_ns: int) -> None:
        """Blocks came to wait for these alone that were not when they were last hedged: let the time run once more."""
        for lane in lanes:
            head = lane.under_way[0] if lane.under_way else None
            if head is not None and head.hedged:
                head.hedged = False
                head.hedge_at_ns = now_ns + self._router.hedge_ns(lane.node)

    def _give_up(self, node: view.Node, now_ns: int, *, failed: bool = True) -> None:
        self.actions.append(Drop(node))
        self._leave(node, now_ns, failed=failed)

    def _finish(self, item: int) -> None:
        self._done[item] = True
        self.left -= 1

    def _drop_idle(self, now_ns: int) -> None:
        """Who was overtaken in everything it was asked for is not waited for. It counts as failed for now if it was
        late: who was asked as well, and came second, was not."""
        for lane in list(self._lanes.values()):
            requests = (*lane.under_way, *lane.waiting)
            if requests and all(self._done[item] for request in requests for item in request.items):
                head = lane.under_way[0] if lane.under_way else None
                if head is None or not head.began_ns:  # else its bytes are being received: the caller ends that first
                    self._give_up(lane.node, now_ns, failed=head is not None and head.hedged)
