"""kubectl shoal bench: read a data set through a cache node, twice, and say how fast and from where.

A program in a node's pod reads what lies below the URL in order, up to --bytes: once as it finds the cache, and once
more. It is a reader beside that node, with its memory mapped, so the second figure is what a pod there gets at best,
and the first what filling costs if it was cold. One process, four threads, in the pod's own share of memory and
processors; nothing is evicted beforehand. `make bench` measures Shoal itself.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from kubectl_shoal import in_pod, objects, output
from kubectl_shoal.kubectl import Kubectl, Refused
from shoal_core import units

THREADS = 4
BYTES_DEFAULT = 1 << 30
PROGRAM = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
import shoal
address, url, most, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
step = 4 << 20
def read(piece):
    info, offset, size = piece
    return len(client.read(info, offset, size))
with shoal.connect(address) as client:
    pieces, total = [], 0
    try:
        found = client.list(url if url.endswith("/") else url + "/") or [client.info(url)]
    except shoal.errors.NotFound:
        found = [client.info(url)]
    for info in found:
        for offset in range(0, info.size, step):
            if total < most:
                size = min(step, info.size - offset, most - total)
                pieces.append((info, offset, size))
                total += size
    passes = []
    for _ in range(2):
        before, began = dict(client.stats().hits), time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            done = sum(pool.map(read, pieces))
        seconds = time.perf_counter() - began
        hits = client.stats().hits
        doors = {door: hits[door] - before[door] for door in hits if hits[door] != before[door]}
        passes.append({"bytes": done, "seconds": seconds, "reads": len(pieces), "doors": doors})
print(json.dumps({"objects": len(found), "passes": passes}))
"""
"""For the Python in the node's image, which has Shoal's client; the plugin itself has not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="what to read: shoal://images, shoal://images/train")
    parser.add_argument("--bytes", metavar="N", type=int, default=BYTES_DEFAULT, help="at most (default 1 GiB)")
    in_pod.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    kubectl = Kubectl.of(arguments)
    pod, (url,) = in_pod.pod_for(arguments, kubectl, [arguments.url])
    command = ["python", "-c", PROGRAM, pod.socket, url, str(arguments.bytes), str(THREADS)]
    code, printed, errors = kubectl.exec(pod.namespace, pod.name, objects.CONTAINER, command)
    if code:
        raise Refused(f"{arguments.url}: {errors.strip().splitlines()[-1] if errors.strip() else f'exit code {code}'}")
    result = {"url": arguments.url, "pool": pod.pool, "node": pod.node, **json.loads(printed)}
    output.write(shown(result) if arguments.output == "table" else output.document(result, arguments.output))
    return 0


def shown(result: dict[str, Any]) -> str:
    """The table."""
    rows = [
        [
            name,
            units.size(each["bytes"]),
            f"{each['seconds']:.2f} s",
            units.rate(each["bytes"] / max(each["seconds"], 1e-9)),
            ", ".join(f"{count:,} {door}" for door, count in sorted(each["doors"].items())),
        ]
        for name, each in zip(("as found", "again"), result["passes"], strict=True)
    ]
    head = f"{result['objects']:,} objects, read by a process beside {result['node']} of pool {result['pool']}\n"
    return output.printable(head.rstrip("\n")) + "\n" + output.table(("PASS", "BYTES", "TIME", "RATE", "FROM"), rows)
