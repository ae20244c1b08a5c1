"""How long things take of late: the 95th percentile of the last so many.

Kept sorted, so that adding and asking cost about a microsecond. Nothing is smoothed: one bad second is forgotten when
as many samples have come after it.
"""

from bisect import bisect_left, insort
from collections import deque

SAMPLES = 128
_SAMPLES_LEAST = 8
"""Fewer say nothing about a percentile."""


class Recent:
    """The last SAMPLES values."""

    __slots__ = ("_order", "_sorted")

    def __init__(self) -> None:
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        if len(self._order) == SAMPLES:
            oldest = self._order.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._order.append(value)
        insort(self._sorted, value)

    def median(self) -> float | None:
        """None while too little is known."""
        count = len(self._sorted)
        return self._sorted[count // 2] if count >= _SAMPLES_LEAST else None

    def p95(self) -> float | None:
        """None while too little is known."""
        count = len(self._sorted)
        return self._sorted[count * 95 // 100] if count >= _SAMPLES_LEAST else None
