"""Heat: what is hot is seen among any number of cold keys, more nodes hold it, and nothing flaps."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shoal_core import view
from shoal_node import heat
from shoal_node.heat import HALF_LIFE_S, HOT_READS_PER_S, Heat

KEY, OTHER = b"k" * 16, b"o" * 16


def cold(number: int) -> bytes:
    return (number * 0x9E3779B97F4A7C15 % 2**128).to_bytes(16, "little")


def read(counted: Heat, key: bytes, reads_per_s: float, start_s: int, seconds: int) -> int:
    """Evenly spread; when that was over."""
    for tenth in range(seconds * 10):
        now_s = start_s + tenth / 10
        for _ in range(int((tenth + 1) * reads_per_s / 10) - int(tenth * reads_per_s / 10)):
            counted.read(key, now_s)
    return start_s + seconds


@pytest.mark.parametrize("reads_per_s", [1, 20, 500])
def test_a_steady_rate_is_told_from_the_counts(reads_per_s: int) -> None:
    counted = Heat()
    now_s = 1_800_000_000
    for _ in range(20):
        now_s = read(counted, KEY, reads_per_s, now_s, 7)
    assert counted.rate(KEY, now_s) == pytest.approx(reads_per_s, rel=0.15)
    assert counted.rate(OTHER, now_s) == 0
    quiet = [counted.rate(KEY, now_s + later_s) for later_s in range(0, 100, 3)]
    assert quiet == sorted(quiet, reverse=True), "and it falls, without a step, when nobody reads"
    assert quiet[-1] < reads_per_s / 100
    assert counted.rate(KEY, now_s + 10_000) == 0 and len(counted) == 0


def test_a_rate_is_continuous_where_counts_are_halved() -> None:
    counted = Heat()
    now_s = read(counted, KEY, 1000, 0, HALF_LIFE_S)
    before, after = counted.rate(KEY, now_s - 0.001), counted.rate(KEY, now_s)
    assert before == pytest.approx(after, rel=0.001)


@pytest.mark.parametrize(
    ("reads_per_s", "replica_count", "expected"),
    [
        (40, 1, 1), (40, 3, 3), (100, 1, 2), (160, 1, 4), (400, 1, 8), (5000, 1, 8),
        (100, 2, 4), (160, 2, 8), (100, 3, 6), (160, 3, 8), (5000, 8, 8),
    ],
)  # fmt: skip
def test_holders_double_with_each_doubling_of_the_rate(reads_per_s: int, replica_count: int, expected: int) -> None:
    counted = Heat()
    now_s = read(counted, KEY, reads_per_s, 0, 60)
    assert counted.holders(KEY, replica_count, now_s) == expected
    due = counted.due(now_s, lambda key: replica_count)
    assert due == ([(KEY, expected)] if expected > replica_count else [])
    assert counted.due(now_s, lambda key: replica_count) == [], "once for each rise"


def test_a_crowd_is_seen_within_seconds() -> None:
    counted = Heat()
    now_s = read(counted, KEY, 4000, 100, 2)
    assert counted.due(now_s) == [(KEY, 8)]


def test_only_what_was_granted_is_told() -> None:
    counted = Heat()
    now_s = read(counted, KEY, 100, 0, 40)
    counted.granted(KEY, 2)
    assert counted.told(KEY) == 0, "nobody knew that it is hot"
    assert counted.due(now_s) == [(KEY, 2)]
    assert counted.told(KEY) == 0
    counted.granted(KEY, 1)
    assert counted.told(KEY) == 0, "no more than the owners"
    counted.granted(KEY, 8)
    assert counted.told(KEY) == 2, "what is beyond its rate is not kept there"
    now_s = read(counted, KEY, 400, now_s, 40)
    assert counted.told(KEY) == 2
    assert counted.due(now_s) == [(KEY, 8)], "one rise, however far"
    counted.granted(KEY, 5)
    assert counted.told(KEY) == 5, "the cluster may have fewer nodes"
    counted.granted(KEY, 3)
    assert counted.told(KEY) == 5, "an answer that came late"


def test_what_was_not_granted_is_due_again_each_half_life() -> None:
    counted = Heat()
    now_s = read(counted, KEY, 100, 0, 40)
    assert counted.due(now_s) == [(KEY, 2)]
    now_s = read(counted, KEY, 100, now_s, HALF_LIFE_S + 1)
    assert counted.due(now_s) == [(KEY, 2)] and counted.due(now_s) == []
    counted.granted(KEY, 2)
    now_s = read(counted, KEY, 100, now_s, 3 * HALF_LIFE_S)
    assert counted.due(now_s) == []


def test_it_falls_step_by_step_and_may_rise_again() -> None:
    counted = Heat()
    now_s = read(counted, KEY, 1000, 0, 40)
    assert counted.due(now_s) == [(KEY, 8)]
    counted.granted(KEY, 8)
    told: list[int] = []
    for _ in range(15):
        counted.read(OTHER, now_s)
        counted.due(now_s)
        told.append(counted.told(KEY))
        now_s += HALF_LIFE_S
    assert list(dict.fromkeys(told)) == [8, 4, 2, 0], told
    assert counted.holders(KEY, 1, now_s) == 1
    now_s = read(counted, KEY, 100, now_s, 40)
    assert counted.told(KEY) == 0 and counted.due(now_s) == [(KEY, 2)]


def test_after_a_long_silence_it_is_cold_at_once() -> None:
    counted = Heat()
    now_s = read(counted, KEY, 1000, 0, 40)
    counted.due(now_s)
    counted.granted(KEY, 8)
    counted.read(OTHER, now_s + 3600)
    assert counted.told(KEY) == 0 and counted.holders(KEY, 1, now_s + 3600) == 1
    assert len(counted) == 1


@pytest.mark.parametrize("replica_count", [1, 2, 3])
@pytest.mark.parametrize("whole_reads_per_s", [50, 65, 90, 128, 150, 260, 500, 1100, 4000])
def test_a_steady_crowd_that_spreads_over_the_holders_never_flaps(whole_reads_per_s: int, replica_count: int) -> None:
    """Each holder sees its share only, and it shrinks as the holders become more."""
    counted = Heat()
    now_s, holders, seen = 0, replica_count, [replica_count]
    for _ in range(150):
        now_s = read(counted, KEY, whole_reads_per_s / holders, now_s, 2)
        for key, holder_count in counted.due(now_s, lambda key: replica_count):
            counted.granted(key, holder_count)
        holders = counted.told(KEY) or replica_count
        seen.append(holders)
    assert seen == sorted(seen), "it only rises"
    if whole_reads_per_s / replica_count > 1.2 * HOT_READS_PER_S:
        assert seen[-1] > replica_count


def test_a_hot_key_is_seen_among_any_number_of_cold_ones() -> None:
    counted = Heat()
    number = 0
    for tenth in range(100):
        for step in range(2000):
            counted.read(cold(number), tenth / 10)
            number += 1
            if step % 100 == 0:
                counted.read(KEY, tenth / 10)
        assert len(counted) <= 2 * heat.KEYS
    assert [key for key, _ in counted.due(10)] == [KEY]


def test_as_many_hot_keys_as_are_counted_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heat, "KEYS", 8)
    counted = Heat()
    for number in range(12):
        for _ in range(3000):
            counted.read(cold(number), 1)
    assert len(counted.due(1)) == 8
    assert counted.due(1) == []


def test_in_another_view_others_are_in_line() -> None:
    counted = Heat()
    now_s = read(counted, KEY, 200, 0, 40)
    assert counted.due(now_s) == [(KEY, 4)]
    counted.granted(KEY, 4)
    counted.view_changed()
    assert counted.told(KEY) == 0
    assert counted.due(now_s) == [(KEY, 4)]


def test_what_makes_room_costs_the_most_read_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a key that comes just behind them would lose its reads again and again, and never be seen."""
    monkeypatch.setattr(heat, "KEYS", 4)
    counted = Heat()
    for number in range(3):
        for _ in range(60):
            counted.read(cold(number), 1)
    for turn in range(20):
        for _ in range(10):
            counted.read(KEY, 1)
        for number in range(4):
            counted.read(cold(100 + 4 * turn + number), 1)
    total = 3 * 60 + 20 * 14
    assert counted.rate(KEY, 1) * HALF_LIFE_S >= 20 * 10 - total / 4


