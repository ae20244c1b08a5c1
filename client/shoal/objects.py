"""What this client knows of objects: URL -> size, version, fingerprint, for as long as the node would trust it too."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

import msgspec

from shoal_core import limits
from shoal_core.verbs import resolve


class ObjectInfo(msgspec.Struct, frozen=True):
    """One version of one object."""

    url: str
    size: int
    etag: str
    fingerprint: bytes
    block_size_bytes: int
    origin: str
    """Its URL at the origin."""
    stale: bool = False
    """The origin could not be asked; this is what it said last time."""
    replica_count: int | None = None
    """Nodes that own each of its blocks; None: as the view says."""


class KnownObjects:
    """Resolved URLs. `get` is a dict lookup and a comparison; it is on the hot path."""

    def __init__(self, count_max: int = limits.OBJECTS_REMEMBERED_MAX) -> None:
        self._known: OrderedDict[str, tuple[ObjectInfo, float]] = OrderedDict()
        self._count_max = count_max
        self._lock = threading.Lock()

    def get(self, url: str) -> ObjectInfo | None:
        """The object while its resolution is fresh."""
        found = self._known.get(url)
        return found[0] if found is not None and found[1] > time.monotonic() else None

    def stale(self, url: str) -> ObjectInfo | None:
        """The object as it was last known, however long ago."""
        found = self._known.get(url)
        return found[0] if found is not None else None

    def add(self, objects: list[ObjectInfo], fresh_s: float = limits.RESOLVE_FRESH_S) -> None:
        until = time.monotonic() + fresh_s
        with self._lock:
            for info in objects:
                self._known[info.url] = info, until
            while len(self._known) > self._count_max:
                self._known.popitem(last=False)

    def reset_after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def forget(self, url: str) -> None:
        with self._lock:
            self._known.pop(url, None)


def from_wire(found: resolve.Object) -> ObjectInfo:
    return ObjectInfo(
        found.url, found.size, found.etag, found.fingerprint, found.block_size_bytes, found.origin, found.stale,
        found.replica_count,
    )  # fmt: skip
