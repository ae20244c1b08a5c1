"""Figures without a target: how long single things take, and what `import shoal` costs."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import shoal
from shoal_bench import places
from shoal_bench.report import Report
from shoal_core.limits import MIB

_OBJECT_BYTES = 64 * MIB
_IMPORT = """
import time
begin = time.perf_counter()
import shoal
took = time.perf_counter() - begin
fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(took, fields["VmRSS"].split()[0])
"""
_RESIDENT = """
fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(fields["VmRSS"].split()[0])
"""
_CONNECT = """
import time
import shoal
begin = time.perf_counter()
client = shoal.connect(embedded=True)
client.node_stats()
print(time.perf_counter() - begin, client.node_stats()["pid"])
"""


def run(report: Report) -> None:
    """Latency percentiles, import, start and connect times."""
    with places.directory() as place:
        begin = time.perf_counter()
        with places.node(place, 256 * MIB) as node:
            report.row("node: from start to its first answer", (time.perf_counter() - begin) * 1e3, None, "ms")
            url = places.write_object(place / "objects" / "large", _OBJECT_BYTES)
            with shoal.connect(node.tcp) as client:
                _latencies(report, client, url)
        _import(report)
        _embedded(report, place)


def _latencies(report: Report, client: shoal.Client, url: str) -> None:
    client.read(url)

    def read() -> None:
        client.read(url, random.randrange(_OBJECT_BYTES // 4096) * 4096, 4096)

    took = sorted(_timed(read) for _ in range(report.rounds(3000)))
    for percent in (50, 90, 99):
        report.row(f"TCP, one 4 KiB read, {percent} % within", took[len(took) * percent // 100] * 1e6, None, "us")


def _import(report: Report) -> None:
    found = [_run(_IMPORT).split() for _ in range(report.rounds(7))]
    bare = [_run(_RESIDENT) for _ in range(3)]
    report.row("import shoal", statistics.median(float(took) for took, _ in found) * 1e3, None, "ms")
    report.row(
        "import shoal, resident memory", statistics.median(int(size) for _, size in found) / 1024,
        statistics.median(int(size) for size in bare) / 1024, "MiB", reference_name="Python alone",
    )  # fmt: skip


def _embedded(report: Report, place: Path) -> None:
    """In directories of its own, so that nobody's node is found or disturbed."""
    environment = {
        **os.environ, "SHOAL_RUNTIME_DIR": str(place / "runtime"), "SHOAL_CACHE_DIR": str(place / "cache"),
        "XDG_CONFIG_HOME": str(place),
    }  # fmt: skip
    environment.pop("SHOAL_CONFIG", None)
    environment.pop("KUBERNETES_SERVICE_HOST", None)
    first, process_id = _run(_CONNECT, environment).split()
    try:
        again = [float(_run(_CONNECT, environment).split()[0]) for _ in range(report.rounds(7))]
    finally:
        os.kill(int(process_id), 15)
    report.row("connect, embedded node to be started", float(first) * 1e3, None, "ms")
    report.row("connect, embedded node running", statistics.median(again) * 1e3, None, "ms")


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _run(program: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()
