"""Grants: blocks in shared memory that this process may look at, and whose views are alive.

A grant is the node's lease to this client on one block in a mapped segment. Reads under it are plain function calls and
send nothing. Whether a view of it is alive is asked of its exporter (see shoal_transport.mapping); the node may ask for
an idle grant back at any time, so every use happens under `lock` or on an exporter that was made under it.

Idle grants beyond the node's limit per client go back oldest first, touched ones after another round. What goes back,
and how often each grant was hit, rides on the next request or on the next tick.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import Any

from shoal_transport.mapping import Mapping

_PASSES_MAX = 256
"""Grants that one search for room gives another round; the search stays below 100 us."""


class Grant:
    """One leased block. `memory` is the block's bytes, read-only."""

    __slots__ = ("_exporter", "count", "entry", "generation", "key", "mapping", "memory", "offset", "recent", "touches")

    def __init__(
        self, key: tuple[bytes, int], mapping: Mapping, offset: int, length: int, entry: int, generation: int
    ) -> None:
        self.key = key
        """(fingerprint, block)"""
        self.mapping = mapping
        self.offset = offset
        self.memory = mapping.memory[offset : offset + length]
        self.entry = entry
        self.generation = generation
        self.count = 1
        """Times the node granted it; as many are given back."""
        self.touches = 0
        """Hits not yet reported to the node."""
        self.recent = True
        self._exporter: weakref.ref[Any] | None = None

    @property
    def live(self) -> bool:
        """Whether a view of this grant exists somewhere."""
        return self._exporter is not None and self._exporter() is not None

    def view(self, holder: object) -> memoryview:
        """A read-only view of the block. While it or any slice of it lives, so does the lease, and `holder`."""
        exporter = self._exporter() if self._exporter is not None else None
        if exporter is None:
            exporter = self.mapping.exporter(self.offset, len(self.memory))
            exporter.holder = holder  # type: ignore[attr-defined]
            self._exporter = weakref.ref(exporter)
        return memoryview(exporter).cast("B")[: len(self.memory)].toreadonly()


class Grants:
    """All grants of one client in one process. Callers hold `lock` around everything here."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_key: dict[tuple[bytes, int], Grant] = {}
        self._by_entry: dict[int, Grant] = {}
        self.leased_bytes = 0
        self.leased_bytes_max = 0
        self.touched: list[Grant] = []
        self.released: list[tuple[int, int]] = []
        """Given back here, not yet reported."""
        self._order: deque[Grant] = deque()
        self._asked: list[Grant] = []
        """The node wants these back; they had live views."""

    def add(self, grant: Grant) -> Grant:
        """Take a new grant in; if another thread brought the same block meanwhile, that one stays."""
        known = self.by_key.get(grant.key)
        if known is not None and (known.entry, known.generation) == (grant.entry, grant.generation):
            known.count += 1
            return known
        if known is not None:
            self._forget(known)
        self.by_key[grant.key] = self._by_entry[grant.entry] = grant
        self._order.append(grant)
        self.leased_bytes += len(grant.memory)
        return grant

    def touch(self, grant: Grant) -> None:
        """Count one hit."""
        if not grant.touches:
            self.touched.append(grant)
            grant.recent = True
        grant.touches += 1

    def make_room(self, size: int) -> None:
        """Give idle grants back until `size` more bytes fit the limit, as far as there are any."""
        passes = _PASSES_MAX
        while passes and self._order and self.leased_bytes + size > self.leased_bytes_max:
            grant = self._order.popleft()
            if self.by_key.get(grant.key) is not grant:
                continue
            if grant.recent or grant.live:
                passes -= 1
                grant.recent = False
                self._order.append(grant)
            else:
                self._forget(grant)

    def revoke(self, wanted: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The node asks these back: (released, busy)."""
        released: list[tuple[int, int]] = []
        busy: list[tuple[int, int]] = []
        for lease in wanted:
            grant = self._by_entry.get(lease[0])
            if grant is None or grant.generation != lease[1]:
                busy.append(lease)  # its grant or its release is still on the way
            elif grant.live:
                busy.append(lease)
                self._asked.append(grant)
            else:
                released += [lease] * grant.count
                self._forget(grant, report=False)
        return released, busy

    def report(self) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
        """(released, touches) since the last report; what was asked back and is idle by now is among the released."""
        if self._asked:
            still = [grant for grant in self._asked if grant.live]
            for grant in self._asked:
                if not grant.live and self.by_key.get(grant.key) is grant:
                    self._forget(grant)
            self._asked = still
        released, self.released = self.released, []
        touches = [(grant.entry, grant.generation, grant.touches) for grant in self.touched]
        for grant in self.touched:
            grant.touches = 0
        self.touched = []
        return released, touches

    def forget_all(self) -> list[Grant]:
        """The node is gone or the client closes: nothing may be used any more. Those with live views."""
        live = [grant for grant in self.by_key.values() if grant.live]
        self.by_key.clear()
        self._by_entry.clear()
        self._order.clear()
        self._asked.clear()
        self.touched.clear()
        self.released.clear()
        self.leased_bytes = 0
        return live

    def forget_key(self, key: tuple[bytes, int]) -> None:
        """Drop one idle grant, for instance after an evict."""
        grant = self.by_key.get(key)
        if grant is not None and not grant.live:
            self._forget(grant)

    def _forget(self, grant: Grant, report: bool = True) -> None:
        del self.by_key[grant.key]
        if self._by_entry.get(grant.entry) is grant:
            del self._by_entry[grant.entry]
        self.leased_bytes -= len(grant.memory)
        if report:
            self.released += [(grant.entry, grant.generation)] * grant.count
