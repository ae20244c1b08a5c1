"""The disk tier's directory: can it be read and written without the page cache, how fast, and is there room.

The speed test writes and reads one unnamed temporary file, at most TEST_BYTES and about TEST_S seconds each way, and
says how much it did. It measures next to a running node, so it is a lower bound.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from shoal.cli.doctor.check import Check
from shoal_core import limits, units

TEST_BYTES = 64 * limits.MIB
STEP_BYTES = 4 * limits.MIB
TEST_S = 3.0
SLOW_BYTES_PER_S = 200e6
"""Below this most object stores are as fast."""


def checks(directory: Path, values: dict[str, Any] | None) -> Iterator[Check]:
    """`directory` may not exist yet; its nearest existing parent is tested then."""
    place = next(path for path in (directory, *directory.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Check("disk", "skip", f"{directory}: this user cannot write here, so it is not tested",
                    "run shoal doctor as the node's user")  # fmt: skip
        return
    yield _room(directory, place, values)
    if values is not None and values.get("disk_failed"):
        yield Check("disk tier", "fail", f"{directory}: the node stopped using it after errors", "see the node's log")
    elif values is not None and values.get("nvme_direct") is False:
        yield Check("disk tier", "warn", f"{directory}: the node reads and writes it through the page cache",
                    "put it on ext4 or xfs, where O_DIRECT works")  # fmt: skip
    try:
        with _temporary(place) as (descriptor, direct):
            yield _direct(place, direct)
            yield _speed(place, descriptor, direct)
    except OSError as error:
        yield Check("disk speed", "fail", f"{place}: {error.strerror}", "check the disk (dmesg) and its free space")


def _room(directory: Path, place: Path, values: dict[str, Any] | None) -> Check:
    free = shutil.disk_usage(place).free
    tier = (values or {}).get("tiers", {}).get("disk")
    if tier is None:
        return Check("disk room", "pass", f"{directory}: {units.size(free)} free")
    allocated = sum(os.stat(file).st_blocks * 512 for file in _files(directory))
    to_come = max(0, tier["budget_bytes"] - allocated)
    finding = f"{directory}: {units.size(free)} free; the node may still take {units.size(to_come)} of its budget"
    if to_come > free:
        return Check("disk room", "warn", finding, "a smaller nvme.budget_bytes, or make room")
    return Check("disk room", "pass", finding)


def _files(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (file for file in directory.iterdir() if file.is_file())


@contextlib.contextmanager
def _temporary(place: Path) -> Generator[tuple[int, bool]]:
    """(descriptor, whether O_DIRECT) of a file that vanishes by itself."""
    try:
        descriptor, direct = _unnamed(place, os.O_DIRECT), True
    except OSError:
        descriptor, direct = _unnamed(place, 0), False
    try:
        yield descriptor, direct
    finally:
        os.close(descriptor)


def _unnamed(place: Path, flags: int) -> int:
    try:
        return os.open(place, os.O_TMPFILE | os.O_RDWR | flags, 0o600)
    except OSError:  # overlayfs and NFS have no O_TMPFILE
        handle, name = tempfile.mkstemp(prefix=".shoal-doctor-", dir=place)
        os.close(handle)
        try:
            return os.open(name, os.O_RDWR | flags)
        finally:
            Path(name).unlink()


def _direct(place: Path, direct: bool) -> Check:
    if direct:
        return Check("O_DIRECT", "pass", f"{place}: works")
    return Check(
        "O_DIRECT", "warn", f"{place}: not supported by this file system; the page cache is used, and grows",
        "put the disk tier on ext4 or xfs",
    )  # fmt: skip


def _speed(place: Path, descriptor: int, direct: bool) -> Check:
    # Anonymous maps are page-aligned, as O_DIRECT asks; random bytes, because some disks compress.
    with mmap.mmap(-1, STEP_BYTES) as buffer:
        buffer[:] = os.urandom(STEP_BYTES)
        written, write_s = _timed(lambda offset: os.pwrite(descriptor, buffer, offset), TEST_BYTES)
        if not direct:
            started = time.perf_counter()
            os.fdatasync(descriptor)
            write_s += time.perf_counter() - started
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        read, read_s = _timed(lambda offset: os.preadv(descriptor, [buffer], offset), written)
    writing, reading = written / write_s, read / read_s
    kind = "direct" if direct else "buffered"
    finding = (
        f"{place}: {kind} write {units.rate(writing)}, read {units.rate(reading)} "
        f"({units.size(written)} in {units.size(STEP_BYTES)} steps, one at a time)"
    )
    if min(writing, reading) < SLOW_BYTES_PER_S:
        return Check("disk speed", "warn", finding, "a local NVMe disk; on a network disk the tier helps little")
    return Check("disk speed", "pass", finding)


def _timed(step: Callable[[int], int], total: int) -> tuple[int, float]:
    """(bytes done, seconds)."""
    started = time.perf_counter()
    done = 0
    while done < total and (done == 0 or time.perf_counter() - started < TEST_S):
        count = step(done)
        if count != STEP_BYTES:
            raise OSError(0, f"{count} of {STEP_BYTES} bytes at {done}")
        done += count
    return done, max(time.perf_counter() - started, 1e-9)
