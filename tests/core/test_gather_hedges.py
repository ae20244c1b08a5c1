"""A gather whose nodes let wait: who is asked as well, who wins, and what becomes of the other."""

import pytest

from shoal_core import limits
from shoal_core.gather import (
    ABSENT,
    GOT,
    HEDGE_AGAIN_NS,
    PROBE_NS,
    Ask,
    Drop,
    Probe,
)
from shoal_core.router import HEDGE_NS_FIRST, HEDGES_MAX
from tests.support.one_read import MS, A, B, C, Read, T, ways

HEDGE_NS = HEDGE_NS_FIRST


def test_after_the_usual_time_the_next_is_asked_too_and_wins():
    read = Read(ways(A, B), ways(A, B), ways(A), part_items=2)
    read.start()
    assert read.gather.wake_ns() == T + HEDGE_NS
    assert read.tick(T + HEDGE_NS - 1) == []
    assert read.tick(T + HEDGE_NS) == [Ask(3, read.b, [0, 1], False)]
    assert read.router.hedges == 1
    assert read.tick(T + HEDGE_NS + MS) == []
    assert read.answer(3, GOT, GOT) == []  # a is waited for still: it alone has the third
    assert read.answer(1, ABSENT, ABSENT) == []
    assert read.answer(2, GOT) == []
    assert read.gather.left == 0
    assert read.in_flight() == [0, 0, 0]


def test_the_first_node_may_still_win():
    read = Read(ways(A, B))
    read.start()
    read.tick(T + HEDGE_NS)
    assert read.answer(1, GOT, now_ns=T + HEDGE_NS + MS) == [Drop(read.b)]
    assert read.gather.left == 0
    assert read.in_flight() == [0, 0, 0]


def test_who_was_overtaken_in_everything_is_not_waited_for():
    read = Read(*[ways(A, B)] * 6, part_items=1)
    read.start()
    assert [ask.items for ask in read.tick(T + HEDGE_NS) if isinstance(ask, Ask)] == [[0], [1], [2], [3]]
    for request in range(7, 12):
        assert all(isinstance(action, Ask) for action in read.answer(request, GOT))
    assert read.answer(12, GOT) == [Drop(read.a)]
    assert read.failures() == [1, 0, 0]
    assert read.in_flight() == [0, 0, 0]


def test_who_is_being_received_from_is_not_dropped():
    read = Read(ways(A, B))
    read.start()
    read.tick(T + HEDGE_NS)
    read.gather.begun(1, T + HEDGE_NS + MS)
    assert read.answer(2, GOT) == []
    read.gather.answered(1, [GOT], T + HEDGE_NS + 2 * MS)
    assert read.done() == [] and read.gather.left == 0


def test_a_block_that_is_there_is_not_asked_for_when_its_turn_comes():
    read = Read(*[ways(A, B)] * 5, ways(A), part_items=1)
    read.start()
    read.tick(T + HEDGE_NS)
    for request in range(7, 12):
        read.answer(request, GOT)  # the fifth of them waits behind four others at a
    assert read.answer(1, GOT) == [Ask(6, read.a, [5], False)]
    assert read.in_flight()[A] == limits.PARTS_AHEAD


def test_a_part_that_is_partly_there_is_asked_for_without_that():
    read = Read(*[ways(A)] * 8, ways(A, B), ways(A), part_items=2)
    read.start()
    read.tick(T + HEDGE_NS)
    read.answer(6, GOT)
    assert read.answer(1, GOT, GOT) == [Ask(5, read.a, [9], False)]
    for request in (2, 3, 4):
        read.answer(request, GOT, GOT)
    assert read.answer(5, GOT) == [] and read.gather.left == 0


