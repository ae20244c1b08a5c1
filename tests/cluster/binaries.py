"""The programs of Kubernetes, as tools/cluster-binaries built them for this machine.

`folder()` finds them and never builds: that takes minutes, which no test has. `build()` is for the command line.
"""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

from tests.cluster.processes import ClusterError, Unavailable

REPOSITORY = Path(__file__).resolve().parents[2]
_ENVIRONMENT = dict(os.environ)
"""Of the time before the tests got caches of their own: Go's and ours are the machine's."""


@functools.cache
def folder(groups: str) -> Path:
    """The folder that holds the programs of these groups; Unavailable where they are not built."""
    done = _tool("--find", "--groups", groups)
    if done.returncode in (3, 4):
        raise Unavailable(done.stderr.strip())
    if done.returncode:
        raise ClusterError(done.stderr.strip())
    return Path(done.stdout.strip())


def build(groups: str) -> None:
    """Builds what is missing of these groups, with its progress on stderr."""
    done = subprocess.run(
        [REPOSITORY / "tools" / "cluster-binaries", "--groups", groups],
        env=_ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise Unavailable("the programs of Kubernetes cannot be built here (see above)")


def stages() -> list[Path]:
    """How KWOK's nodes and pods behave."""
    return sorted((folder("kwok").parent / "stages").glob("*.yaml"))


def tools_cache() -> Path:
    """The folder outside the checkout that keeps what is made once per machine."""
    cache = _ENVIRONMENT.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(_ENVIRONMENT.get("SHOAL_TOOLS_CACHE") or os.environ.get("SHOAL_TOOLS_CACHE") or f"{cache}/shoal-tools")


def _tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [REPOSITORY / "tools" / "cluster-binaries", *arguments],
        env=_ENVIRONMENT | {"SHOAL_TOOLS_CACHE": str(tools_cache())},
        capture_output=True,
        text=True,
        check=False,
    )
