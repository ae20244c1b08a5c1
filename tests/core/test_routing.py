"""Routing: near before far, idle before busy, the origin last, and a circuit breaker that lets probes through."""

import random

from hypothesis import given
from hypothesis import strategies as st

from shoal_core import routing, view
from shoal_core.routing import Distance, Here, Peer

SECOND_NS = 1_000_000_000


def node(name: str, zone: str = "", rack: str = "", status: view.NodeStatus = "ready") -> view.Node:
    return view.Node(id=name, addresses=(), capacity_bytes=1, zone=zone, rack=rack, status=status)


OF = view.make(
    1,
    [node("a", "z1", "r1"), node("b", "z1", "r1"), node("c", "z1", "r2"), node("d", "z2", "r1"), node("e", "z1", "r1")],
)
A, B, C, D, E = range(5)


def failing(times: int, now_ns: int = SECOND_NS, seed: int = 1) -> Peer:
    peer, chance = Peer(), random.Random(seed)
    for _ in range(times):
        peer.begin(now_ns)
        peer.failed(now_ns, chance)
    return peer


def order(
    here: Here, holders: list[int], peers: dict[str, Peer] | None = None, now_ns: int = SECOND_NS
) -> list[int | None]:
    return [attempt.place for attempt in routing.attempts(here, OF, holders, peers or {}, now_ns)]


# Distance


def test_distances_from_near_to_far():
    here = Here("a", "z1", "r1")
    found = [routing.distance(here, other) for other in OF.nodes]
    assert found == [Distance.NODE, Distance.RACK, Distance.ZONE, Distance.FAR, Distance.RACK]
    assert routing.distance(Here("a", in_process=True), OF.nodes[A]) == Distance.PROCESS
    assert sorted(Distance) == [
        Distance.PROCESS, Distance.NODE, Distance.RACK, Distance.ZONE, Distance.FAR, Distance.ORIGIN
    ]  # fmt: skip


def test_what_is_unknown_is_not_near():
    assert routing.distance(Here(), node("")) == Distance.FAR
    assert routing.distance(Here("x"), node("y")) == Distance.FAR
    assert routing.distance(Here("x", "z1"), node("y", "z1")) == Distance.ZONE
    assert routing.distance(Here("x", "", "r1"), node("y", "", "r1")) == Distance.FAR


# Order


def test_nearest_first_and_the_origin_last():
    assert order(Here("a", "z1", "r1"), [D, C, B, A]) == [A, B, C, D, None]
    assert routing.attempts(Here(), OF, [], {}, 0) == [routing.Attempt(None, Distance.ORIGIN)]


def test_equals_keep_the_order_of_placement_and_nobody_is_asked_twice():
    assert order(Here("", "z1", "r1"), [E, A, B, E]) == [E, A, B, None]


def test_at_equal_distance_the_less_busy_comes_first():
    here = Here("", "z1", "r1")
    assert order(here, [A, B], {"a": Peer(load=0.9), "b": Peer(load=0.2)}) == [B, A, None]
    assert order(here, [A, B, E], {"a": Peer(in_flight=3), "b": Peer(in_flight=1)}) == [E, B, A, None]
    assert order(here, [C, A], {"a": Peer(load=1.0, in_flight=50)}) == [A, C, None]


def test_a_recent_failure_weighs_more_than_load_and_is_forgotten():
    here = Here("", "z1", "r1")
    peers = {"a": failing(1), "b": Peer(load=0.9)}
    assert order(here, [A, B], peers) == [B, A, None]
    assert order(here, [A, B], peers, SECOND_NS + routing.FAILURE_MEMORY_NS + 1) == [A, B, None]


def test_a_node_that_is_gone_is_not_asked_and_a_draining_one_is():
    of = view.make(1, [node("a", status="gone"), node("b", status="draining")])
    assert [attempt.place for attempt in routing.attempts(Here(), of, [0, 1], {}, 0)] == [1, None]


# Circuit breaker


def test_three_failures_in_a_row_open_the_circuit():
    assert not failing(2).is_open(SECOND_NS)
    peer = failing(3)
    assert peer.is_open(SECOND_NS)
    assert order(Here(), [A, B], {"a": peer}) == [B, None]
    assert order(Here(), [A], {"a": peer}) == [None]


def test_a_success_in_between_starts_the_count_anew():
    peer = failing(2)
    peer.begin(SECOND_NS)
    peer.succeeded(load=0.5)
    assert peer.load == 0.5
    peer.begin(SECOND_NS)
    peer.failed(SECOND_NS, random.Random(1))
    assert not peer.is_open(SECOND_NS)
    assert peer.in_flight == 0


def test_what_a_node_said_of_its_load_does_not_count_for_long():
    busy = Peer()
    busy.begin(SECOND_NS)
    busy.succeeded(load=0.5, now_ns=SECOND_NS)
    peers = {"a": busy}
    assert order(Here(), [A, B], peers, SECOND_NS + routing.LOAD_MEMORY_NS) == [B, A, None]
    assert order(Here(), [A, B], peers, SECOND_NS + routing.LOAD_MEMORY_NS + 1) == [A, B, None]


def test_old_failures_do_not_count():
    peer, later = failing(2), SECOND_NS + routing.FAILURE_MEMORY_NS + 1
    peer.begin(later)
    peer.failed(later, random.Random(1))
    assert peer.failure_count == 1
    assert not peer.is_open(later)


def test_after_the_pause_one_probe_may_go_and_its_success_closes_the_circuit():
    peer = failing(3)
    later = SECOND_NS + routing.PAUSE_NS_FIRST
    assert not peer.is_open(later)
    peer.begin(later)
    assert peer.is_open(later)
    peer.succeeded()
    assert not peer.is_open(later)
    assert peer.cost(later) == Peer().cost(later)


def test_a_probe_that_is_never_heard_of_again_blocks_nothing_for_ever():
    peer = failing(3)
    later = SECOND_NS + routing.PAUSE_NS_FIRST
    peer.begin(later)
    peer.cancelled()
    assert peer.is_open(later + 1)
    assert not peer.is_open(later + routing.PAUSE_NS_FIRST)


@given(seed=st.integers(0, 2**32), times=st.integers(3, 40))
def test_pauses_double_up_to_a_bound_and_are_jittered(seed: int, times: int):
    peer = failing(times, seed=seed)
    pause = min(routing.PAUSE_NS_FIRST * 2 ** (times - 3), routing.PAUSE_NS_MAX)
    assert peer.pause_ns == pause
    assert pause / 2 <= peer.retry_at_ns - SECOND_NS <= pause


def test_readers_do_not_come_back_all_at_once():
    assert len({failing(3, seed=seed).retry_at_ns for seed in range(50)}) == 50


@given(
    holders=st.lists(st.integers(0, 4)),
    loads=st.lists(st.floats(0, 1), min_size=5, max_size=5),
    failures=st.lists(st.integers(0, 4), min_size=5, max_size=5),
)
def test_any_order_ends_at_the_origin_and_never_goes_back(holders: list[int], loads: list[float], failures: list[int]):
    peers = {}
    for place, (load, times) in enumerate(zip(loads, failures, strict=True)):
        peers[OF.nodes[place].id] = failing(times)
        peers[OF.nodes[place].id].load = load
    tried = routing.attempts(Here("a", "z1", "r1"), OF, holders, peers, SECOND_NS)
    assert tried[-1].place is None
    assert [attempt.distance for attempt in tried] == sorted(attempt.distance for attempt in tried)
    assert {attempt.place for attempt in tried[:-1]} == {place for place in holders if failures[place] < 3}
