"""Memory of Python objects as addresses and back: what lets a range be received or copied exactly once.

`new_bytes` gives a bytes object whose content is not written yet, together with a view to write it through, which is
what the C API documents for PyBytes_FromStringAndSize(NULL, n): its creator may fill it before anybody else sees it.
Without this, bytes that arrive in pieces would be copied a second time into their result.
"""

from __future__ import annotations

import ctypes
import functools

_new = ctypes.pythonapi.PyBytes_FromStringAndSize
_new.restype = ctypes.py_object
_new.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
_data = ctypes.pythonapi.PyBytes_AsString
_data.restype = ctypes.c_void_p
_data.argtypes = [ctypes.py_object]
_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.restype = ctypes.py_object
_view.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_WRITABLE = 0x200


_ADAPT_BYTES = 31 << 20


@functools.cache
def reuse_freed_memory() -> None:
    """Once per process: let malloc keep what batches free instead of giving it back to the system after each.

    glibc returns memory at the end of its heap as soon as 128 KiB of it are free, and faults every page in anew for the
    next batch, which costs several times what copying does. It learns otherwise from the size of blocks that are freed:
    one of up to 32 MiB makes it keep twice as much (mallopt(3), M_MMAP_THRESHOLD). None of it is touched here. Other C
    libraries take no notice.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    libc.free(libc.malloc(_ADAPT_BYTES))


class _Buffer(ctypes.Structure):
    """CPython's Py_buffer."""

    _fields_ = [
        ("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    ]  # fmt: skip


def new_bytes(size: int) -> tuple[bytes, memoryview]:
    """A bytes object of `size` >= 1 unwritten bytes and a view to write them; drop that before sharing the bytes."""
    data = _new(None, size)
    return data, _view(_data(data), size, _WRITABLE)


def address_of(buffer: object) -> int:
    """Address of the first byte of a contiguous buffer, which must stay alive while the address is used."""
    info = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(buffer), ctypes.byref(info), 0)
    address = info.buf or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(info))
    return address
