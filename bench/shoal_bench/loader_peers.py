"""Samples per second beside MosaicML Streaming, WebDataset and torch's loader, on the same data and machine.

The same samples of 110 KB as files, as tar shards and as Streaming's own shards, all local and in the page cache: what
each loader has after its first epoch. Ours are files and the tar shards through a node. Every loader runs in a process
of its own (the host libraries in their locked environments, `tools/hosts`) and goes through one epoch when it is told
to. They take turns, so that a busy machine disturbs all alike, and what they import is outside of the clock. Same batch
size, same number of workers, shuffled as each does it, bytes handed over undecoded (`collate_fn=list`), and as views.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shoal_bench import epochs, pairs, places
from shoal_bench.report import Report
from shoal_core.limits import MIB

_REPOSITORY = Path(__file__).resolve().parents[2]
WORKERS = 0, 2
_SHARD_SAMPLES = 128
_MAKE_S = 1800.0
"""The first run makes the environments."""


def run(report: Report) -> None:
    """Per number of workers and form of ours, a row beside each peer."""
    count = epochs.file_count(report)
    with places.directory() as place, places.node(place, 1024 * MIB) as node, contextlib.ExitStack() as stack:
        paths = epochs.write_files(place / "files", count)
        _write_shards(place / "shards", paths)
        commands = {
            "files": _own("files", f"file://{place}/files", node.unix),
            "files as views": _own("views", f"file://{place}/files", node.unix),
            "tar shards": _own("webdataset", f"file://{place}/shards", node.unix),
            "torch's loader over files": _own("plain", str(place / "files")),
        } | _hosts(report, place)  # fmt: skip
        readers = {name: stack.enter_context(_reader(command, count)) for name, command in commands.items()}
        for workers in WORKERS:
            _rows(report, {name: partial(reader, workers) for name, reader in readers.items()}, workers)


def _rows(report: Report, sides: dict[str, pairs.Side], workers: int) -> None:
    own = ["files", "files as views", "tar shards"]
    peers = [name for name in sides if name not in own]
    mine, theirs = pairs.alternate(
        [sides[name] for name in own], [sides[name] for name in peers], report.rounds(10), 2
    )  # fmt: skip
    for name, seconds in zip(own, mine, strict=True):
        for peer, reference in zip(peers, theirs, strict=True):
            pair = pairs.of(seconds, reference)
            report.row(
                f"epochs of samples of 110 KB, {workers} workers: {name}", 1 / pair.ours_s, 1 / pair.reference_s,
                "samples/s", ratio=pair.speed, reference_name=peer, at_least=1.0,
            )  # fmt: skip


def _own(kind: str, where: str, *address: str) -> list[str]:
    return [sys.executable, "-m", "shoal_bench.epoch_reader", kind, where, str(epochs.BATCH), *address]


def _hosts(report: Report, place: Path) -> dict[str, list[str]]:
    """By name: the command that reads. What cannot run here is skipped."""
    found: dict[str, list[str]] = {}
    for host, name in (("mosaic", "MosaicML Streaming"), ("webdataset", "WebDataset")):
        script = _REPOSITORY / "tests" / "hosts" / host / "epochs.py"
        tool = _REPOSITORY / "tools" / "hosts"
        if not script.exists():
            report.skip(f"epochs beside {name}", "its environment is made by the tools of a checkout")
            continue
        done = subprocess.run([tool, host], capture_output=True, text=True, timeout=_MAKE_S, check=False)
        if done.returncode:
            report.skip(f"epochs beside {name}", done.stderr.strip().splitlines()[-1])
            continue
        folders = [place / "files", place / "mosaic"] if host == "mosaic" else [place / "shards"]
        found[name] = [done.stdout.strip(), *map(str, [script, *folders, epochs.BATCH])]
    return found


def _write_shards(folder: Path, paths: Sequence[str]) -> None:
    """The files as samples of tar shards."""
    folder.mkdir()
    for start in range(0, len(paths), _SHARD_SAMPLES):
        with tarfile.open(folder / f"{start // _SHARD_SAMPLES:03}.tar", "w") as shard:
            for number, path in enumerate(paths[start : start + _SHARD_SAMPLES], start):
                content = Path(path).read_bytes()
                for name, data in ((f"{number:05}.jpg", content), (f"{number:05}.cls", b"0")):
                    header = tarfile.TarInfo(name)
                    header.size = len(data)
                    shard.addfile(header, io.BytesIO(data))


@contextlib.contextmanager
def _reader(command: Sequence[str], count: int) -> Iterator[Callable[[int], float]]:
    """The process: given a number of workers, seconds per sample of one epoch, as it says."""
    process: Any = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )

    def epoch(workers: int) -> float:
        process.stdin.write(f"{workers}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(command[1:])} ended with {process.wait(timeout=20)}")
        told = json.loads(line)
        assert told["samples"] == count, (command, told)
        return told["seconds"] / count

    try:
        yield epoch
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
