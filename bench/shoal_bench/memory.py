"""Does the node keep to its memory budget?

The bound is budget (index included) + 150 MiB + fills in flight. Counted against it: the node's private memory (its
anonymous pages and mapped files, from /proc) at its highest, and all of its segments, whether every page of them was
mapped by the node or not. One run turns a cache over ten times, half of it through shared memory. One holds a
million blocks of 1 KiB, where the index is what counts; its bytes per block have a bound of their own. What is too much
ends the run with an error.
"""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import shoal
from shoal_bench import places
from shoal_bench.places import BLOCK_BYTES, BenchNode
from shoal_bench.report import Report
from shoal_core.limits import INDEX_ENTRY_BYTES, MIB

PROCESS_BYTES = 150 * MIB
CONCURRENCY = 16
"""The node's default: so many reads of BLOCK_BYTES from the origin are in flight at once."""
TURNOVERS = 10
MILLION = 1 << 20
_SMALL_BLOCK_BYTES = 1024
_SAMPLE_S = 0.02


def run(report: Report) -> None:
    """Rows for memory in MiB, index bytes per block, and seconds of the long run."""
    _turn_over(report)
    _million(report)


def _turn_over(report: Report) -> None:
    budget = 256 * MIB
    with places.directory() as place, places.node(place, budget) as node, _Watch(node) as watch:
        url = places.write_object(place / "objects" / "large", 2 * budget)
        with shoal.connect(node.unix) as local, shoal.connect(node.tcp) as remote:
            target = memoryview(bytearray(2 * budget))
            clients = itertools.cycle((local, remote))
            values = local.node_stats()
            while values["fill_bytes"] < (4 if report.quick else TURNOVERS) * budget:
                next(clients).read_into(url, target)
                values = local.node_stats()
        turned = values["fill_bytes"] / budget
        _rows(report, f"node memory, cache of 256 MiB turned over {turned:.1f} times", values, watch, budget)


def _million(report: Report) -> None:
    count = MILLION // 16 if report.quick else MILLION
    size = count * _SMALL_BLOCK_BYTES
    budget = (size + count * INDEX_ENTRY_BYTES) * 5 // 4 + 64 * MIB
    with (
        places.directory() as place,
        places.node(place, budget, fill={"block_size_bytes": _SMALL_BLOCK_BYTES}) as node,
        _Watch(node) as watch,
    ):
        url = places.write_object(place / "objects" / "large", size)
        with shoal.connect(node.tcp) as client:
            client.info(url)
            chunk = memoryview(bytearray(16 * MIB))
            begin = time.perf_counter()
            for start in range(0, size, len(chunk)):
                client.read_into(url, chunk, start)
            seconds = time.perf_counter() - begin
            values = client.node_stats()
            held = client.inspect([url])[0].block_count
        if held != count:
            raise RuntimeError(f"of {count} blocks the cache of {budget} bytes holds {held}")
        _rows(report, f"node memory, {count} blocks of 1 KiB", values, watch, budget)
        report.row(
            f"index, {count} blocks", values["index_memory_bytes"] / count, None, "B/block",
            at_most=float(INDEX_ENTRY_BYTES),
        )  # fmt: skip
        report.row(f"cold read of {count} blocks of 1 KiB", seconds / count * 1e6, None, "us")


def _rows(report: Report, question: str, values: dict[str, Any], watch: _Watch, budget: int) -> None:
    segments = sum(segment["bytes"] for segment in values["segments"])
    used = segments + watch.private_bytes_max
    bound = budget + PROCESS_BYTES + CONCURRENCY * BLOCK_BYTES
    report.row(question, used / MIB, None, "MiB", at_most=bound / MIB)
    report.note(
        f"{question}: {segments / MIB:.0f} MiB of segments, at most {watch.private_bytes_max / MIB:.0f} MiB of its own "
        f"({watch.private_bytes_first / MIB:.0f} at start), budget {budget / MIB:.0f} MiB"
    )
    if used > bound:
        raise RuntimeError(f"{question}: {used} bytes in use, {bound} allowed")


class _Watch:
    """The node's private memory, looked at all the time; its highest."""

    def __init__(self, node: BenchNode) -> None:
        self._status = Path(f"/proc/{node.process_id}/status")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.private_bytes_first = self.private_bytes_max = self._private_bytes()

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self.private_bytes_max = max(self.private_bytes_max, self._private_bytes())

    def _private_bytes(self) -> int:
        """Anonymous and file pages; pages of segments are shared memory and counted as budget."""
        fields = dict(line.split(":", 1) for line in self._status.read_text().splitlines())
        return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
