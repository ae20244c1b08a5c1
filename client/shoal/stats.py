"""What this client read, by the door its bytes came through, and how long it waited."""

from __future__ import annotations

from typing import Any

DOORS = ("shared memory", "unix", "tcp", "memory", "disk", "peer", "origin", "direct")


class ReadStats:
    """Counters since the client was made. Increments are not exact under threads, and need not be."""

    __slots__ = ("bytes", "corrupt_pages", "fallbacks", "hits", "reads", "wait_s")

    def __init__(self) -> None:
        self.reads = 0
        """Ranges asked for."""
        self.bytes = 0
        self.hits: dict[str, int] = dict.fromkeys(DOORS, 0)
        """Block ranges by where their bytes came from: shared memory; a socket, when the node had them in memory; the
        node's disk; another node through it; the origin through the node; direct from the origin, without the node."""
        self.wait_s = 0.0
        """Seconds spent waiting for the node or the origin. Reads under held grants wait for nothing."""
        self.corrupt_pages = 0
        self.fallbacks = 0
        """Block ranges that had to be read from the origin directly."""

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"hits": dict(self.hits)}
