"""`python -m shoal_bench [NAME...]`: the benchmarks, each figure beside its reference, and one table at the end."""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import os
import platform
import shlex
import subprocess
import sys
import traceback
from pathlib import Path

import msgspec

from shoal_bench.report import Report

MODULES = {
    "shared_memory": "warm 4 MiB blocks over shared memory",
    "tcp": "warm 4 MiB blocks over TCP",
    "small_reads": "batches of 256 reads of 4 KiB and 64 KiB",
    "nvme_tier": "the disk tier alone, beside O_DIRECT",
    "disk_read": "a client's read of blocks that are on disk only",
    "fill": "cold reads from a local S3 server",
    "small_cache": "epochs through a memory smaller than the data set",
    "loader_files": "warm epochs over files of 110 KB, beside plain open and S3",
    "loader_batches": "batches of samples beside single gets",
    "loader_views": "samples handed over without a copy",
    "loader_peers": "epochs beside MosaicML Streaming, WebDataset and torch's loader",
    "loader_resume": "the first batch after a resume in mid-epoch",
    "cluster_tcp": "warm blocks over TCP between two hosts, with a view of two nodes",
    "cluster_once": "one object for 32 readers at once: what it costs the origin",
    "cluster_peer_fill": "blocks that a node brings from another",
    "cluster_loss": "readers' throughput when one of three nodes is killed",
    "cluster_join": "what moves when an eleventh node joins ten",
    "memory": "the node's memory over ten turnovers, and with a million blocks",
    "facts": "latencies, start times, import",
}


def machine() -> str:
    """Cores, processor and system, for the heading."""
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {model}, Linux {platform.release()}, Python {platform.python_version()}"


def commit() -> str:
    """Which version was measured: SHOAL_BENCH_COMMIT for an exported one, else the checkout's, with + when changed."""
    if given := os.environ.get("SHOAL_BENCH_COMMIT"):
        return given
    try:
        words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(prog="shoal bench", description=__doc__)
    listed = "; ".join(f"{name}: {text}" for name, text in MODULES.items())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which; all without. {listed}")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows there too")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a result")
    arguments = parser.parse_args()
    names = [name.replace("-", "_") for name in arguments.names]
    unknown = [name for name in names if name not in MODULES]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(MODULES)}")
    report = Report(quick=arguments.quick)
    version = commit()
    failed = False
    for name in names or MODULES:
        report.say(f"[bold]{name}[/bold]: {MODULES[name]}")
        try:
            importlib.import_module(f"shoal_bench.{name}").run(report)
        except Exception as error:  # the others' rows are worth having
            traceback.print_exc()
            report.note(f"{name} FAILED: {error}")
            failed = True
    date = dt.datetime.now(dt.UTC).date()
    command = shlex.join(["python", "-m", "shoal_bench", *sys.argv[1:]])
    report.print(f"{command}\n{machine()}, {date}, commit {version}{', quick' if arguments.quick else ''}")
    if arguments.json is not None:
        arguments.json.write_bytes(
            msgspec.json.encode(
                {"command": command, "machine": machine(), "date": str(date), "commit": version} | report.as_dict()
            )
        )
    if report.missed:
        print(f"{len(report.missed)} targets missed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
