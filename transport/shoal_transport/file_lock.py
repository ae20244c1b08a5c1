"""A lock on a file or directory, between processes of one host, with a deadline. It ends with its holder."""

from __future__ import annotations

import fcntl
import time

_POLL_S = 0.01


def take(descriptor: int, deadline: float) -> bool:
    """Whether the exclusive lock was had by `deadline` (monotonic clock). Closing the descriptor gives it back."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            # The kernel's own wait has no deadline.
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
