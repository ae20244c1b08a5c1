"""A gather step by step: who is asked for what, in which order, and what follows from what happens."""

import pytest

from shoal_core import limits
from shoal_core.gather import (
    ABSENT,
    BAD,
    FINAL,
    GOT,
    HELD_NS,
    PROBE_ANSWER_NS,
    PROBE_EVERY_NS,
    PROBE_NS,
    Ask,
    Drop,
    Origin,
    Probe,
)
from shoal_core.router import HEDGE_NS_FIRST, SLOW_NS_MIN
from tests.support.one_read import MS, A, B, C, Read, T, ways

HEDGE_NS = HEDGE_NS_FIRST


# Asking


def test_blocks_whose_next_way_is_the_same_travel_together():
    read = Read(ways(A), ways(B), ways(A), ways(A, held=B), ways())
    asks = [Ask(1, read.a, [0, 2], False), Ask(2, read.b, [1], False), Ask(3, read.b, [3], True)]
    assert read.start() == [*asks, Origin([4])]
    assert read.gather.left == 4


def test_one_node_answers_and_it_is_done():
    read = Read(ways(A), ways(A))
    read.start()
    assert read.answer(1, GOT, GOT) == []
    assert read.gather.left == 0 and read.gather.wake_ns() is None
    assert read.in_flight() == [0, 0, 0]


def test_parts_are_bounded_in_items_and_bytes_and_a_large_block_travels_alone():
    read = Read(*[ways(A)] * 6, sizes=[10, 10, 10, 60, 50, 200], part_bytes=100, part_items=3)
    assert [ask.items for ask in read.start() if isinstance(ask, Ask)] == [[0, 1, 2], [3], [4], [5]]
    read = Read(*[ways(A)] * 3, sizes=[60, 40, 1], part_bytes=100, part_items=3)
    assert [ask.items for ask in read.start() if isinstance(ask, Ask)] == [[0, 1], [2]]
    read = Read(*[ways(A)] * 3, sizes=[60, 60, 40], part_bytes=100)
    assert [ask.items for ask in read.start() if isinstance(ask, Ask)] == [[0], [1, 2]]


def test_parts_are_asked_for_a_few_ahead_and_in_order():
    read = Read(*[ways(A)] * 10, part_items=1)
    assert read.start() == [Ask(number, read.a, [number - 1], False) for number in range(1, limits.PARTS_AHEAD + 1)]
    assert read.in_flight()[A] == limits.PARTS_AHEAD
    assert read.answer(1, GOT) == [Ask(5, read.a, [4], False)]
    assert read.answer(2, GOT) == [Ask(6, read.a, [5], False)]
    with pytest.raises(AssertionError, match="in the order of requests"):
        read.gather.begun(5, T)


# Going on


def test_what_a_node_has_not_goes_on_and_the_origin_is_last():
    read = Read(ways(A, B), ways(A))
    read.start()
    assert read.answer(1, ABSENT, ABSENT) == [Ask(2, read.b, [0], False), Origin([1])]
    assert read.answer(2, ABSENT) == [Origin([0])]
    assert read.gather.left == 0


def test_corrupt_bytes_are_asked_of_the_next():
    read = Read(ways(A, B))
    read.start()
    assert read.answer(1, BAD) == [Ask(2, read.b, [0], False)]
    assert read.answer(2, GOT) == []


def test_a_final_error_ends_a_block():
    read = Read(ways(A, B), ways(A, B))
    read.start()
    assert read.answer(1, FINAL, GOT) == []
    assert read.gather.left == 0 and not read.gather.is_wanted(0)


def test_a_node_breaks_and_its_blocks_go_on():
    read = Read(ways(A, B), ways(A), ways(A, B), ways(A, C), *[ways(A, B)] * 2, part_items=1)
    read.start()
    read.gather.broke(read.a, T + MS)
    assert read.done() == [
        *(Ask(number, read.b, [item], False) for number, item in zip((7, 8, 9, 10), (0, 2, 4, 5), strict=True)),
        Ask(11, read.c, [3], False),
        Origin([1]),
    ]
    assert read.failures() == [1, 0, 0]  # once, however many requests were under way
    assert read.in_flight() == [0, 4, 1]
    read.gather.broke(read.a, T + MS)
    read.gather.alive(read.a, T + MS)  # no news any more
    assert read.done() == []


def test_a_node_that_broke_is_asked_nothing_more():
    read = Read(ways(A, B), ways(B, A), ways(B, A, C))
    read.start()
    read.gather.broke(read.a, T + MS)
    read.done()
    assert read.answer(2, ABSENT, ABSENT) == [Ask(4, read.c, [2], False), Origin([1])]


def test_what_was_not_sent_yet_to_a_node_that_breaks_is_not_sent():
    read = Read(ways(A, B), ways(B, C))
    read.start()
    read.gather.broke(read.a, T + MS)
    read.gather.broke(read.b, T + MS)  # before the first block was asked of it
    assert read.done() == [Ask(4, read.c, [1], False), Origin([0])]


# Life


