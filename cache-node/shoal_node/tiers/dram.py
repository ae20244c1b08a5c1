"""DRAM segments: memory that the node writes, and readers map read-only.

A segment is one memfd, preallocated, mapped writable by the node and then sealed: nobody, not even the node, can shrink
or grow it (a reader's ftruncate would kill the node by SIGBUS) or map it writable again, and the seals themselves are
sealed. The node's own mapping, made before, stays writable. A segment belongs to one tenant for life.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os

from shoal_core import limits
from shoal_core.errors import ConfigError, NoSpace

_MFD_HUGETLB = 0x4
_F_SEAL_FUTURE_WRITE = 0x10
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
_HUGE_PAGE_BYTES = 2 << 20

_MARGIN_BYTES = 256 * limits.MIB
"""Memory left to the machine when a segment is made; below it the cache stops growing instead."""


class DramSegment:
    """One sealed segment. `memory` is writable here and only here."""

    def __init__(self, size: int, tenant: str, huge_pages: str) -> None:
        """See `make`, which looks first at what is free."""
        self.size = size
        self.tenant = tenant
        self.huge = False
        self.descriptor = -1
        if huge_pages != "never" and size % _HUGE_PAGE_BYTES == 0:
            self.descriptor = self._make(size, _MFD_HUGETLB)
            self.huge = self.descriptor >= 0
        if not self.huge and huge_pages == "require":
            raise ConfigError(f"dram.huge_pages: the node has no {size} bytes of free 2 MiB huge pages")
        if not self.huge:
            self.descriptor = self._make(size, 0)
        if self.descriptor < 0:
            raise NoSpace(f"cannot have {size} bytes of memory for a DRAM segment")
        try:
            self._map = mmap.mmap(self.descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, SEALS)
        except OSError:
            os.close(self.descriptor)
            raise
        self.memory = memoryview(self._map)

    def close(self) -> None:
        """Gives the node's own mapping up; clients that mapped the segment keep theirs."""
        if self.descriptor < 0:
            return
        os.close(self.descriptor)
        self.descriptor = -1
        self.memory.release()
        try:
            self._map.close()
        except BufferError:
            pass  # a transfer still looks at it; the map goes with the last view

    @staticmethod
    def _make(size: int, flags: int) -> int:
        """A descriptor with all its memory allocated, or -1 when there is not enough of that kind."""
        try:
            descriptor = os.memfd_create("shoal-segment", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
        except OSError:
            return -1
        try:
            os.ftruncate(descriptor, size)
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.ENOMEM, errno.ENOSPC, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            return -1
        return descriptor


def make(size: int, tenant: str, huge_pages: str) -> DramSegment:
    """Blocks for about 0.3 s per GiB. NoSpace when it cannot be had, whatever the system says of it; ConfigError for
    `require`."""
    try:
        if available_memory_bytes() < size + _MARGIN_BYTES:
            raise NoSpace(f"less than {size} bytes and a margin are free on this machine")
        return DramSegment(size, tenant, huge_pages)
    except NoSpace:
        raise
    except OSError as error:
        raise NoSpace(f"no DRAM segment of {size} bytes: {error}") from error


def available_memory_bytes() -> int:
    """Memory that can be taken without swapping: the machine's, or what the control group still allows if less."""
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError), open(limit) as most, open(usage) as used:
            available = min(available, int(most.read()) - int(used.read()))
    return available


def huge_pages_configured() -> bool:
    """Whether the machine sets huge pages aside at all: only then is not getting them a fallback."""
    try:
        with open("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages") as file:
            return int(file.read()) > 0
    except OSError:
        return False
