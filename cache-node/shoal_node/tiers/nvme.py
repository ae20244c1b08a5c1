"""The NVMe tier: blocks in a directory, which survive the process.

It moves bytes between slots and memory and remembers what lies where; which slot to use, and what to drop, is decided
elsewhere. All calls block and may run in several threads at once, for different slots; no lock is held during payload
I/O.

A write voids the slot's record, writes the payload, then the record. Killed at any point, the slot has its old record
and payload, the new ones, or none. There is no fsync: after a loss of power a record may describe bytes that never
arrived, and so whoever reads a block for the first time after `recover` must check it against the record's checksum.
Errors of the disk are OSErrors for the caller to count; the slot concerned then holds nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from shoal_core.errors import Closed, ConfigError, InvariantBroken
from shoal_core.limits import GIB, SLAB_SLOTS_MAX
from shoal_node.tiers import nvme_directory, nvme_tables
from shoal_node.tiers.nvme_io import FileIo, PayloadFiles
from shoal_node.tiers.nvme_tables import Record, Slab, Tables

__all__ = ["FileIo", "NvmeTier", "Record"]

_LOG = logging.getLogger(__name__)
SEGMENT_BYTES = 1 * GIB
SEGMENT_COUNT_MAX = 256
"""Beyond so many, segments get longer instead: each takes up to three descriptors."""


class NvmeTier:
    """An open directory. Close it when no call runs any more; a call that still does is waited for."""

    def __init__(
        self,
        directory: str,
        budget_bytes: int,
        slab_bytes: int,
        classes: tuple[int, ...],
        io: FileIo | None = None,
        keep_free_bytes: int = 0,
    ) -> None:
        path = self._path = Path(directory)
        self._keep_free_bytes = keep_free_bytes
        region_bytes = nvme_tables.region_bytes(slab_bytes, classes)
        self.slab_count = budget_bytes // (slab_bytes + region_bytes)
        """Slabs within the budget, their tables included."""
        if self.slab_count < 1:
            least = slab_bytes + region_bytes
            raise ConfigError(f"disk tier {directory}: budget of {budget_bytes} bytes; one slab takes {least}")
        segment_bytes = max(SEGMENT_BYTES, -(-self.slab_count * slab_bytes // SEGMENT_COUNT_MAX))
        wanted = nvme_directory.Layout(nvme_directory.FORMAT, slab_bytes, -(-segment_bytes // slab_bytes), classes)
        self._lock_descriptor = nvme_directory.lock(path)
        try:
            layout, self.remade_because = nvme_directory.prepare(path, wanted, self.slab_count, region_bytes)
        except OSError as error:
            os.close(self._lock_descriptor)
            raise ConfigError(f"disk tier directory {directory}: {error.strerror}") from error
        io = io or FileIo()
        self._slab_bytes = slab_bytes
        self._payload = PayloadFiles(path, io, slab_bytes, layout.slabs_per_segment)
        self._tables = Tables(path, io, slab_bytes, classes, layout.slabs_per_segment)
        self._slabs: dict[int, Slab] = {}
        self._failed: dict[int, tuple[int, int]] = {}
        """Slabs whose last assignment failed: (errno, class index). The next write to one tries again."""
        self._assigning = threading.Lock()
        self._lock = threading.Lock()
        self._calls_running = 0
        self._idle = threading.Event()
        """Set once the tier is closed and no call runs."""
        self._closed = False

    @property
    def direct(self) -> bool:
        """Whether payload goes past the page cache; False where the file system refused."""
        return self._payload.direct

    def recover(self) -> Iterator[tuple[str, int, int] | Record]:
        """What the directory holds: for each slab ('slab', number, class index), then its records.

        Reads tables only. A slab whose header is damaged or whose segment file is too short is dropped, also on disk.
        """
        for number in range(self.slab_count):
            self._enter()
            try:
                slab, records = self._recover_slab(number)
            finally:
                self._leave()
            if slab is not None:
                yield "slab", number, slab.class_index
                yield from records

    def assign(self, slab: int, class_index: int) -> None:
        """Cut the slab into slots of a class; what it held is gone. OSError (ENOSPC) when the disk is full.

        After an OSError the slab cannot be read, and each write to it tries the assignment again.
        """
        if not 0 <= slab < self.slab_count:
            raise InvariantBroken(f"slab {slab} of {self.slab_count}")
        self._enter()
        try:
            self._slabs.pop(slab, None)
            self._leave_free(slab)
            self._payload.allocate(slab)
            self._tables.allocate(slab, class_index)
            self._slabs[slab] = self._tables.assign(slab, class_index)
            self._failed.pop(slab, None)
        except OSError as error:
            self._failed[slab] = error.errno or errno.EIO, class_index
            raise
        finally:
            self._leave()

    def write(self, record: Record, payload: memoryview) -> None:
        """Put a block into its slot."""
        if record.slot // SLAB_SLOTS_MAX in self._failed:
            self._assign_again(record.slot // SLAB_SLOTS_MAX)
        slab, offset = self._locate(record.slot, record.size)
        if len(payload) != record.size:
            raise InvariantBroken(f"slot {record.slot}: record of {record.size} bytes, payload of {len(payload)}")
        self._enter()
        try:
            self._tables.erase(record.slot)
            self._payload.write(record.slot // SLAB_SLOTS_MAX, offset, payload, slab.slot_bytes)
            self._tables.put(record, slab)
        finally:
            self._leave()

    def read(self, slot: int, size: int, into: memoryview) -> None:
        """The first `size` bytes of a slot, unchecked. Faster when `into` is page aligned."""
        slab, offset = self._locate(slot, size)
        self._enter()
        try:
            self._payload.read(slot // SLAB_SLOTS_MAX, offset, into[:size], slab.slot_bytes)
        finally:
            self._leave()

    def erase(self, slot: int) -> None:
        """Forget what lies in the slot."""
        self._locate(slot, 0)
        self._enter()
        try:
            self._tables.erase(slot)
        finally:
            self._leave()

    def close(self) -> None:
        """Wait for running calls, close the files, give the directory free. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if not self._calls_running:
                self._idle.set()
        self._idle.wait()
        self._payload.close()
        self._tables.close()
        os.close(self._lock_descriptor)

    def _leave_free(self, slab: int) -> None:
        """OSError when a slab that has no bytes of the disk yet would take what is to stay free."""
        if self._keep_free_bytes and not self._payload.holds(slab):
            found = os.statvfs(self._path)
            if found.f_bavail * found.f_frsize - self._slab_bytes < self._keep_free_bytes:
                raise OSError(errno.ENOSPC, f"{self._path}: nvme.keep_free_bytes would not stay free")

    def _assign_again(self, slab: int) -> None:
        # One thread: a second assignment would void what others wrote after the first.
        with self._assigning:
            failed = self._failed.get(slab)
            if failed is not None:
                self.assign(slab, failed[1])

    def _recover_slab(self, number: int) -> tuple[Slab | None, list[Record]]:
        try:
            slab = self._tables.read_slab(number)
            if slab is None:
                return None, []
            if not self._payload.holds(number):
                _LOG.warning("disk tier: the segment file of slab %d is too short; the slab is dropped", number)
                self._tables.drop(number)
                return None, []
            records = self._tables.read_records(number, slab)
        except OSError as error:
            _LOG.warning("disk tier: table of slab %d: %s; the slab is dropped", number, error)
            return None, []
        self._slabs[number] = slab
        return slab, records

    def _locate(self, slot: int, size: int) -> tuple[Slab, int]:
        number, index = divmod(slot, SLAB_SLOTS_MAX)
        slab = self._slabs.get(number)
        if slab is None and number in self._failed:
            raise OSError(self._failed[number][0], f"slab {number} could not be assigned")
        if slab is None or size > slab.slot_bytes or (index + 1) * slab.slot_bytes > self._slab_bytes:
            raise InvariantBroken(f"slot {slot} for {size} bytes: no such slot is assigned")
        return slab, index * slab.slot_bytes

    def _enter(self) -> None:
        """A descriptor closed under a call could be another file's by the time it is used: `close` waits for calls.

        Plain calls instead of a context manager: after 2 ms of waiting for a disk, Python's code is out of the CPU's
        caches, and each line costs twenty times what it costs in a loop.
        """
        with self._lock:
            if self._closed:
                raise Closed("the disk tier is closed")
            self._calls_running += 1

    def _leave(self) -> None:
        with self._lock:
            self._calls_running -= 1
            if self._closed and not self._calls_running:
                self._idle.set()
