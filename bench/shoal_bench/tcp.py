"""How close does a large read over TCP come to bare sockets?

The reference sends from a mapped memfd and receives with recv_into (MSG_WAITALL), block by block, into one preallocated
buffer: one request per batch, as many bytes a batch as ours, as many connections, one thread for each on both sides. It
is measured with the check of every 64 KiB page that ours always makes, and without.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Sequence

import shoal
from shoal_bench import pairs, places
from shoal_bench.bare_reader import BareReader
from shoal_bench.report import Report
from shoal_core.limits import MIB

OBJECT_BYTES = 256 * MIB
_BUDGET_BYTES = 1024 * MIB


def run(report: Report) -> None:
    """Two rows for one connection, two for two."""
    with places.directory() as place, places.node(place, _BUDGET_BYTES) as node:
        url = places.write_object(place / "objects" / "large", OBJECT_BYTES)
        with places.peer("send", str(OBJECT_BYTES)) as port, shoal.connect(node.tcp) as client:
            client.read(url)
            for connections in (1, 2):
                _rows(report, client, url, int(port), connections)


def _rows(report: Report, client: shoal.Client, url: str, port: int, connections: int) -> None:
    size = OBJECT_BYTES // connections
    whole = memoryview(mmap.mmap(-1, OBJECT_BYTES))
    whole[:] = bytes(OBJECT_BYTES)
    parts = [(whole[start : start + size], start) for start in range(0, OBJECT_BYTES, size)]
    bare = [BareReader(port) for _ in parts]

    def ours(number: int) -> None:
        target, offset = parts[number]
        assert client.read_into(url, target, offset) == len(target)

    def checked(number: int) -> None:
        bare[number].read(*parts[number], check=True)

    def unchecked(number: int) -> None:
        bare[number].read(*parts[number], check=False)

    sides = [_threads(work, connections) for work in (ours, checked, unchecked)]
    (mine,), theirs = pairs.alternate(sides[:1], sides[1:], report.rounds(20), 1)
    for seconds, name, at_least in zip(
        theirs, ("a bare loop with digests", "a bare loop without"), (0.95, 0.85), strict=True
    ):
        pair = pairs.of(mine, seconds)
        gigabytes = OBJECT_BYTES / 1e9
        report.row(
            f"TCP loopback, {connections} connection{'s' * (connections > 1)}: read_into of 4 MiB blocks",
            gigabytes / pair.ours_s, gigabytes / pair.reference_s, "GB/s",
            ratio=pair.speed, reference_name=name, at_least=at_least,
        )  # fmt: skip
    for connection in bare:
        connection.close()


def _threads(work: Callable[[int], None], count: int) -> pairs.Side:
    """All numbers at once, one thread for each; the first is this one."""

    def together() -> None:
        others: Sequence[threading.Thread] = [threading.Thread(target=work, args=(n,)) for n in range(1, count)]
        for thread in others:
            thread.start()
        work(0)
        for thread in others:
            thread.join()

    return pairs.timed(together)
