"""A gather in random little worlds: whatever nodes do, each block ends once, in bounded time, and nothing is left over.

A world plays the driver: it performs the actions, keeps a clock and a queue of what is to happen, and checks at every
step what must hold at every step.
"""

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_core import limits, view
from shoal_core.gather import (
    ABSENT,
    BAD,
    FINAL,
    GOT,
    PROBE_ANSWER_NS,
    PROBE_NS,
    Ask,
    Drop,
    Gather,
    Origin,
    Probe,
)
from shoal_core.router import Router
from shoal_core.routing import Attempt, Distance, Here

MS = 1_000_000
START_NS = 1_000 * MS
PART_BYTES = 100
PART_ITEMS = 3
STEPS_MAX = 20_000
"""Far more than any of these worlds has events: one that goes round and round does not end."""

STUCK_NS = 20_000 * MS
"""A node that is stuck breaks in the end: its reader's deadline stands in for that elsewhere."""


class Habit(NamedTuple):
    """How a node behaves."""

    delays_ms: tuple[int, ...]
    """To the first byte of an answer; () for ever."""
    transfers_ms: tuple[int, ...] = (0, 1)
    results: tuple[int, ...] = (GOT,)
    probes_ms: tuple[int, ...] = ()
    """Answers to the question whether it lives; () none."""
    breaks_after: int | None = None
    """So many requests were asked of it."""
    falters: float = 0.0
    """How often an answer that began has to be asked for anew."""


HABITS = {
    "good": Habit((0, 1, 2), probes_ms=(1,)),
    "empty": Habit((0, 1), results=(ABSENT,), probes_ms=(1,)),
    "half": Habit((0, 5, 90), results=(GOT, ABSENT, BAD, FINAL), probes_ms=(1, 400)),
    "silent": Habit(()),
    "stuck": Habit((), probes_ms=(1,)),
    "slow": Habit((150, 600, 2_500), (0, 300, 900), (GOT, ABSENT), probes_ms=(2, 499, 500, 700)),
    "breaks at once": Habit((5,), breaks_after=0),
    "breaks later": Habit((0, 5, 120), results=(GOT, ABSENT), breaks_after=3),
    "falters": Habit((0, 200), (1,), (GOT, ABSENT), (1,), falters=0.4),
    "trickles": Habit((1,), (1, 5_000), probes_ms=(1,)),
}


