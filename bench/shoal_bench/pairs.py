"""Measuring two sides of one comparison so that a busy machine disturbs both alike.

The sides take turns, and who begins changes with each round. What counts is the median over rounds of the ratio within
one round; the two medians are printed beside it. Garbage is collected between rounds, not in them.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

Side = Callable[[], float]
"""Runs its work once; seconds it took (per operation, per byte: the same on both sides)."""


class Pair(NamedTuple):
    ours_s: float
    reference_s: float
    speed: float
    """How many times as fast as the reference ours is."""


def timed(work: Callable[[], object], count: int = 1) -> Side:
    """A side whose seconds are those of `work`, divided by the number of operations in it."""

    def side() -> float:
        begin = time.perf_counter()
        work()
        return (time.perf_counter() - begin) / count

    return side


def compare(ours: Side, reference: Side, rounds: int, warm_up: int = 1) -> Pair:
    """Medians over alternating rounds."""
    (mine,), (theirs,) = alternate([ours], [reference], rounds, warm_up)
    return of(mine, theirs)


def best_of(ours: Side, references: Sequence[Side], rounds: int, warm_up: int = 1) -> tuple[Pair, int]:
    """`compare` with several references: the fastest one counts; which it was."""
    (mine,), theirs = alternate([ours], references, rounds, warm_up)
    fastest = min(range(len(references)), key=lambda number: statistics.median(theirs[number]))
    return of(mine, theirs[fastest]), fastest


def alternate(
    ours: Sequence[Side], references: Sequence[Side], rounds: int, warm_up: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds of every side in every round."""
    sides = [*ours, *references]
    seconds: list[list[float]] = [[] for _ in sides]
    for number in range(warm_up + rounds):
        gc.collect()
        gc.disable()
        try:
            order = range(len(sides)) if number % 2 else reversed(range(len(sides)))
            for side in order:
                took = sides[side]()
                if number >= warm_up:
                    seconds[side].append(took)
        finally:
            gc.enable()
    return seconds[: len(ours)], seconds[len(ours) :]


def of(mine: Sequence[float], theirs: Sequence[float]) -> Pair:
    """Medians of rounds that were taken together."""
    speed = statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
    return Pair(statistics.median(mine), statistics.median(theirs), speed)
