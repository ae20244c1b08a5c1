"""buildah with images of its own: in the tools' cache, away from what the machine's user builds."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import binaries
from tests.cluster.processes import run

_BUILD_TIMEOUT_S = 1800


class Storage:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def buildah(self, command: str, *argv: object) -> str:
        places = ("--root", self.directory / "storage", "--runroot", "/run/shoal-images")
        return run("buildah", *places, command, *argv, timeout_s=_BUILD_TIMEOUT_S)

    def has(self, reference: str) -> bool:
        return bool(self.buildah("images", "--quiet", "--filter", f"reference={reference}").strip())


@contextlib.contextmanager
def locked() -> Iterator[Storage]:
    """One build at a time on a machine: the second finds what the first has made."""
    directory = binaries.tools_cache() / "cluster-images"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Storage(directory)
