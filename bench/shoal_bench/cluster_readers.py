"""Readers of a cluster in processes of their own, who begin together when they are told to.

`readers(addresses)` starts one per address and returns when all are connected; `Readers.together` gives each a job and
returns what they answer. A job is `once`: read one object of the counting origin from end to end, every byte checked;
or `loop`: go through the blocks of an object in a random order, again and again, until a time on the machine's clock,
and say what each batch took.

usage: python -m shoal_bench.cluster_readers ADDRESS    a job as JSON per line on stdin, an answer per line on stdout
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import shoal
from shoal_bench import counting_origin
from shoal_bench.hosts import Host
from shoal_core.limits import MIB

_PART_BYTES = 32 * MIB
"""Read at once; over a socket into the same memory each time."""
_END_S = 20.0
_DEADLINE_S = 300.0


class Readers:
    """Made by `readers`."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def together(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        """All of them at once; their answers."""
        self.begin(job)
        return self.answers()

    def begin(self, job: dict[str, Any]) -> None:
        for number, process in enumerate(self._processes):
            assert process.stdin is not None
            process.stdin.write(json.dumps(job | {"seed": number}) + "\n")
            process.stdin.flush()

    def answers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"a reader ended with {process.wait(_END_S)}")
            found.append(json.loads(line))
        return found


@contextlib.contextmanager
def readers(addresses: Sequence[str], host: Host | None = None) -> Iterator[Readers]:
    """One process per address."""
    command = [sys.executable, "-m", "shoal_bench.cluster_readers"]
    with host.inside() if host is not None else contextlib.nullcontext():
        processes = [
            subprocess.Popen([*command, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for address in addresses
        ]
    try:
        made = Readers(processes)
        made.answers()
        yield made
    finally:
        for process in processes:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def _once(client: shoal.Client, job: dict[str, Any]) -> dict[str, Any]:
    number, size, url = job["number"], job["size"], job["url"]
    buffer = memoryview(bytearray(min(size, _PART_BYTES)))
    local = client.address.startswith("unix:") if isinstance(client.address, str) else False
    right = True
    began_s = time.perf_counter()
    for start in range(0, size, _PART_BYTES):
        count = min(_PART_BYTES, size - start)
        if local:
            with client.view(url, start, count, deadline_s=_DEADLINE_S) as view:
                offset = start
                for part in view:
                    right = right and counting_origin.is_right(number, offset, part)
                    offset += len(part)
        else:
            client.read_into(url, buffer[:count], start, deadline_s=_DEADLINE_S)
            right = right and counting_origin.is_right(number, start, buffer[:count])
    return {"seconds": time.perf_counter() - began_s, "right": right, "stats": client.stats().as_dict()}


def _loop(client: shoal.Client, job: dict[str, Any]) -> dict[str, Any]:
    """Batches as (when it ended, seconds, bytes); the clock is CLOCK_MONOTONIC, the same for all processes."""
    block_bytes, blocks = job["block_bytes"], list(range(job["size"] // job["block_bytes"]))
    chance = random.Random(job["seed"])
    batches: list[tuple[float, float, int]] = []
    while time.monotonic() < job["until_s"]:
        chance.shuffle(blocks)
        for start in range(0, len(blocks), job["batch"]):
            asked = [(job["url"], block * block_bytes, block_bytes) for block in blocks[start : start + job["batch"]]]
            began_s = time.monotonic()
            found = client.read_many(asked)
            ended_s = time.monotonic()
            batches.append((ended_s, ended_s - began_s, sum(map(len, found))))
            if ended_s >= job["until_s"]:
                break
    return {"batches": batches, "stats": client.stats().as_dict()}


_JOBS: dict[str, Callable[[shoal.Client, dict[str, Any]], dict[str, Any]]] = {"once": _once, "loop": _loop}


def main() -> None:
    with shoal.connect(sys.argv[1]) as client:
        client.node_stats()
        print("{}", flush=True)
        for line in sys.stdin:
            job = json.loads(line)
            print(json.dumps(_JOBS[job["job"]](client, job)), flush=True)


if __name__ == "__main__":
    main()
