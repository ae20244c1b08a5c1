"""The router: owners that answer, the order to try them in, patience, hedges, and views that come and go."""

import random

import pytest

from shoal_core import placement, router, view
from shoal_core.router import Router
from shoal_core.routing import FAILURES_TO_OPEN, Attempt, Distance, Here

T = 1_000_000_000
MS = 1_000_000
KEYS = [number.to_bytes(16, "little") for number in range(50)]


def node(name: str, zone: str = "z", status: view.NodeStatus = "ready") -> view.Node:
    return view.Node(name, (), 1 << 40, zone, "", status)


def of(epoch: int, *nodes: view.Node, replica_count: int = 1) -> view.View:
    return view.make(epoch, nodes or tuple(node(name) for name in "abcdef"), replica_count)


@pytest.fixture
def six() -> Router:
    made = Router(Here("", "z"), random.Random(1))
    assert made.adopt(of(1))
    return made


def fail(by: Router, place: int, now_ns: int = T, times: int = FAILURES_TO_OPEN) -> None:
    for _ in range(times):
        by.began(by.node(place), now_ns)
        by.failed(by.node(place), now_ns)


def first_answers(by: Router, place: int, first_ns: int, count: int = 8) -> None:
    for _ in range(count):
        by.began(by.node(place), T)
        by.answered(by.node(place), first_ns)


# Views


def test_only_a_later_view_is_adopted():
    made = Router(Here(), random.Random(1))
    assert made.epoch == 0 and made.view is None and made.before is None
    assert made.adopt(of(2)) and made.epoch == 2
    assert not made.adopt(of(2, node("x"))) and not made.adopt(of(1))
    assert made.view == of(2) and made.before is None
    assert made.adopt(of(3, node("x")))
    assert made.before is not None and made.before.view == of(2)
    assert made.placement.view == of(3, node("x"))


def test_what_is_known_of_a_node_outlives_views_that_name_it(six: Router):
    fail(six, 0)
    fail(six, 1)
    six.adopt(of(2, node("a"), node("c")))
    assert six.is_down(six.node(0), T)
    assert "b" not in six.peers


def test_a_node_that_left_with_requests_under_way_ends_them_first(six: Router):
    left = six.node(1)
    six.began(left, T)
    six.began(left, T)
    six.adopt(of(2, node("a")))
    six.answered(left, MS)
    six.failed(left, T)
    assert six.peers["b"].in_flight == 0
    six.adopt(of(3, node("a")))
    assert "b" not in six.peers


def test_a_view_too_large_to_place_changes_nothing(six: Router):
    large = view.View(2, tuple(node(f"n{number:05}") for number in range(0xFFFE)))
    with pytest.raises(ValueError, match="65534 nodes"):
        six.adopt(large)
    assert six.epoch == 1 and six.placement.view == of(1) and six.before is None


# Owners


def test_owners_are_those_of_the_placement(six: Router):
    plain = placement.Placement(of(1), 8)
    for key in KEYS:
        assert six.owners(key, 3, T) == list(plain.owners_of(key)[:3])
        assert six.owners(key, None, T) == list(plain.owners_of(key)[:1])
    six.adopt(of(2, replica_count=2))
    assert six.replicas(None) == 2 and six.replicas(4) == 4
    assert len(six.owners(KEYS[0], None, T)) == 2


def test_who_does_not_answer_is_stood_in_for_by_the_next_in_line(six: Router):
    for key in KEYS:
        line = list(six.placement.owners_of(key))
        fail(six, line[1])
        assert six.owners(key, 2, T) == [line[0], line[2]]
        six.peers.clear()
        for place in line[:3]:
            fail(six, place)
        assert six.owners(key, 1, T) == []  # more than STAND_INS are down: the origin is next
        assert six.owners(key, 1, T + 60 * T) == line[:1]
        six.peers.clear()


def test_a_node_that_is_gone_is_down_and_owns_nothing():
    made = Router(Here(), random.Random(1))
    made.adopt(of(1, node("a"), node("b", status="gone"), node("c", status="draining")))
    assert [made.is_down(made.node(place), T) for place in range(3)] == [False, True, False]
    assert all(made.owners(key, 3, T) == [0] for key in KEYS)


# The order


def test_nearer_owners_come_first_and_the_origin_last():
    made = Router(Here("", "z1"), random.Random(1))
    made.adopt(of(1, *(node(name, zone) for name, zone in zip("abcd", ("z1", "z2", "z3", "z2"), strict=True))))
    for key in KEYS:
        tried = made.candidates(key, 3, T)
        assert tried[0] == Attempt(0, Distance.ZONE)
        assert [attempt.distance for attempt in tried[1:]] == [Distance.FAR, Distance.FAR, Distance.ORIGIN]
        assert {attempt.place for attempt in tried[:-1]} == set(made.owners(key, 3, T))
    assert made.order([3, 0], T) == [Attempt(0, Distance.ZONE), Attempt(3, Distance.FAR)]
    assert made.order([], T) == []


def test_load_moves_reads_to_other_owners(six: Router):
    place = six.candidates(KEYS[0], 2, T)[0].place
    assert place is not None
    six.began(six.node(place), T)
    six.answered(six.node(place), MS, load=0.9)
    assert six.candidates(KEYS[0], 2, T)[1].place == place


def test_hot_blocks_have_more_holders_for_a_while(six: Router):
    key = KEYS[0]
    six.is_hot(key, 3, T)
    assert len(six.candidates(key, 1, T)) == 3 + 1
    assert len(six.candidates(key, 4, T)) == 4 + 1
    assert len(six.candidates(KEYS[1], 1, T)) == 1 + 1
    assert len(six.candidates(key, 1, T + router.HOT_NS)) == 1 + 1
    six.is_hot(key, 1000, T)
    assert len(six.candidates(key, 1, T)) == 6 + 1