def test_who_lets_wait_is_asked_whether_it_lives_and_is_given_up_without_an_answer():
    read = Read(ways(A, B))
    read.start()
    read.tick(T + HEDGE_NS)
    read.answer(2, ABSENT, now_ns=T + HEDGE_NS)
    assert read.tick(T + PROBE_NS) == [Probe(read.a)]
    assert read.gather.wake_ns() == T + PROBE_NS + PROBE_ANSWER_NS
    assert read.tick(T + PROBE_NS + PROBE_ANSWER_NS) == [Drop(read.a), Origin([0])]
    assert read.gather.left == 0 and read.failures() == [1, 0, 0]


def test_who_lives_is_waited_for_and_asked_again():
    read = Read(ways(A))
    read.start()
    now_ns = T + PROBE_NS
    for _ in range(5):
        assert read.tick(now_ns) == [Probe(read.a)]
        read.gather.alive(read.a, now_ns + MS)
        assert read.tick(now_ns + PROBE_EVERY_NS) == []
        assert read.gather.wake_ns() == now_ns + MS + PROBE_EVERY_NS
        now_ns += MS + PROBE_EVERY_NS
    assert read.answer(1, GOT, now_ns=now_ns) == []


def test_an_answer_that_begins_is_sign_enough_of_life():
    read = Read(ways(A), ways(A), part_items=1)
    read.start()
    assert read.tick(T + PROBE_NS) == [Probe(read.a)]
    read.gather.begun(1, T + PROBE_NS + MS)
    assert read.gather.wake_ns() is None
    assert read.tick(T + 10 * PROBE_NS) == []
    read.gather.answered(1, [GOT], T + 10 * PROBE_NS)
    assert read.tick(T + 11 * PROBE_NS) == [Probe(read.a)]  # for the next one, not given up for the first


def test_an_answer_that_did_not_begin_after_all_is_waited_for_again():
    read = Read(ways(A))
    read.start()
    read.gather.begun(1, T + MS)
    read.gather.unbegun(1)
    assert read.tick(T + PROBE_NS) == [Probe(read.a)]


def test_the_next_answer_is_waited_for_from_when_it_is_the_next():
    read = Read(*[ways(A, B)] * 2, part_items=1)
    read.start()
    read.answer(1, GOT, now_ns=T + 90 * MS)
    assert read.gather.wake_ns() == T + 90 * MS + HEDGE_NS


# Only if held


def test_who_is_asked_only_for_what_it_holds_is_given_up_soon():
    read = Read(ways(B, held=A))
    assert read.start() == [Ask(1, read.a, [0], True)]
    assert read.tick(T + HEDGE_NS) == [Ask(2, read.b, [0], False)]
    assert read.gather.wake_ns() == T + HEDGE_NS + HELD_NS
    assert read.tick(T + HEDGE_NS + HELD_NS) == [Drop(read.a)]
    assert read.gather.wake_ns() == T + HEDGE_NS + PROBE_NS
    assert read.answer(2, GOT) == []


def test_what_it_holds_not_is_asked_of_the_one_that_brings_it():
    read = Read(ways(B, A, held=A))
    read.start()
    assert read.answer(1, ABSENT) == [Ask(2, read.b, [0], False)]
    assert read.answer(2, ABSENT) == [Ask(3, read.a, [0], False)]  # the same node, in another way


# Bytes


def test_bytes_may_take_long_only_where_others_may_help():
    read = Read(ways(A, B), ways(A), ways(A, B), part_items=1)
    read.start()
    assert read.gather.begun(1, T) == SLOW_NS_MIN
    read.gather.answered(1, [GOT], T)
    assert read.gather.begun(2, T) is None
    read.gather.answered(2, [GOT], T)
    assert read.gather.begun(3, T) == SLOW_NS_MIN
    read = Read(ways(B), ways(A, B))
    read.start()
    read.gather.broke(read.b, T)
    assert read.gather.begun(2, T) is None


def test_what_was_measured_and_told_reaches_the_router():
    read = Read(*[ways(A)] * 20, part_items=1, sizes=[1000] * 20)
    read.start()
    for number in range(20):
        now_ns = T + (number + 1) * 60 * MS
        read.gather.begun(number + 1, now_ns - 30 * MS)
        read.gather.answered(number + 1, [GOT], now_ns, load=0.5)
    assert read.router.peer("a").load == 0.5
    assert read.router.hedge_ns(read.a) == 30 * MS
    assert read.router.slow_ns(read.a, 1000) == SLOW_NS_MIN
    assert read.router.slow_ns(read.a, 1_000_000) == 8 * 30 * MS * 1000
    read.gather.is_hot(bytes(16), 3, T)
    assert len(read.router.candidates(bytes(16), 1, T)) == 3 + 1


# The end


def test_who_stops_waiting_ends_the_connections_over_which_replies_would_come():
    read = Read(*[ways(A, B)] * 6, ways(C), part_items=1)
    read.start()
    read.answer(7, GOT)
    read.gather.end()
    assert read.done() == [Drop(read.a)]
    assert read.in_flight() == [0, 0, 0]
    assert read.failures() == [0, 0, 0]
    assert read.gather.wake_ns() is None
