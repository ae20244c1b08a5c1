"""Waiting for what another thread or process does: a condition, looked at often, with a deadline that fails the test.

For what tells of itself in no other way; where there is an event, wait for the event.
"""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE_S = 15.0
_LOOK_EVERY_S = 0.002


def until(condition: Callable[[], object], what: str = "", seconds: float = DEADLINE_S) -> None:
    """Returns when `condition()` is true; AssertionError when it does not become so in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(_LOOK_EVERY_S)


def deadline(seconds: float = DEADLINE_S) -> float:
    """On the monotonic clock: one that no test means to reach."""
    return time.monotonic() + seconds
