"""kubectl shoal drain: name a node in its pools' spec.drainNodes, and follow it until it has handed everything over.

The operator does the rest: the node becomes `draining` in the view and is told so. It stays drained until --cancel
takes its name out again. (A cordoned node is drained without this command.) How far it is the node says itself.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from kubectl_shoal import objects, output, progress
from kubectl_shoal.kubectl import Kubectl, Refused
from kubectl_shoal.objects import NodePod, Object
from shoal_core.errors import BadRequest, DeadlineExceeded

POLL_S = 1.0
ANSWER_S = 30.0
"""For the operator to take notice."""
_WRITES_MAX = 5
"""Somebody else may change the pool meanwhile: then it is read again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", metavar="NODE", help="name of the Kubernetes node")
    parser.add_argument("--pool", metavar="NAME", help="this pool only; default: all that have a cache node there")
    parser.add_argument("--cancel", action="store_true", help="it is to stay after all")
    parser.add_argument(
        "--wait", action=argparse.BooleanOptionalAction, default=True, help="until everything is handed over (default)"
    )


def run(arguments: argparse.Namespace) -> int:
    kubectl = Kubectl.of(arguments)
    results: list[dict[str, Any]] = []
    for name in _pools(arguments, kubectl):
        changed = set_drained(kubectl, name, arguments.node, drained=not arguments.cancel)
        results.append({"pool": name, "node": arguments.node, "drained": not arguments.cancel, "changed": changed})
        if arguments.output == "table":
            verb = "stays" if arguments.cancel else "is to be drained"
            output.write(f"pool {name}: {arguments.node} {verb}{'' if changed else ', as was said before'}\n")
    if arguments.wait and not arguments.cancel:
        for result in results:
            result |= _follow(arguments, kubectl, result["pool"])
    if arguments.output != "table":
        output.write(output.document(results, arguments.output))
    return 0


def _pools(arguments: argparse.Namespace, kubectl: Kubectl) -> list[str]:
    """Those that the node is in, or whose spec names it."""
    if arguments.pool is not None:
        return [arguments.pool]
    there = {pod.pool for pod in objects.node_pods(kubectl, arguments.system_namespace) if pod.node == arguments.node}
    there |= {each["metadata"]["name"] for each in objects.pools(kubectl) if arguments.node in _named(each)}
    if not there:
        raise BadRequest(f"{arguments.node}: no pool has a cache node there; kubectl shoal status lists them")
    return sorted(there)


def _named(pool: Object) -> list[str]:
    return pool["spec"].get("drainNodes", [])


def set_drained(kubectl: Kubectl, pool: str, node: str, *, drained: bool) -> bool:
    """Whether anything had to be changed. The patch holds for the pool as it was read, or not at all."""
    for left in reversed(range(_WRITES_MAX)):
        found = objects.pool(kubectl, pool)
        named = _named(found)
        if (node in named) == drained:
            return False
        wanted = [*named, node] if drained else [each for each in named if each != node]
        version = found["metadata"]["resourceVersion"]
        changes = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": version},
            {"op": "add", "path": "/spec/drainNodes", "value": wanted},
        ]
        try:
            kubectl.patch("cachepools.shoal.dev", pool, changes)
            return True
        except Refused as refused:
            moved = objects.pool(kubectl, pool)["metadata"]["resourceVersion"] != version
            if not left or not moved or refused.reason == "Forbidden":
                raise
    raise AssertionError("the loop ends by return or raise")


def _follow(arguments: argparse.Namespace, kubectl: Kubectl, pool: str) -> dict[str, Any]:
    """What the node had handed over when it was done."""
    pod = _pod(arguments, kubectl, pool)
    if pod is None:
        output.note(f"pool {pool}: no pod is ready on {arguments.node}, so it has nothing to hand over")
        return {"done": True}
    with progress.bar(f"drain {arguments.node}", shown=arguments.output == "table") as bar:
        bar(0, 0, "waits for the operator")
        _until_told(kubectl, pod)
        handed = _handed_over(kubectl, pod)
        while handed is not None and not handed["done"]:
            moved = handed["handed_over_bytes"]
            bar(moved, 0, f"handing over, {handed['left_blocks']:,} blocks left")
            time.sleep(POLL_S)
            handed = _handed_over(kubectl, pod)
    handed = handed or {}
    if arguments.output == "table":
        output.write(
            f"pool {pool}: {arguments.node} is drained, {handed.get('handed_over_blocks', 0):,} blocks handed over\n"
        )
        if handed.get("ownerless_blocks"):
            output.note(f"pool {pool}: {handed['ownerless_blocks']:,} blocks have no other node to go to")
    return {"done": True, "handed_over": handed}


def _until_told(kubectl: Kubectl, pod: NodePod) -> None:
    deadline_s = time.monotonic() + ANSWER_S
    while (values := _asked(kubectl, pod, "stat")) is not None and not values["draining"]:
        if time.monotonic() > deadline_s:
            raise DeadlineExceeded(
                f"CachePool {pod.pool}: {pod.node} was not told to drain within {ANSWER_S:g} s; kubectl shoal doctor "
                "says whether an operator runs"
            )
        time.sleep(POLL_S)


def _handed_over(kubectl: Kubectl, pod: NodePod) -> dict[str, Any] | None:
    """How far it is. The command tells the node to drain as well, which it does already."""
    return _asked(kubectl, pod, "drain", pod.node, "--no-wait")


def _pod(arguments: argparse.Namespace, kubectl: Kubectl, pool: str) -> NodePod | None:
    for pod in objects.node_pods(kubectl, arguments.system_namespace):
        if pod.pool == pool and pod.node == arguments.node and pod.ready:
            return pod
    return None


def _asked(kubectl: Kubectl, pod: NodePod, *words: str) -> dict[str, Any] | None:
    """What `shoal WORDS` finds there; None: the pod has ended, so there is nothing to wait for."""
    command = ["shoal", *words, "--json", f"--address={pod.socket}"]
    try:
        code, printed, _ = kubectl.exec(pod.namespace, pod.name, objects.CONTAINER, command)
    except Refused as refused:
        if refused.reason == "NotFound":
            return None
        raise
    return json.loads(printed) if printed and not code else None