def test_the_ways_of_many_keys_are_those_of_each_and_keys_in_one_line_share_theirs(six: Router):
    keys = [number.to_bytes(16, "little") for number in range(300)]
    fail(six, 2)
    six.is_hot(keys[7], 4, T)
    wanted = [(key, (None, 1, 3)[number % 3]) for number, key in enumerate(keys)]
    found = six.ways(wanted, T)
    assert found == [six.candidates(key, replica_count, T) for key, replica_count in wanted]
    assert len({id(order) for order in found}) < len(found)
    assert six.ways([], T) == []


def test_only_so_many_hot_blocks_are_remembered(six: Router, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(router, "HOT_KEYS_MAX", 2)
    for key in (KEYS[0], KEYS[1], KEYS[0], KEYS[2]):
        six.is_hot(key, 3, T)
    assert [len(six.candidates(key, 1, T)) for key in KEYS[:3]] == [4, 2, 4]


# What happens to requests


def test_every_request_is_counted_while_it_is_in_flight(six: Router):
    for _ in range(3):
        six.began(six.node(0), T)
    assert six.peer("a").in_flight == 3
    six.answered(six.node(0), MS)
    six.failed(six.node(0), T)
    six.cancelled(six.node(0))
    assert six.peer("a").in_flight == 0 and six.peer("a").failure_count == 1


# Patience


def test_patience_is_the_95th_percentile_of_that_distance_within_bounds(six: Router):
    assert six.hedge_ns(six.node(0)) == router.HEDGE_NS_FIRST
    first_answers(six, 0, 30 * MS)
    assert six.hedge_ns(six.node(5)) == 30 * MS  # as far away as the one that answered
    assert six.hedge_ns(node("elsewhere", "far")) == router.HEDGE_NS_FIRST
    first_answers(six, 0, MS // 10, count=128)
    assert six.hedge_ns(six.node(0)) == router.HEDGE_NS_MIN
    first_answers(six, 0, 5 * T, count=128)
    assert six.hedge_ns(six.node(0)) == router.HEDGE_NS_MAX


def test_bytes_may_take_a_multiple_of_what_they_usually_take(six: Router):
    assert six.slow_ns(six.node(0), 1 << 30) == router.SLOW_NS_MIN
    for _ in range(8):
        six.began(six.node(0), T)
        six.answered(six.node(0), MS, size=1 << 20, transfer_ns=1 << 20)
    assert six.slow_ns(six.node(0), 1 << 30) == router.SLOW_FACTOR << 30
    assert six.slow_ns(six.node(0), 1) == router.SLOW_NS_MIN


def test_hedges_are_saved_up_by_requests_and_not_without_end(six: Router):
    def available() -> int:
        return sum(six.may_hedge() for _ in range(1000))

    assert available() == router.HEDGES_MAX == six.hedges
    assert not six.may_hedge()
    for _ in range(35):
        six.began(six.node(0), T)
    assert available() == 3
    assert six.hedges == router.HEDGES_MAX + 3
    for _ in range(1000):
        six.began(six.node(0), T)
    assert available() == router.HEDGES_MAX


# Slow nodes


def transfers(by: Router, place: int, transfer_ns: int, count: int = 8, now_ns: int = T) -> None:
    for _ in range(count):
        by.began(by.node(place), now_ns)
        by.answered(by.node(place), MS, 1 << 20, transfer_ns, now_ns=now_ns)


def first_choice(by: Router, now_ns: int) -> list[int | None]:
    return [by.candidates(key, 2, now_ns)[0].place for key in KEYS]


def test_a_node_whose_bytes_take_long_comes_after_the_others_for_a_while(six: Router):
    transfers(six, 1, MS)
    transfers(six, 0, 20 * MS, 1)
    assert 0 not in first_choice(six, T + MS), "twenty times as long as the other"
    assert 0 in [way.place for key in KEYS for way in six.candidates(key, 2, T + MS)], "it is not left out"
    assert 0 in first_choice(six, T + router.routing.SLOW_PAUSE_NS_FIRST), "and then it is tried again"


def test_a_nearer_node_that_is_slow_comes_after_a_farther_one(six: Router):
    six.adopt(of(2, node("a", "z"), node("b", "far"), replica_count=2))
    transfers(six, 1, MS)
    assert set(first_choice(six, T + MS)) == {0}
    transfers(six, 0, 20 * MS, 1)
    assert set(first_choice(six, T + MS)) == {1}
    transfers(six, 0, MS, 1)
    assert set(first_choice(six, T + MS)) == {0}, "one answer at the usual speed, and it is as good as before"


def test_a_node_that_stays_slow_is_tried_ever_less(six: Router):
    transfers(six, 1, MS)
    pauses = []
    for _ in range(8):
        transfers(six, 1, MS, 4)
        transfers(six, 0, 20 * MS, 1)
        pauses.append(six.peer("a").slow_pause_ns)
    assert pauses == sorted(pauses) and pauses[-1] == router.routing.PAUSE_NS_MAX


def test_nobody_is_slow_where_all_are(six: Router):
    for place in range(6):
        transfers(six, place, 500 * MS)
    assert set(first_choice(six, T + MS)) == set(range(6))


def test_small_answers_and_short_times_tell_nothing(six: Router):
    transfers(six, 1, MS // 100)
    transfers(six, 0, 9 * MS, 1)
    six.began(six.node(0), T)
    six.answered(six.node(0), MS, 1000, 500 * MS, now_ns=T)
    assert 0 in first_choice(six, T + MS)
