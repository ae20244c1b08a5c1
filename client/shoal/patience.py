"""Waiting for nodes that went: what a reader does while neither a node nor the origin helps.

A pod has no credentials for the origin, so a cache pod that is replaced beside it is all its way to the bytes; and an
origin that refuses may serve a moment later. Whoever has reached a node once tries both again until its deadline,
with pauses that double and differ from reader to reader.
"""

from __future__ import annotations

import random
import time

from shoal_core.errors import Forbidden, NodeGone, OriginError

PASSING = (NodeGone, OriginError, Forbidden)
"""Errors of the origin's way that are worth another try, while nodes are away: the rest say something of the object."""

_FIRST_S = 0.05
_MOST_S = 1.0


class Patience:
    """Of one call."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._pause_s = _FIRST_S

    def pause(self) -> bool:
        """Wait before a further try; False, at once, where none would end within the deadline."""
        if time.monotonic() + self._pause_s >= self._deadline:
            return False
        time.sleep(self._pause_s * random.uniform(0.5, 1.0))
        self._pause_s = min(2 * self._pause_s, _MOST_S)
        return True
