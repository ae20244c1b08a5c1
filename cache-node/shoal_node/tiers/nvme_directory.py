"""The directory of the NVMe tier: who may use it, and whether what lies in it can be used.

`lock` is held with flock as long as the tier is open and says which process holds it. `shoal.json` tells how the files
were cut. Files that were cut otherwise, or beside a `shoal.json` that cannot be read, are worth nothing to us: they are
removed, with a warning, and the tier starts empty. That is never done while somebody else holds the lock.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from pathlib import Path

import msgspec

from shoal_core.errors import ConfigError

FORMAT = 1
_OURS = re.compile(r"(segment|entries)-(\d{4,})")
_LOG = logging.getLogger(__name__)


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the files are cut: the content of `shoal.json`."""

    format: int
    slab_bytes: int
    slabs_per_segment: int
    classes: tuple[int, ...]


def lock(directory: Path) -> int:
    """Make the directory if need be and lock it; the descriptor that holds the lock."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"disk tier directory {directory}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise ConfigError(f"disk tier directory {directory} cannot be locked: {error.strerror}") from error
        raise ConfigError(f"disk tier directory {directory} is in use by process {holder}") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def prepare(directory: Path, wanted: Layout, slab_count: int, region_bytes: int) -> tuple[Layout, str]:
    """The layout to use, with all files of another one removed, and why they were ('' when they were not).

    The segments' length is kept as it was, so that a tier whose budget was changed keeps what still fits.
    """
    found, complaint = _read(directory / "shoal.json")
    if found is not None:
        if msgspec.structs.replace(found, slabs_per_segment=wanted.slabs_per_segment) == wanted:
            _cut_to(directory, found, slab_count, region_bytes)
            return found, ""
        complaint = "it was made with other slab sizes or by another version"
    leftovers = [path for path in directory.iterdir() if _OURS.fullmatch(path.name)]
    if leftovers:
        _LOG.warning("disk tier %s starts empty: %s", directory, complaint)
    for path in leftovers:
        path.unlink()
    temporary = directory / "shoal.json.new"
    temporary.write_bytes(msgspec.json.encode(wanted))
    temporary.replace(directory / "shoal.json")
    return wanted, complaint if leftovers else ""


def _read(path: Path) -> tuple[Layout | None, str]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Layout), ""
    except FileNotFoundError:
        return None, "shoal.json is missing"
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        return None, f"shoal.json cannot be read: {error}"


def _cut_to(directory: Path, layout: Layout, slab_count: int, region_bytes: int) -> None:
    """Give back what a smaller budget no longer covers."""
    for path in directory.iterdir():
        match = _OURS.fullmatch(path.name)
        if match is None:
            continue
        kept = max(0, slab_count - int(match[2]) * layout.slabs_per_segment)
        bytes_max = kept * (layout.slab_bytes if match[1] == "segment" else region_bytes)
        if kept == 0:
            path.unlink()
        elif path.stat().st_size > bytes_max:
            os.truncate(path, bytes_max)
