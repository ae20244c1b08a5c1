"""The files that the rules of the repository are about: what git tracks, and what it would track."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("core", "transport", "client", "cache-node", "bench")


@functools.cache
def files() -> tuple[str, ...]:
    """Paths relative to the repository, tracked or about to be, that exist."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    ).stdout.decode()
    return tuple(sorted(name for name in set(listed.split("\0")) if name and (REPOSITORY / name).is_file()))


def python_files() -> list[str]:
    return [name for name in files() if name.endswith(".py")]


def text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")