class World:
    def __init__(self, habits: list[Habit], sizes: list[int], ways: list[list[Attempt]], chance: random.Random) -> None:
        self.chance = chance
        self.habits = {f"n{number}": habit for number, habit in enumerate(habits)}
        self.router = Router(Here(), self.chance)
        assert self.router.adopt(view.make(1, [view.Node(node_id, (), 1) for node_id in self.habits]))
        self.now_ns = START_NS
        self.gather = Gather(self.router, sizes, ways, part_bytes=PART_BYTES, part_items=PART_ITEMS)
        self.sizes, self.ways = sizes, ways
        self.ended: Counter[int] = Counter()
        self.ended_ns: dict[int, int] = {}
        self.asked: set[tuple[int, str, bool]] = set()
        self.asked_count: Counter[str] = Counter()
        self.posted: dict[str, deque[Ask]] = {node_id: deque() for node_id in self.habits}
        self.gone: set[str] = set()
        self._events: list[tuple[int, int, str, Callable[[], None]]] = []
        self._order = itertools.count()

    def run(self) -> None:
        self.gather.start(self.now_ns)
        self._perform()
        for _ in range(STEPS_MAX):
            if not self.gather.left:
                return
            self._step()
        raise AssertionError("it does not end")

    def _step(self) -> None:
        gather = self.gather
        wake_ns = gather.wake_ns()
        times = [self._events[0][0]] if self._events else []
        assert times or wake_ns is not None, "nothing will ever happen"
        self.now_ns = max(self.now_ns, min([*times, *([] if wake_ns is None else [wake_ns])]))
        while self._events and self._events[0][0] <= self.now_ns:
            _, _, node_id, happens = heapq.heappop(self._events)
            if node_id not in self.gone:
                happens()
                self._perform()
        gather.tick(self.now_ns)
        wake_ns = gather.wake_ns()
        assert wake_ns is None or wake_ns > self.now_ns, "it would be woken for nothing"
        self._perform()

    def _perform(self) -> None:
        actions, self.gather.actions = self.gather.actions, []
        for action in actions:
            match action:
                case Ask():
                    self._ask(action)
                case Probe(node):
                    self._probe(node)
                case Drop(node):
                    self.gone.add(node.id)
                    self.posted[node.id].clear()
                case Origin(items):
                    self._origin(items)
        for node_id, posted in self.posted.items():
            assert self.router.peer(node_id).in_flight == len(posted)

    def _at(self, after_ms: int, node_id: str, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_ns + after_ms * MS, next(self._order), node_id, happens))

    def _ask(self, ask: Ask) -> None:
        node_id, habit = ask.node.id, self.habits[ask.node.id]
        assert node_id not in self.gone
        assert 0 < len(ask.items) <= PART_ITEMS
        assert len(ask.items) == 1 or sum(self.sizes[item] for item in ask.items) <= PART_BYTES
        for item in ask.items:
            assert self.gather.is_wanted(item)
            assert (item, node_id, ask.only_if_held) not in self.asked
            self.asked.add((item, node_id, ask.only_if_held))
        self.asked_count[node_id] += 1
        posted = self.posted[node_id]
        posted.append(ask)
        assert len(posted) <= limits.PARTS_AHEAD
        if self.asked_count[node_id] == 1 and not habit.delays_ms and habit.probes_ms:
            self._at(STUCK_NS // MS, node_id, lambda: self._break(ask.node))
        if habit.breaks_after is not None and self.asked_count[node_id] > habit.breaks_after:
            self._at(self.chance.choice((0, 1, 50)), node_id, lambda: self._break(ask.node))
        elif len(posted) == 1:
            self._answer_next(ask.node)

    def _answer_next(self, node: view.Node) -> None:
        habit = self.habits[node.id]
        if habit.delays_ms and self.posted[node.id]:
            self._at(self.chance.choice(habit.delays_ms), node.id, lambda: self._begin(node))

    def _begin(self, node: view.Node) -> None:
        ask, habit = self.posted[node.id][0], self.habits[node.id]
        allowed_ns = self.gather.begun(ask.request, self.now_ns)
        transfer_ms = self.chance.choice(habit.transfers_ms)
        if self.chance.random() < habit.falters:
            self.gather.unbegun(ask.request)
            self._answer_next(node)
        elif allowed_ns is not None and transfer_ms * MS > allowed_ns:
            self._at(allowed_ns // MS, node.id, lambda: self._break(node))
        else:
            self._at(transfer_ms, node.id, lambda: self._finish(node))

    def _finish(self, node: view.Node) -> None:
        ask = self.posted[node.id].popleft()
        results = [self.chance.choice(self.habits[node.id].results) for _ in ask.items]
        for item, result in zip(ask.items, results, strict=True):
            if result in (GOT, FINAL) and self.gather.is_wanted(item):
                self._end(item)
        self._answer_next(node)
        self.gather.answered(ask.request, results, self.now_ns, self.chance.random())

    def _end(self, item: int) -> None:
        self.ended[item] += 1
        self.ended_ns[item] = self.now_ns

    def _break(self, node: view.Node) -> None:
        self.gone.add(node.id)
        self.posted[node.id].clear()
        self.gather.broke(node, self.now_ns)

    def _probe(self, node: view.Node) -> None:
        assert node.id not in self.gone
        habit = self.habits[node.id]
        if habit.probes_ms:
            self._at(self.chance.choice(habit.probes_ms), node.id, lambda: self.gather.alive(node, self.now_ns))

    def _origin(self, items: list[int]) -> None:
        for item in items:
            self._end(item)
            for way in self.ways[item]:
                if way.place is not None:
                    node_id = f"n{way.place}"
                    assert node_id in self.gone or (item, node_id, way.only_if_held) in self.asked, "a way was left out"
            assert all(item not in ask.items for posted in self.posted.values() for ask in posted), (
                "it is still awaited"
            )


def check_the_end(world: World) -> None:
    assert world.ended == Counter(range(len(world.sizes))), "each block ends once"
    world.gather.end()
    dropped = {action.node.id for action in world.gather.actions if isinstance(action, Drop)}
    assert {type(action) for action in world.gather.actions} <= {Drop}
    assert dropped == {node_id for node_id, posted in world.posted.items() if posted}
    assert {peer.in_flight for peer in world.router.peers.values()} <= {0}
    assert world.gather.wake_ns() is None


@st.composite
def worlds(draw: st.DrawFn, names: tuple[str, ...] = tuple(HABITS)) -> World:
    habits = draw(st.lists(st.sampled_from(names), min_size=1, max_size=5))
    block_count = draw(st.integers(0, 40))
    chance = random.Random(draw(st.integers(0, 2**32)))
    sizes = [chance.choice((1, 30, 60, 100, 150)) for _ in range(block_count)]
    ways: list[list[Attempt]] = []
    for _ in sizes:
        line = chance.sample(range(len(habits)), chance.randrange(len(habits) + 1))
        attempts = [Attempt(place, Distance.FAR) for place in line]
        if line and chance.random() < 0.5:  # whoever has it is asked before anybody is asked to bring it
            attempts.insert(0, Attempt(line[-1], Distance.FAR, True))
        ways.append([*attempts, Attempt(None, Distance.ORIGIN)][: chance.choice((None, -1))])
    return World([HABITS[name] for name in habits], sizes, ways, chance)


@settings(max_examples=500)
@given(world=worlds())
def test_every_block_ends_once_and_nothing_is_left_over(world: World):
    world.run()
    check_the_end(world)


@given(world=worlds(("silent",)))
def test_where_every_node_is_silent_the_origin_is_reached_in_bounded_time(world: World):
    world.run()
    check_the_end(world)
    assert world.now_ns - START_NS <= len(world.habits) * (PROBE_NS + PROBE_ANSWER_NS)


@given(world=worlds(("good", "empty")))
def test_where_every_node_answers_nobody_is_given_up(world: World):
    world.run()
    check_the_end(world)
    assert world.gone == set()
    for item, ways in enumerate(world.ways):
        has_it = any(world.habits[f"n{way.place}"] is HABITS["good"] for way in ways if way.place is not None)
        assert any(asked[0] == item and world.habits[asked[1]] is HABITS["good"] for asked in world.asked) == has_it


@given(world=worlds(("stuck", "good", "empty", "breaks later")))
def test_no_block_waits_for_a_stuck_node_that_another_would_give(world: World):
    world.run()
    for item, ways in enumerate(world.ways):
        met = Counter(world.habits[f"n{place}"] for place in {way.place for way in ways} - {None})
        if met[HABITS["good"]] and met[HABITS["stuck"]] <= 1:  # a block is asked of two at once, not of more
            assert world.ended_ns[item] - START_NS < STUCK_NS / 2


@given(world=worlds(), steps=st.integers(0, 30))
def test_a_caller_that_stops_waiting_leaves_nothing_in_flight(world: World, steps: int):
    world.gather.start(world.now_ns)
    world._perform()
    for _ in range(steps):
        if world.gather.left:
            world._step()
    world.gather.end()
    world._perform()
    assert {peer.in_flight for peer in world.router.peers.values()} <= {0}
    assert not any(world.posted.values())
    assert world.gather.wake_ns() is None
