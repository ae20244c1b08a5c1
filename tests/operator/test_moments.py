"""Times as Kubernetes writes them, durations as people read them."""

import pytest

from shoal_operator import moments


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0), ("2025-11-24T16:00:00Z", 1764000000.0),
        ("2025-11-24T16:00:00.500000Z", 1764000000.5),
        ("2025-11-24T17:00:00+01:00", 1764000000.0), ("2025-11-24T16:00:00", 1764000000.0), ("yesterday", None),
        (None, None), (3, None),
    ],
)  # fmt: skip
def test_read(text: object, seconds: float | None):
    assert moments.parse(text) == seconds


def test_written():
    assert moments.shown(1764000000.9) == "2025-11-24T16:00:00Z"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"), (0.2, "0s"), (45, "45s"), (60, "1m"), (200, "3m20s"), (601, "10m"), (7500, "2h5m"), (7201, "2h"),
        (36_000, "10h"), (90_000, "1d1h"), (864_000, "10d"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str):
    assert moments.duration(seconds) == text
