"""What benchmarks need around them: a directory, a node in a process of its own, objects to read, bare peers.

Everything lies in a temporary directory and is ended by its process id. Origins are local files, so that nothing but
the node is between the bytes and the reader.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import shoal
from shoal_core.errors import ShoalError
from shoal_core.limits import MIB

BLOCK_BYTES = 4 * MIB
_START_S = 60.0


class BenchNode:
    """A running node."""

    def __init__(self, process: subprocess.Popen[bytes], unix: str) -> None:
        self.process_id = process.pid
        self.unix = unix
        with shoal.connect(unix) as client:
            addresses: list[str] = client.node_stats()["addresses"]
        self.tcp = next((address for address in addresses if address.startswith("tcp:")), "")


@contextlib.contextmanager
def directory(*, on_disk: bool = False) -> Iterator[Path]:
    """A directory that is gone afterwards; `on_disk`: where a disk tier belongs (SHOAL_BENCH_DIRECTORY, else here)."""
    where = os.environ.get("SHOAL_BENCH_DIRECTORY", ".") if on_disk else None
    path = Path(tempfile.mkdtemp(prefix=".shoal-bench-" if on_disk else "shoal-bench-", dir=where)).absolute()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def node(place: Path, budget_bytes: int, **sections: Any) -> Iterator[BenchNode]:
    """A node with both doors, as `python -m shoal_node` starts it."""
    socket = place / "node.sock"
    config = {
        "node_name": "bench",
        "doors": {"unix": str(socket), "tcp": "127.0.0.1:0"},
        "dram": {"budget_bytes": budget_bytes},
        **sections,
    }
    path = place / "node.json"
    path.write_bytes(msgspec.json.encode(config))
    with (place / "node.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "shoal_node", "--config", str(path)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _wait(process, f"unix:{socket}", place / "node.log")
        yield BenchNode(process, f"unix:{socket}")
    finally:
        _end(process)


@contextlib.contextmanager
def peer(*words: str) -> Iterator[str]:
    """One of `bare_peers` in a process of its own; the line it says when it is ready."""
    with peer_process(*words) as (line, _):
        yield line


@contextlib.contextmanager
def peer_process(*words: str) -> Iterator[tuple[str, int]]:
    """The same, and its process id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal_bench.bare_peers", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode().strip()
        if not line:
            raise RuntimeError(f"bare peer {' '.join(words)} did not start")
        yield line, process.pid
    finally:
        _end(process)
        assert process.stdout is not None
        process.stdout.close()


def write_object(path: Path, size: int) -> str:
    """A file of random bytes; its URL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for start in range(0, size, 16 * MIB):
            file.write(os.urandom(min(16 * MIB, size - start)))
    return f"file://{path}"


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with contextlib.suppress(ShoalError):
            if Path(address.removeprefix("unix:")).exists():
                with shoal.connect(address) as client:
                    if client.node_stats()["addresses"]:  # the doors open one after the other
                        return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the node did not start: {log.read_text()[-2000:]}")
        time.sleep(0.01)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
