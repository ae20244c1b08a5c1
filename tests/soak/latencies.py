"""How long things took, in a histogram of fixed size: a run of any length needs the same memory.

Each bucket is 5 % wide, so a percentile is right within that. Plain lists of counts travel between processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

_FIRST_S = 1e-6
_GROWTH = 1.05
_BUCKETS = 420
"""Up to about 800 s."""


class Latencies:
    """Of one kind of work."""

    def __init__(self, counts: Iterable[int] = ()) -> None:
        self.counts = list(counts) or [0] * _BUCKETS

    def add(self, seconds: float) -> None:
        place = int(math.log(max(seconds, _FIRST_S) / _FIRST_S, _GROWTH))
        self.counts[min(place, _BUCKETS - 1)] += 1

    def merge(self, other: Latencies) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]

    @property
    def count(self) -> int:
        return sum(self.counts)

    def percentile(self, percent: float) -> float:
        """Seconds within which so many per cent were done; 0 where nothing was."""
        left = self.count * percent / 100
        for place, count in enumerate(self.counts):
            left -= count
            if count and left <= 0:
                return _FIRST_S * _GROWTH ** (place + 1)
        return 0.0
