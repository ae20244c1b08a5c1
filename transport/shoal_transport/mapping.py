"""A segment as the client sees it: mapped read-only, and handed out as views whose lives can be watched.

A memoryview cannot be asked whether slices of it are still alive, and a finalizer on one fires too early. What every
slice, numpy array and cast keeps alive is the object that exports the buffer. So each lease gets an exporter of its
own: a ctypes array laid over the block's bytes (no copy), which keeps the mapping alive and whose end ends the lease.
So whoever watches the mapping (a registration with a device) hears of its end before the memory is unmapped.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import ClassVar

from shoal_core.errors import ProtocolError
from shoal_transport.buffers import address_of


class Mapping:
    """One segment, mapped read-only and lazily. Unmapped when it and all exporters are gone."""

    _kinds: ClassVar[dict[int, type[ctypes.Array[ctypes.c_ubyte]]]] = {}

    def __init__(self, descriptor: int, size: int) -> None:
        try:
            actual = os.fstat(descriptor).st_size
            if actual != size:
                raise ProtocolError(f"segment has {actual} bytes, the node said {size}")
            self._map = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self.size = size
        self.memory = memoryview(self._map)
        self.address = address_of(self._map)

    def exporter(self, offset: int, size: int) -> ctypes.Array[ctypes.c_ubyte]:
        """An object that exports at least `size` bytes from `offset`, can be weakly referenced and keeps the map alive.

        ctypes would let its memory be written, which is a fault signal here: hand out `memoryview(...).toreadonly()`.
        The size is rounded up within the segment, because each distinct size costs a ctypes type (30 us, kept).
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ProtocolError(f"grant of {size} bytes at {offset} lies outside a segment of {self.size}")
        unit = 4096 if size <= 65536 else 65536
        rounded = min(-(-size // unit) * unit, self.size - offset)
        kind = self._kinds.get(rounded)
        if kind is None:
            kind = self._kinds[rounded] = ctypes.c_ubyte * rounded
        exporter = kind.from_address(self.address + offset)
        exporter.mapping = self  # type: ignore[attr-defined]
        return exporter


def mapping_under(view: memoryview) -> Mapping | None:
    """The segment that a view given out here, or a slice of it, lies in; None for memory that is no segment."""
    found = getattr(view.obj, "mapping", None)
    return found if isinstance(found, Mapping) else None
