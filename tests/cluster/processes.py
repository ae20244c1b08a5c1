"""The programs of a cluster: started detached, known by pid and start time, ended one by one.

A cluster outlives the command that started it, so each program is written down in a file `pid/NAME` with its pid and
the time the kernel started it: a pid that somebody else got since is never signalled. Output goes to `log/NAME.log`.
What this very process started is also kept as a child, so that it can be reaped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class Unavailable(Exception):
    """There can be no cluster on this machine; the text says why. A test skips with it."""


class ClusterError(Exception):
    """Something of the cluster did not do what it was told; the text says what, and where its log is."""


def run(*argv: object, text: str | None = None, check: bool = True, timeout_s: float = 300) -> str:
    """Runs a command to its end; what it printed. ClusterError with all of that where it failed."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{' '.join(words)}: not done after {timeout_s:g} s") from error
    if check and done.returncode:
        raise ClusterError(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def wait(what: str, probe: Callable[[], object], seconds: float = 60, every_s: float = 0.1) -> None:
    """Returns when `probe()` is true; an OSError or ClusterError of it counts as not yet."""
    end = time.monotonic() + seconds
    last = ""
    while True:
        try:
            if probe():
                return
        except (OSError, ClusterError) as error:
            last = f": {error}"
        if time.monotonic() > end:
            raise ClusterError(f"{what}: not within {seconds:g} s{last}")
        time.sleep(every_s)  # other programs tell of their state in no other way


def started(pid: int) -> str | None:
    """When the kernel started this process, in its own ticks; None where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Processes:
    """The programs of one cluster, by name."""

    def __init__(self, directory: Path) -> None:
        self._pids = directory / "pid"
        self._logs = directory / "log"
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def spawn(self, name: str, argv: Sequence[object], environment: Mapping[str, str] | None = None) -> None:
        """Starts a program, unless it runs already."""
        if self.pid(name):
            return
        self._reap(name)
        self._pids.mkdir(exist_ok=True)
        self._logs.mkdir(exist_ok=True)
        words = [str(word) for word in argv]
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        self._children[name] = process
        pid = process.pid
        if words[:2] == ["nsenter", "--target"]:  # it enters a pid namespace, so the program is its child
            wait(f"start of {name}", lambda: children(pid) or process.poll() is not None, 20, 0.01)
            pid = next(iter(children(pid)), pid)
        (self._pids / name).write_text(f"{pid} {started(pid) or 'ended'}")

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def tail(self, name: str, size: int = 2000) -> str:
        try:
            return self.log(name).read_text(errors="replace")[-size:]
        except OSError:
            return ""

    def names(self) -> list[str]:
        return sorted(path.name for path in self._pids.glob("*"))

    def pid(self, name: str) -> int | None:
        """The pid of a program that was started here and still runs."""
        try:
            pid, start = (self._pids / name).read_text().split()
        except (OSError, ValueError):
            return None
        return int(pid) if started(int(pid)) == start else None

    def alive(self, name: str) -> None:
        """Does nothing; ClusterError with the end of its log where the program has ended."""
        if not self.pid(name):
            raise ClusterError(f"{name} has ended; the end of {self.log(name)}:\n{self.tail(name)}")

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM, grace_s: float = 10) -> None:
        """Ends the program and waits for its end; SIGKILL after the grace."""
        for each in (number, signal.SIGKILL):
            pid = self.pid(name)
            if pid is None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, each)
            with contextlib.suppress(ClusterError):
                wait(f"end of {name}", lambda: self.pid(name) is None, grace_s, 0.02)
        (self._pids / name).unlink(missing_ok=True)
        self._reap(name)

    def _reap(self, name: str) -> None:
        process = self._children.pop(name, None)
        if process is not None:
            process.wait(10)
