"""The gate at an origin: how many may ask at once, fewer while it refuses, never none."""

import random

import hypothesis.strategies as st
from hypothesis import given

from shoal_core.budget import PAUSE_NS_FIRST, PAUSE_NS_MAX, Gate

MOST = 8


def gate(most: int = MOST, seed: int = 1) -> Gate:
    return Gate(most, random.Random(seed))


def taken(of: Gate, now_ns: int) -> int:
    """How many more may go now; they go."""
    count = 0
    while of.take(now_ns):
        count += 1
    return count


def answered(of: Gate, count: int, now_ns: int) -> None:
    """One after another."""
    for _ in range(count):
        assert of.take(now_ns)
        of.ended(False, now_ns)


def test_so_many_at_once_and_no_more() -> None:
    of = gate()
    assert taken(of, 0) == MOST
    of.ended(False, 1)
    assert taken(of, 1) == 1 and of.running == MOST


def test_a_refusal_halves_and_closes_for_a_moment() -> None:
    of = gate()
    assert of.take(0)
    of.ended(True, 1000)
    assert PAUSE_NS_FIRST // 2 <= of.wait_ns(1000) <= PAUSE_NS_FIRST
    assert not of.take(1000 + of.wait_ns(1000) - 1)
    assert taken(of, 1000 + of.wait_ns(1000)) == MOST // 2


def test_those_under_way_at_the_first_refusal_are_one_with_it() -> None:
    """An origin that breaks down refuses all that it was asked for at once: that is one refusal, not eight."""
    of = gate()
    assert taken(of, 0) == MOST
    for number in range(MOST):
        of.ended(True, 10 + number)
    assert of.allowed == MOST / 2
    assert taken(of, 10 + PAUSE_NS_FIRST) == MOST // 2


def test_it_never_closes_for_good() -> None:
    of, now_ns = gate(), 0
    pauses = []
    for _ in range(30):
        assert taken(of, now_ns) >= 1, "one may always try"
        while of.running:
            of.ended(True, now_ns)
        pauses.append(of.wait_ns(now_ns))
        now_ns += pauses[-1]
    assert of.allowed == 1.0
    assert PAUSE_NS_MAX // 2 <= pauses[-1] <= PAUSE_NS_MAX
    assert max(pauses) <= PAUSE_NS_MAX


def test_answers_open_it_by_one_for_as_many_as_are_let_through() -> None:
    of, now_ns = gate(), 0
    for _ in range(10):
        assert of.take(now_ns)
        of.ended(True, now_ns)
        now_ns += of.wait_ns(now_ns)
    answered(of, 1, now_ns)
    assert of.allowed == 2.0
    answered(of, 2, now_ns)
    assert 2.8 < of.allowed <= 3.0
    answered(of, 100, now_ns)
    assert of.allowed == MOST


def test_an_answer_ends_the_doubling_of_pauses() -> None:
    of, now_ns = gate(), 0
    for _ in range(5):
        assert of.take(now_ns)
        of.ended(True, now_ns)
        now_ns += of.wait_ns(now_ns)
    answered(of, 1, now_ns)
    assert of.take(now_ns)
    of.ended(True, now_ns)
    assert of.wait_ns(now_ns) <= PAUSE_NS_FIRST


def test_a_thousand_readers_do_not_come_back_together() -> None:
    waits = set()
    for seed in range(1000):
        of = gate(seed=seed)
        assert of.take(0)
        of.ended(True, 0)
        waits.add(of.wait_ns(0) // (PAUSE_NS_FIRST // 100))
    assert len(waits) > 40, "they spread over half of the pause"


@given(
    most=st.integers(1, 16),
    events=st.lists(st.tuples(st.sampled_from(["take", "good", "bad"]), st.integers(0, PAUSE_NS_MAX))),
)
def test_whatever_happens_the_bounds_hold(most: int, events: list[tuple[str, int]]) -> None:
    of, now_ns = gate(most), 0
    for what, later_ns in events:
        now_ns += later_ns
        if what == "take":
            closed = of.wait_ns(now_ns) > 0
            before = of.running
            went = of.take(now_ns)
            assert of.running == before + went <= most
            assert not (went and closed)
            assert went or closed or before >= int(of.allowed)
        elif of.running:
            of.ended(what == "bad", now_ns)
        assert 1.0 <= of.allowed <= most and 0 <= of.running <= most and 0 <= of.wait_ns(now_ns) <= PAUSE_NS_MAX
