"""Sizes as Kubernetes and people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_operator import quantities


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (4096, 4096), ("4096", 4096), ("4Ki", 4096), ("1.5Gi", 3 << 29), ("500G", 500 * 10**9), ("2Ti", 2 << 40),
        ("1e9", 10**9), ("1E3", 1000), ("2E", 2 * 10**18), ("1Ei", 1 << 60), ("1Pi", 1 << 50), ("3k", 3000), ("0", 0),
        ("1500m", 2), ("1n", 1), (".5Ki", 512), ("1.", 1), (" 1Mi ", 1 << 20), (1.5, 2), ("100u", 1),
    ],
)  # fmt: skip
def test_what_is_a_size(text: object, size: int):
    assert quantities.parse(text) == size


@pytest.mark.parametrize("text", ["", "x", "1GB", "1 Gi", "-1", "1ki", "1e999", True, None, [], float("nan"), "٣"])
def test_what_is_none(text: object):
    with pytest.raises(ValueError, match='is not a size such as "4Gi"'):
        quantities.parse(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"), (512, "512"), (1023, "1023"), (1024, "1Ki"), (6 << 40, "6Ti"), (1288490188, "1.1Gi"),
        ((6 << 40) - 1, "5.9Ti"), (150 << 30, "150Gi"), ((150 << 30) + (1 << 29), "150Gi"), (5 << 70, "5120Ei"),
    ],
)  # fmt: skip
def test_what_people_read(size: int, text: str):
    assert quantities.shown(size) == text


@given(st.integers(0, 1 << 70))
def test_nothing_is_shown_larger_than_it_is(size: int):
    assert size * 0.9 - 1 <= quantities.parse(quantities.shown(size)) <= size


@pytest.mark.parametrize(
    ("part", "whole", "digits", "text"),
    [
        (0, 0, 0, ""), (1, 3, 0, "33%"), (999, 1000, 0, "99%"), (3, 2, 0, "100%"), (973, 1000, 1, "97.3%"),
        (9999, 10000, 1, "99.9%"), (1, 10000, 1, "0.0%"), (1, 1, 1, "100.0%"),
    ],
)  # fmt: skip
def test_percent(part: int, whole: int, digits: int, text: str):
    assert quantities.percent(part, whole, digits) == text


def test_amounts_that_are_written_differently_are_equal():
    assert quantities.amount("1024Mi") == quantities.amount("1Gi")
    assert quantities.amount("0.5") == quantities.amount("500m")
    assert quantities.amount("cpu") is None
