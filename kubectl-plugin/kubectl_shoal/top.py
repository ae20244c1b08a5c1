"""kubectl shoal top: the nodes of a pool at work, a line for each.

Each pod runs `shoal top --json`, which takes its node's counters twice and tells what lies between; with --watch it
goes on, so that a look costs a line and not a process. A node that does not answer has its line all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kubectl_shoal import objects, options, output
from kubectl_shoal.kubectl import Kubectl, Refused
from kubectl_shoal.objects import NodePod
from shoal_core import units
from shoal_core.errors import NotFound

Values = dict[str, Any]
AT_ONCE_MAX = 32
"""Commands in pods."""
_SOURCES = ("dram", "disk", "peer", "origin")
HEADER = (
    "POOL", "NODE", "READS", "BYTES", "DRAM", "DISK", "PEERS", "ORIGIN", "FILLED", "FROM PEERS", "DRAM USED",
    "DISK USED", "CLIENTS", "EPOCH", "TROUBLE",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL", nargs="?", help="this one only")
    options.add_watch(parser)


def run(arguments: argparse.Namespace) -> int:
    kubectl = Kubectl.of(arguments)
    found = objects.node_pods(kubectl, arguments.system_namespace)
    pods = [pod for pod in found if pod.ready and arguments.pool in (None, pod.pool)]
    if not pods:
        where = f"pool {arguments.pool}" if arguments.pool else "any pool"
        raise NotFound(f"top: no node of {where} is ready; kubectl shoal status says why")
    if arguments.watch:
        with contextlib.suppress(KeyboardInterrupt):
            _Watcher(arguments, kubectl, pods).run()
        return 0
    seconds = min(arguments.interval, 1.0)
    with ThreadPoolExecutor(AT_ONCE_MAX) as pool:
        samples = list(pool.map(lambda pod: _once(kubectl, pod, seconds), pods))
    output.write(_shown(arguments.output, pods, samples))
    return 1 if all("error" in sample for sample in samples) else 0


def _command(pod: NodePod, seconds: float, *flags: str) -> list[str]:
    return ["shoal", "top", "--json", f"--address={pod.socket}", f"--interval={seconds:g}", *flags]


def _once(kubectl: Kubectl, pod: NodePod, seconds: float) -> Values:
    command = _command(pod, seconds, "--once")
    try:
        code, printed, errors = kubectl.exec(pod.namespace, pod.name, objects.CONTAINER, command)
    except Refused as refused:
        return {"error": str(refused)}
    return {"error": errors.strip()} if code else json.loads(printed)


def _shown(form: str, pods: Sequence[NodePod], samples: Sequence[Values]) -> str:
    if form != "table":
        listed = [{"pool": pod.pool, "node": pod.node} | _told(each) for pod, each in zip(pods, samples, strict=True)]
        return output.document(listed, form)
    return output.table(HEADER, [_row(pod, sample) for pod, sample in zip(pods, samples, strict=True)])


def _told(sample: Values) -> Values:
    return {name: sample[name] for name in ("error", "seconds", "rates", "values") if name in sample}


def _row(pod: NodePod, sample: Values) -> list[str]:
    if "values" not in sample:
        silent = sample.get("error", "has not answered yet")
        return [pod.pool, pod.node, *[""] * (len(HEADER) - 3), silent]
    values, rates = sample["values"], sample["rates"]
    doors = list(rates["reads_per_s"].values())
    reads = sum(doors) + rates["granted_hits_per_s"]
    # Since the node began: of a second with three reads, shares say nothing.
    by_source = [sum(door.get(source, 0) for door in values["reads"].values()) for source in _SOURCES]
    by_source[0] += values["granted_hits"]
    return [
        pod.pool, pod.node, units.frequency(reads), units.rate(sum(rates["bytes_per_s"].values())),
        *(units.percent(count, sum(by_source)) for count in by_source),
        units.rate(rates["fill_bytes_per_s"]), units.rate(rates["peer_bytes_per_s"]),
        *(_tier(values["tiers"].get(name)) for name in ("dram", "disk")),
        str(values["clients"]), str(values["view_epoch"]), trouble(values),
    ]  # fmt: skip


def _tier(tier: Values | None) -> str:
    if tier is None:
        return ""
    return f"{units.size(tier['used_bytes'])} ({units.percent(tier['used_bytes'], tier['budget_bytes'])})"


def trouble(values: Values) -> str:
    """Counters that are best at zero."""
    found = ["disk tier failed"] * bool(values.get("disk_failed")) + ["draining"] * bool(values.get("draining"))
    for family in ("fallbacks", "corrupt_pages", "disk_errors"):
        found += [f"{kind.replace('_', ' ')} {count}" for kind, count in values.get(family, {}).items() if count]
    return ", ".join(found)


class _Watcher:
    """One thread for each node that reads its lines, and a screen that is drawn with the latest of each."""

    def __init__(self, arguments: argparse.Namespace, kubectl: Kubectl, pods: Sequence[NodePod]) -> None:
        self._arguments, self._kubectl, self._pods = arguments, kubectl, pods
        self._latest: list[Values] = [{} for _ in pods]
        self._news = threading.Condition()
        self._running = len(pods)

    def run(self) -> None:
        for number in range(len(self._pods)):
            threading.Thread(target=self._follow, args=(number,), daemon=True).start()
        while self._wait():
            time.sleep(min(self._arguments.interval / 4, 0.25))  # for the other nodes' lines of this round
            text = _shown(self._arguments.output, self._pods, list(self._latest))
            output.write((output.CLEAR if sys.stdout.isatty() else "\n") + text)
        raise Refused("top: no node answers any more")

    def _wait(self) -> bool:
        """Until there is news; False when nobody is left to tell any."""
        with self._news:
            self._news.wait(self._arguments.interval)
            return self._running > 0

    def _follow(self, number: int) -> None:
        pod = self._pods[number]
        command = _command(pod, self._arguments.interval)
        with self._kubectl.exec_lines(pod.namespace, pod.name, objects.CONTAINER, command) as lines:
            for line in lines:
                self._tell(number, json.loads(line))
        with self._news:
            self._running -= 1
        self._tell(number, {"error": "does not answer any more"})

    def _tell(self, number: int, sample: Values) -> None:
        with self._news:
            self._latest[number] = sample
            self._news.notify()
