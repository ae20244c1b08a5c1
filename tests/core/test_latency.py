"""The 95th percentile of the last so many, against the plain way to compute it."""

from hypothesis import given
from hypothesis import strategies as st

from shoal_core import latency
from shoal_core.latency import Recent


def recent(values: list[float]) -> Recent:
    found = Recent()
    for value in values:
        found.add(value)
    return found


def test_a_few_values_say_nothing():
    assert recent([1.0] * 7).p95() is None
    assert recent([1.0] * 8).p95() == 1.0


def test_the_slowest_of_twenty_counts_and_one_of_a_hundred_does_not():
    assert recent([1.0] * 19 + [9.0]).p95() == 9.0
    assert recent([1.0] * 99 + [9.0]).p95() == 1.0
    assert recent([9.0] * 6 + [1.0] * 94).p95() == 9.0


def test_bad_times_are_forgotten():
    found = recent([100.0] * latency.SAMPLES)
    for _ in range(latency.SAMPLES):
        assert found.p95() == 100.0 or found.p95() == 1.0
        found.add(1.0)
    assert found.p95() == 1.0


@given(st.lists(st.integers(0, 20) | st.floats(0, 1e12), max_size=3 * latency.SAMPLES))
def test_only_the_last_values_count(values: list[float]):
    kept = sorted(values[-latency.SAMPLES :])
    expected = kept[len(kept) * 95 // 100] if len(kept) >= 8 else None
    assert recent(values).p95() == expected
