"""kubectl shoal status: pools, their nodes, and whatever of Shoal's objects needs somebody's attention.

Two tables and a list. Pods and the view tell of nodes what a CachePool's status only counts; who may not read them gets
the rest, and a remark.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

from kubectl_shoal import conditions, objects, options, output, watching
from kubectl_shoal.kubectl import Kubectl, Refused
from kubectl_shoal.objects import NodePod, Object


class Seen(NamedTuple):
    """What one look found."""

    pools: list[Object]
    pods: list[NodePod]
    views: dict[str, dict[str, Object]]
    """By pool, then by node."""
    others: list[Object]
    """Datasets and Preloads."""
    hidden: list[str]
    """What this user may not see."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL", nargs="?", help="this one only")
    options.add_watch(parser)


def run(arguments: argparse.Namespace) -> int:
    kubectl = Kubectl.of(arguments)

    def look() -> str:
        seen = find(arguments, kubectl)
        return shown(seen, time.time()) if arguments.output == "table" else _document(seen, arguments.output)

    watching.show(arguments, look)
    return 0


def find(arguments: argparse.Namespace, kubectl: Kubectl) -> Seen:
    """One look at everything."""
    hidden: list[str] = []
    pools = [objects.pool(kubectl, arguments.pool)] if arguments.pool else objects.pools(kubectl)
    names = {each["metadata"]["name"] for each in pools}
    pods: list[NodePod] = []
    views: dict[str, dict[str, Object]] = {}
    others: list[Object] = []
    try:
        pods = [pod for pod in objects.node_pods(kubectl, arguments.system_namespace) if pod.pool in names]
        for pool, namespace in {(pod.pool, pod.namespace) for pod in pods}:
            views[pool] = objects.view(kubectl, namespace, pool)
    except Refused as refused:
        hidden.append(f"nodes: {refused}")
    try:
        others = _others(kubectl, names)
    except Refused as refused:
        hidden.append(f"data sets: {refused}")
    return Seen(pools, pods, views, others, hidden)


def _others(kubectl: Kubectl, pools: set[str]) -> list[Object]:
    datasets = [each for each in objects.datasets(kubectl, None) if each["spec"]["pool"] in pools]
    names = {(each["metadata"]["namespace"], each["metadata"]["name"]) for each in datasets}
    preloads = objects.preloads(kubectl, None)
    return datasets + [
        each for each in preloads if (each["metadata"]["namespace"], each["spec"]["dataset"]) in names
    ]  # fmt: skip


def shown(seen: Seen, now_s: float) -> str:
    """The report."""
    if not seen.pools:
        return "There is no CachePool. examples/04-cluster/pool.yaml is one.\n"
    parts = [_pools(seen, now_s)]
    if seen.pods:
        parts.append(_nodes(seen, now_s))
    parts.append(_attention(seen, now_s))
    parts += [f"Not shown: {output.printable(each)}\n" for each in seen.hidden]
    return "\n".join(parts)


def _pools(seen: Seen, now_s: float) -> str:
    rows: list[list[str]] = []
    for pool in seen.pools:
        status = pool.get("status", {})
        rows.append([
            pool["metadata"]["name"],
            conditions.status_of(pool, "Ready"),
            *(str(status.get(name, "")) for name in ("nodes", "capacity", "used", "hitRatio", "viewEpoch", "version")),
            objects.age(pool["metadata"]["creationTimestamp"], now_s),
        ])  # fmt: skip
    header = ("POOL", "READY", "NODES", "CAPACITY", "USED", "HIT RATIO", "EPOCH", "VERSION", "AGE")
    return output.table(header, rows)


def _nodes(seen: Seen, now_s: float) -> str:
    rows: list[list[str]] = []
    for pod in seen.pods:
        told = seen.views.get(pod.pool, {}).get(pod.node, {})
        rows.append([
            pod.pool, pod.node, str(told.get("status", "not in the view")), str(told.get("zone", "")),
            pod.name, "Ready" if pod.ready else pod.phase, str(pod.restarts), pod.address,
            objects.age(pod.created, now_s),
        ])  # fmt: skip
    return output.table(("POOL", "NODE", "SERVES AS", "ZONE", "POD", "STATE", "RESTARTS", "ADDRESS", "AGE"), rows)


def attention(seen: Seen) -> list[tuple[Object, conditions.Finding]]:
    """What somebody should look at; first what does not come right by itself."""
    found = [(each, finding) for each in (*seen.pools, *seen.others) for finding in conditions.findings(each)]
    return sorted(found, key=lambda pair: not pair[1].stalled)


def _attention(seen: Seen, now_s: float) -> str:
    lines: list[str] = []
    for found, finding in attention(seen):
        since = f", for {objects.age(finding.since, now_s)}" if finding.since else ""
        lines += [
            f"{objects.title(found)}: {finding.reason}{since}",
            f"  {output.printable(finding.message)}",
        ]
    counted = f"{len(seen.others)} data sets and preloads"
    if not lines:
        return f"All is well: {len(seen.pools)} pool{'s' * (len(seen.pools) != 1)}, {counted}.\n"
    return "Needs attention:\n" + "".join(f"  {line}\n" for line in lines)


def _document(seen: Seen, form: str) -> str:
    values: dict[str, Any] = {
        "pools": seen.pools,
        "nodes": [
            pod._asdict() | {"view": seen.views.get(pod.pool, {}).get(pod.node)} for pod in seen.pods
        ],
        "attention": [
            {"kind": found["kind"], "name": found["metadata"]["name"], "namespace": found["metadata"].get("namespace")}
            | finding._asdict()
            for found, finding in attention(seen)
        ],
        "hidden": seen.hidden,
    }  # fmt: skip
    return output.document(values, form)
