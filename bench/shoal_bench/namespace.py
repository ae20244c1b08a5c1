"""One network namespace of this machine, without a name: it is held by a descriptor and vanishes with this process.

Processes, threads and sockets made inside belong to it, whoever uses them later. Needs root and CAP_SYS_ADMIN, and the
tools ip and tc; what is missing is an OSError. For benchmarks and tests between hosts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence

_CLONE_NEWNET = 0x40000000
_COMMAND_S = 10.0

_libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """This machine lends no network namespaces; the text says what is missing."""


class Namespace:
    """One network namespace without a name, with its loopback up."""

    def __init__(self) -> None:
        before = _own_namespace()
        try:
            if _libc.unshare(_CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare of the network")
            self._descriptor = _own_namespace()
            _enter(before)
        finally:
            os.close(before)
        try:
            self.ip("link set lo up")
        except OSError:
            self.close()
            raise

    @property
    def path(self) -> str:
        """For commands that take a namespace: nsenter --net=..., ip link ... netns ..."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread, and what it starts meanwhile, is in the namespace."""
        before = _own_namespace()
        try:
            _enter(self._descriptor)
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(before)

    def ip(self, *commands: str) -> None:
        self._run("ip", commands)

    def tc(self, *commands: str) -> None:
        self._run("tc", commands)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _run(self, tool: str, commands: Sequence[str]) -> None:
        text = "\n".join(commands) + "\n"
        with self.inside():
            done = subprocess.run(
                [tool, "-batch", "-"], input=text, capture_output=True, text=True, check=False, timeout=_COMMAND_S
            )
        if done.returncode:
            raise OSError(f"{tool}: {done.stderr.strip()}\n{text}")


def enter(path: str) -> None:
    """The calling thread is in the namespace at `path` (Namespace.path) from now on: for a child's first step."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(descriptor)
    finally:
        os.close(descriptor)


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
