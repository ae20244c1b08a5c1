"""Numbers in tables: three digits, the right unit, and no rounding that lies."""

from __future__ import annotations

import pytest

from shoal_core import units


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1023, "1.00 KiB"),
        (1024, "1.00 KiB"),
        (12_897_484, "12.3 MiB"),
        (1023 * 1024, "1.00 MiB"),
        (8 << 30, "8.00 GiB"),
        (250 << 30, "250 GiB"),
        (1 << 60, "1024 PiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("bytes_per_s", "text"),
    [(0, "0 B/s"), (0.25, "0.25 B/s"), (999.6, "1.00 kB/s"), (12_900_000, "12.9 MB/s"), (3.6e9, "3.60 GB/s")],
)
def test_rates(bytes_per_s: float, text: str) -> None:
    assert units.rate(bytes_per_s) == text


def test_no_number_of_four_digits_before_a_larger_unit() -> None:
    for exponent in range(50):
        for value in (1.4142**exponent, 999.4 * 1.7**exponent, 10.0**exponent - 0.5):
            if value < 1e14:
                digits = units.rate(value).split()[0]
                assert len(digits.replace(".", "")) <= 3, digits


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 0, "-"), (0, 9, "0 %"), (1, 1000, "<1 %"), (999_999, 1_000_000, "99 %"), (7, 7, "100 %")],
)
def test_a_percentage_is_100_only_when_nothing_is_missing(part: int, whole: int, text: str) -> None:
    assert units.percent(part, whole) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 us"),
        (13e-6, "13 us"),
        (0.0424, "42.4 ms"),
        (1, "1 s"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (7530, "2 h 5 min"),
        (90_000, "1 d 1 h"),
        (86_405, "1 d"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-5, "0s"), (119, "119s"), (120, "2m"), (3 * 3600, "3h"), (50 * 3600, "2d")]
)
def test_age(seconds: int, shown: str) -> None:
    assert units.age(seconds) == shown