def test_without_a_hedge_saved_up_one_is_made_after_a_while():
    read = Read(ways(A, B, C), hedges=False)
    hedges = read.router.hedges
    read.start()
    assert read.tick(T + HEDGE_NS) == []
    assert read.gather.wake_ns() == T + PROBE_NS
    assert read.tick(T + PROBE_NS) == [Probe(read.a)]
    assert read.gather.wake_ns() == T + HEDGE_NS + HEDGE_AGAIN_NS
    assert read.tick(T + HEDGE_NS + HEDGE_AGAIN_NS) == [Ask(2, read.b, [0], False)]
    assert read.router.hedges == hedges
    at = T + HEDGE_NS + HEDGE_AGAIN_NS + MS
    read.gather.alive(read.a, at)
    assert read.answer(2, ABSENT, now_ns=at) == []
    assert read.tick(at + HEDGE_NS) == []  # nor is there one now
    assert read.tick(at + HEDGE_NS + HEDGE_AGAIN_NS) == [Ask(3, read.c, [0], False)]


def test_where_nobody_else_is_left_no_hedge_is_used_up():
    read = Read(ways(A))
    read.start()
    assert read.tick(T + HEDGE_NS) == []
    assert sum(read.router.may_hedge() for _ in range(100)) == int(HEDGES_MAX)


def test_the_origin_is_no_hedge():
    read = Read(ways(A, B), ways(B, A), part_items=1)
    read.start()
    read.gather.broke(read.b, T + MS)  # so b is no way any more
    assert read.done() == [Ask(3, read.a, [1], False)]
    assert read.tick(T + HEDGE_NS) == []
    assert read.gather.left == 2


@pytest.mark.parametrize("breaks", [False, True])
def test_when_the_second_has_not_got_it_or_breaks_the_third_is_asked(breaks: bool):
    read = Read(ways(A, B, C))
    read.start()
    read.tick(T + HEDGE_NS)
    at = T + HEDGE_NS + MS
    read.gather.broke(read.b, at) if breaks else read.answer(2, ABSENT, now_ns=at)
    assert read.done() == []
    assert read.gather.wake_ns() == at + HEDGE_NS
    assert read.tick(at + HEDGE_NS) == [Ask(3, read.c, [0], False)]


def test_a_block_is_asked_of_two_at_once_and_not_of_more():
    read = Read(ways(A, B), ways(A, B, C), part_items=1)
    read.start()
    assert read.tick(T + HEDGE_NS) == [Ask(3, read.b, [0], False), Ask(4, read.b, [1], False)]
    at = T + HEDGE_NS + MS
    assert read.answer(3, ABSENT, now_ns=at) == []
    assert read.tick(at + HEDGE_NS) == []


def test_what_is_there_is_not_asked_for_again():
    read = Read(ways(A, B, C), ways(A, B))
    read.start()
    read.tick(T + HEDGE_NS)
    at = T + HEDGE_NS + MS
    assert read.answer(2, GOT, ABSENT, now_ns=at) == []
    assert read.tick(at + HEDGE_NS) == []
    assert read.router.hedges == 1


def test_what_is_sent_on_to_a_node_that_lets_wait_already_is_asked_of_others_too():
    read = Read(ways(A), ways(B), ways(B, A, C), part_items=1)
    read.start()
    read.answer(2, GOT, now_ns=T + HEDGE_NS - MS)
    assert read.tick(T + HEDGE_NS) == []  # nobody else has the first
    at = T + HEDGE_NS + MS
    assert read.answer(3, ABSENT, now_ns=at) == [Ask(4, read.a, [2], False)]
    assert read.tick(at + HEDGE_NS) == [Ask(5, read.c, [2], False)]


def test_what_comes_to_a_node_that_lets_wait_already_is_asked_of_others_too():
    read = Read(ways(A), ways(B, A, C))
    read.start()
    assert read.tick(T + HEDGE_NS) == [Ask(3, read.a, [1], False)]  # b lets wait as well, and a is next
    at = T + HEDGE_NS + MS
    read.gather.broke(read.b, at)
    assert read.done() == []
    assert read.tick(at + HEDGE_NS) == [Ask(4, read.c, [1], False)]
