"""Payload of the NVMe tier: preallocated segment files, read and written past the page cache (O_DIRECT).

O_DIRECT wants file offset, length and memory aligned; 4 KiB suits every device. Slots of whole 4 KiB start aligned. A
payload in aligned memory moves straight from or to it, only its last piece under 4 KiB goes through an aligned buffer
in the same call. Payload in other memory goes through such a buffer in pieces of 1 MiB. Slots of other sizes, and file
systems that refuse O_DIRECT, use the page cache; `direct` says which.

No lock is held during payload I/O; Python releases its own inside preadv and pwritev. `FileIo` is the only door to the
operating system: a test gives another one to make the disk fail.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import queue
import threading
from collections.abc import Sequence
from pathlib import Path

ALIGNMENT = 4096
BOUNCE_BYTES = 1 << 20
_LOG = logging.getLogger(__name__)


class FileIo:
    """Files by descriptor, positions given with each call."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def read(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        return os.preadv(descriptor, buffers, offset)

    def write(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        return os.pwritev(descriptor, buffers, offset)

    def allocate(self, descriptor: int, offset: int, length: int) -> None:
        os.posix_fallocate(descriptor, offset, length)

    def size(self, descriptor: int) -> int:
        return os.fstat(descriptor).st_size

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def read_some(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill the buffers up to the end of the file; how many bytes."""
        done = total = self.read(descriptor, buffers, offset)
        wanted = sum(map(len, buffers))
        while done and total < wanted:
            done = self.read(descriptor, _after(buffers, total), offset + total)
            total += done
        return total

    def write_all(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> None:
        wanted, total = sum(map(len, buffers)), 0
        while total < wanted:
            total += self.write(descriptor, _after(buffers, total) if total else buffers, offset + total)


def _after(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left of the buffers when `count` bytes are done."""
    rest: list[memoryview] = []
    for buffer in buffers:
        if count < len(buffer):
            rest.append(buffer[count:])
        count = max(0, count - len(buffer))
    return rest


class PayloadFiles:
    """The segment files of one tier. Calls for different slots may run at once."""

    def __init__(self, directory: Path, io: FileIo, slab_bytes: int, slabs_per_segment: int) -> None:
        self.direct = True
        """Whether payload goes past the page cache."""
        self._directory = directory
        self._io = io
        self._slab_bytes = slab_bytes
        self._slabs_per_segment = slabs_per_segment
        self._files: dict[tuple[int, bool], int] = {}
        self._lock = threading.Lock()
        self._bounces: queue.SimpleQueue[memoryview] = queue.SimpleQueue()

    def allocate(self, slab: int) -> None:
        """Reserve the slab's bytes in the file system; OSError with ENOSPC when there are not so many."""
        segment, position = divmod(slab, self._slabs_per_segment)
        self._io.allocate(self._descriptor(segment, direct=False), position * self._slab_bytes, self._slab_bytes)

    def holds(self, slab: int) -> bool:
        """Whether the file reaches to the end of the slab."""
        segment, position = divmod(slab, self._slabs_per_segment)
        return self._io.size(self._descriptor(segment, direct=False)) >= (position + 1) * self._slab_bytes

    def write(self, slab: int, offset: int, payload: memoryview, slot_bytes: int) -> None:
        self._transfer(slab, offset, payload, slot_bytes, writing=True)

    def read(self, slab: int, offset: int, into: memoryview, slot_bytes: int) -> None:
        self._transfer(slab, offset, into, slot_bytes, writing=False)

    def close(self) -> None:
        with self._lock:
            for descriptor in self._files.values():
                self._io.close(descriptor)
            self._files.clear()

    def _transfer(self, slab: int, offset: int, payload: memoryview, slot_bytes: int, *, writing: bool) -> None:
        segment, position = divmod(slab, self._slabs_per_segment)
        offset += position * self._slab_bytes
        if self.direct and slot_bytes % ALIGNMENT == 0:
            try:
                descriptor = self._descriptor(segment, direct=True)
                if not _is_aligned(payload):
                    return self._by_bounce(descriptor, offset, payload, writing)
                return self._straight(descriptor, offset, payload, writing)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._fall_back(error)
        return self._move(self._descriptor(segment, direct=False), [payload], offset, writing, len(payload))

    def _straight(self, descriptor: int, offset: int, payload: memoryview, writing: bool) -> None:
        size = len(payload)
        whole = size - size % ALIGNMENT
        if whole == size:
            return self._move(descriptor, [payload], offset, writing, size)
        bounce = self._take_bounce()
        try:
            tail, rest = bounce[:ALIGNMENT], payload[whole:]
            if writing:
                tail[: len(rest)] = rest
                tail[len(rest) :] = bytes(ALIGNMENT - len(rest))
            self._move(descriptor, [payload[:whole], tail] if whole else [tail], offset, writing, size)
            if not writing:
                rest[:] = tail[: len(rest)]
        finally:
            self._bounces.put(bounce)
        return None

    def _by_bounce(self, descriptor: int, offset: int, payload: memoryview, writing: bool) -> None:
        bounce = self._take_bounce()
        try:
            for start in range(0, len(payload), BOUNCE_BYTES):
                piece = payload[start : start + BOUNCE_BYTES]
                aligned = bounce[: -(-len(piece) // ALIGNMENT) * ALIGNMENT]
                if writing:
                    aligned[: len(piece)] = piece
                    aligned[len(piece) :] = bytes(len(aligned) - len(piece))
                self._move(descriptor, [aligned], offset + start, writing, len(piece))
                if not writing:
                    piece[:] = aligned[: len(piece)]
        finally:
            self._bounces.put(bounce)

    def _move(self, descriptor: int, buffers: list[memoryview], offset: int, writing: bool, size: int) -> None:
        if writing:
            self._io.write_all(descriptor, buffers, offset)
        elif (count := self._io.read_some(descriptor, buffers, offset)) < size:
            raise OSError(errno.EIO, f"segment file in {self._directory} ends {size - count} bytes too early")

    def _take_bounce(self) -> memoryview:
        """As many exist as there were ever transfers at once."""
        try:
            return self._bounces.get_nowait()
        except queue.Empty:
            return memoryview(mmap.mmap(-1, BOUNCE_BYTES))

    def _fall_back(self, error: OSError) -> None:
        if self.direct:
            self.direct = False
            _LOG.warning(
                "%s: no O_DIRECT here (%s); reading and writing through the page cache", self._directory, error
            )

    def _descriptor(self, segment: int, *, direct: bool) -> int:
        descriptor = self._files.get((segment, direct))
        if descriptor is not None:
            return descriptor
        with self._lock:
            descriptor = self._files.get((segment, direct))
            if descriptor is None:
                flags = os.O_RDWR | os.O_CREAT | (os.O_DIRECT if direct else 0)
                descriptor = self._io.open(self._directory / f"segment-{segment:04}", flags)
                self._files[segment, direct] = descriptor
            return descriptor


def _is_aligned(view: memoryview) -> bool:
    """False also for read-only memory, whose address ctypes does not tell: it is copied, which is always right."""
    return not view.readonly and ctypes.addressof(ctypes.c_char.from_buffer(view)) % ALIGNMENT == 0
