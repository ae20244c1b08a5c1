"""`make soak SOAK_S=600`: the run, its figures, and status 1 if anything that must hold did not."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.table import Table

from tests.soak import growth, soak
from tests.soak.soak import Result


def show(result: Result) -> None:
    """Tables on stdout."""
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    times = Table(title=f"{soak.READERS} readers, {result.seconds:.0f} s", title_justify="left")
    for name in ("read", "count", "p50 ms", "p99 ms", "p99.9 ms"):
        times.add_column(name, justify="left" if name == "read" else "right")
    for kind, found in sorted(result.latencies.items()):
        percentiles = (f"{found.percentile(percent) * 1e3:.2f}" for percent in (50, 99, 99.9))
        times.add_row(kind, str(found.count), *percentiles)
    console.print(times)
    needs = Table(title="second half of the run: first third, last third", title_justify="left")
    for name in ("process", "MiB of its own", "", "descriptors", ""):
        needs.add_column(name, justify="left" if name == "process" else "right")
    for name, samples in result.growth.samples.items():
        memory = (f"{value / 2**20:.1f}" for value in growth.thirds([each.memory_bytes for each in samples]))
        descriptors = (f"{value:.0f}" for value in growth.thirds([each.descriptors for each in samples]))
        needs.add_row(name, *memory, *descriptors)
    console.print(needs)
    console.print("readers:", dict(result.sums))
    for name, stats in result.nodes.items():
        told = {key: stats[key] for key in ("fallbacks", "evictions", "peer_fills", "offered", "fills", "revokes")}
        console.print(f"{name}:", told)
    console.print(f"from the origin: {result.origin_bytes >> 20} MiB")


def main() -> int:
    with soak.directory() as place:
        result = soak.run(float(os.environ.get("SOAK_S") or 600), place)
    show(result)
    for problem in result.problems:
        print(f"PROBLEM: {problem}")
    print("soak:", "FAILED" if result.problems else "ok")
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
