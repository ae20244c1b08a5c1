"""Whether a directory is where its configuration means the disk tier to be, looked at before anything is written.

A disk that did not come up leaves an empty directory of the root file system, and a tier there would fill the machine
up. So `nvme.require_mount` wants the directory to lie on a file system that is mounted at or above it, as a whole: what
a container sees of a host's directory is a mount as well, but of a part of the host's file system. And a budget that
the file system could never hold is an error at the start, not at the first write beyond it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from shoal_core.config import Nvme
from shoal_core.errors import ConfigError

MOUNTS = "/proc/self/mountinfo"
_ESCAPED = re.compile(r"\\([0-7]{3})")


class _Mount(NamedTuple):
    at: str
    root: str
    """What of its file system is there."""
    subvolume: str
    """The part that counts as a whole file system, where it has such parts; else empty."""


def check(place: Nvme, path: str) -> None:
    """ConfigError whose field names begin with `path`."""
    directory = Path(os.path.realpath(place.directory))
    while not directory.exists():
        directory = directory.parent
    try:
        if place.require_mount:
            wrong = refusal(os.path.realpath(place.directory), Path(MOUNTS).read_text("utf-8", "surrogateescape"))
            if wrong:
                raise ConfigError(f"{path}.directory: {place.directory} {wrong}; {path}.require_mount asks for one")
        found = os.statvfs(directory)
    except OSError as error:
        raise ConfigError(f"{path}.directory: {place.directory}: {error.strerror or error}") from error
    size = found.f_blocks * found.f_frsize
    if size < place.budget_bytes + place.keep_free_bytes:
        kept = f", of which {path}.keep_free_bytes = {place.keep_free_bytes} stay free" if place.keep_free_bytes else ""
        raise ConfigError(
            f"{path}.budget_bytes: {place.budget_bytes} is more than the disk at {place.directory} can hold: "
            f"it has {size} bytes{kept}"
        )


def refusal(directory: str, mounts: str) -> str:
    """What is wrong with a directory, by the text of /proc/self/mountinfo; '' when a whole file system is there."""
    covering = [mount for mount in map(_parsed, mounts.splitlines()) if mount is not None and _covers(mount, directory)]
    if not covering:
        return "is on no mounted file system"
    mount = max(enumerate(covering), key=lambda found: (len(found[1].at), found[0]))[1]  # of equals the last is on top
    if mount.at == "/":
        return "is not a mount: it lies on the root file system"
    if mount.root not in ("/", mount.subvolume):
        return f"is not a mount of a file system, but of the directory {mount.root} of one"
    return ""


def _covers(mount: _Mount, directory: str) -> bool:
    return directory == mount.at or directory.startswith(mount.at.rstrip("/") + "/")


def _parsed(line: str) -> _Mount | None:
    before, dash, after = line.partition(" - ")
    fields = before.split(" ")
    if not dash or len(fields) < 5:
        return None
    options = after.split(" ")[-1].split(",")
    subvolume = next((option.partition("=")[2] for option in options if option.startswith("subvol=")), "")
    return _Mount(_plain(fields[4]), _plain(fields[3]), subvolume)


def _plain(text: str) -> str:
    """Blanks and such are written as octal numbers."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)
