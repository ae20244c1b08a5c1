"""Bind mounts by mount(2): a volume's directory appears, read-only, where kubelet wants it.

Mounting twice and unmounting what is not mounted are fine. What is mounted is read from the kernel's table, never
guessed from device numbers: a bind mount within one file system has the same ones.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from pathlib import Path

_NOSUID, _NODEV, _NOEXEC = 0x2, 0x4, 0x8
_READ_ONLY, _REMOUNT, _BIND = 0x1, 0x20, 0x1000
_DETACH, _NOFOLLOW = 0x2, 0x8
_TABLE = Path("/proc/self/mountinfo")
_STACKED_MAX = 16
"""Mounts over one another at one path that are taken off; more is somebody else's doing."""

_libc = ctypes.CDLL(None, use_errno=True)


def is_mounted(target: str) -> bool:
    """Something is mounted right there."""
    return _resolved(target) in _targets(_TABLE.read_text("utf-8", "surrogateescape"))


def show(source: Path, target: str) -> None:
    """`source` is what one sees at `target`, and nobody can change it through there; the directory is made."""
    if is_mounted(target):
        if _same(source, target):
            _remount(target)
            return
        hide(target)  # what an earlier life of the volume left, its directory long gone
    os.makedirs(target, mode=0o750, exist_ok=True)
    _mount(str(source), target, _BIND)
    try:
        _remount(target)
    except OSError:
        hide(target)
        raise


def hide(target: str) -> None:
    """Nothing is mounted at `target` any more, whoever still uses what was."""
    for _ in range(_STACKED_MAX):
        if not is_mounted(target):
            return
        if _libc.umount2(os.fsencode(target), _DETACH | _NOFOLLOW):
            number = ctypes.get_errno()
            if number not in (errno.EINVAL, errno.ENOENT):
                raise OSError(number, os.strerror(number), target)
    raise OSError(errno.EBUSY, f"more than {_STACKED_MAX} mounts over one another", target)


def remove(target: str) -> None:
    """Nothing is mounted at `target`, and the directory is gone."""
    hide(target)
    try:
        os.rmdir(target)
    except FileNotFoundError:
        pass


def _remount(target: str) -> None:
    # The flags of a bind mount count only when it is mounted a second time.
    _mount("none", target, _REMOUNT | _BIND | _READ_ONLY | _NOSUID | _NODEV | _NOEXEC)


def _mount(source: str, target: str, flags: int) -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(flags), None):
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}", target)


def _same(source: Path, target: str) -> bool:
    try:
        return os.path.samestat(os.stat(source), os.stat(target))
    except FileNotFoundError:
        return False


def _resolved(target: str) -> str:
    """The path as the kernel's table has it: kubelet's directory may be behind a link, the last part never is."""
    parent, name = os.path.split(target.rstrip("/"))
    return os.path.join(os.path.realpath(parent), name)


def _targets(table: str) -> set[str]:
    """Where something is mounted. The table writes blanks and the like in a path as \\ooo."""
    paths = (line.split(" ")[4] for line in table.splitlines())
    return {re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path) for path in paths}
