"""The C library's allocator, told how this process uses memory.

Fills allocate and free buffers of a megabyte all the time, in many threads. By default each goes back to the kernel
when it is freed, and the next one is a thousand page faults: a fifth of what a fill costs in CPU time. Here freed
buffers are kept for the next, in few arenas; what is kept is bounded by what fills had in flight. A C library without
`mallopt` is left as it is.
"""

from __future__ import annotations

import ctypes

from shoal_core.limits import MIB

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
ARENAS_MAX = 2
KEPT_BYTES_MAX = 64 * MIB
"""Free memory at the end of the heap that is not given back."""
BUFFER_BYTES_MAX = 32 * MIB
"""The most that glibc takes from an arena; larger ones are mapped."""


def keep_buffers() -> None:
    """Call once, before threads are started."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, ARENAS_MAX)
        mallopt(_M_MMAP_THRESHOLD, BUFFER_BYTES_MAX)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES_MAX)
