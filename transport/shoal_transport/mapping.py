"""A segment as the client sees it: mapped read-only, and handed out as views whose lives can be watched.

A memoryview cannot be asked whether slices of it are still alive, and a finalizer on one fires too early. What every
slice, numpy array and cast keeps alive is the object that exports the buffer. So each lease gets an exporter of its
own: a ctypes array laid over the block's bytes (no copy), which keeps the mapping alive and whose end ends the lease.
"""

from __future__ import annotations

import ctypes
import mmap
import os

from shoal_core.errors import ProtocolError


class _Buffer(ctypes.Structure):
    """CPython's Py_buffer, as far as `buf` matters here."""

    _fields_ = [
        ("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    ]  # fmt: skip


def address_of(buffer: object) -> int:
    """Address of the first byte of a contiguous buffer, which must stay alive while the address is used."""
    info = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(buffer), ctypes.byref(info), 0)
    address = info.buf or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(info))
    return address


class Mapping:
    """One segment, mapped read-only and lazily. Unmapped when it and all exporters are gone."""

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
        """An object that exports `size` bytes from `offset` and can be weakly referenced; it keeps the map alive.

        ctypes would let its memory be written, which is a fault signal here: hand out `memoryview(...).toreadonly()`.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ProtocolError(f"grant of {size} bytes at {offset} lies outside a segment of {self.size}")
        exporter = (ctypes.c_ubyte * size).from_address(self.address + offset)
        exporter.keep_alive = self.memory  # type: ignore[attr-defined]
        return exporter