@given(st.lists(st.integers(0, 60), max_size=400), st.integers(1, 12))
def test_a_count_is_never_too_high_nor_much_too_low(numbers: list[int], keys: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(heat, "KEYS", keys)
        counted = Heat()
        for number in numbers:
            counted.read(cold(number), 5)
            assert len(counted) <= 2 * keys
        for number in set(numbers):
            exact = numbers.count(number)
            count = counted.rate(cold(number), 5) * HALF_LIFE_S
            assert exact - len(numbers) / keys - 0.01 <= count <= exact + 0.01


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3000), st.floats(0, 30), st.integers(0, 9), st.booleans()),
        max_size=30,
    ),
    st.integers(1, view.REPLICA_COUNT_MAX),
)
def test_whatever_is_read_and_granted(steps: list[tuple[int, int, float, int, bool]], replica_count: int) -> None:
    counted = Heat()
    now_s = 1000.0
    granted: dict[bytes, int] = {}
    last: dict[bytes, tuple[int, float]] = {}
    """What was said of a key, and when: it may cool down and rise again."""
    for number, reads, later_s, grant, moved in steps:
        key = cold(number)
        for _ in range(reads):
            counted.read(key, now_s)
        now_s += later_s
        due = counted.due(now_s, lambda key: replica_count)
        assert len({key for key, _ in due}) == len(due)
        for hot, holder_count in due:
            assert replica_count < holder_count == counted.holders(hot, replica_count, now_s) <= view.REPLICA_COUNT_MAX
            before, said_s = last.get(hot, (0, 0.0))
            assert holder_count > before or now_s > said_s, "once for each rise"
            last[hot] = holder_count, now_s
        counted.granted(key, grant)
        granted[key] = max(granted.get(key, 0), grant)
        if moved:
            counted.view_changed()
            granted.clear()
            last.clear()
        told = counted.told(key)
        assert told == 0 or replica_count < told <= granted[key]
        assert told <= counted.holders(key, replica_count, now_s)
        assert counted.due(now_s, lambda key: replica_count) == [] or moved
        last = {key: (max(before, counted.told(key)), said_s) for key, (before, said_s) in last.items()}
