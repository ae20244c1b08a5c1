"""What each cache node finds when it looks at itself: memory, limits, huge pages, disk, its door (`shoal doctor`).

What is fine is summed up in a line for each node; with -v all of it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from kubectl_shoal import objects
from kubectl_shoal.doctor.check import Check
from kubectl_shoal.kubectl import Kubectl, Refused
from kubectl_shoal.objects import NodePod

AT_ONCE_MAX = 8
"""Each measures its disk for a few seconds."""


def checks(kubectl: Kubectl, pods: list[NodePod] | None, pool: str | None) -> Iterator[Check]:
    if pods is None:
        yield Check("nodes", "skip", "you may not list their pods")
        return
    wanted = [pod for pod in pods if pool in (None, pod.pool)]
    with ThreadPoolExecutor(AT_ONCE_MAX) as threads:
        for found in threads.map(lambda pod: _checks(kubectl, pod), wanted):
            yield from found


def _checks(kubectl: Kubectl, pod: NodePod) -> list[Check]:
    if not pod.ready:
        remedy = f"kubectl describe pod -n {pod.namespace} {pod.name}"
        return [Check(pod.node, "fail", f"pool {pod.pool}: {pod.name} is not ready: {pod.phase}", remedy)]
    command = ["shoal", "doctor", "--json", f"--address={pod.socket}"]
    try:
        _, printed, errors = kubectl.exec(pod.namespace, pod.name, objects.CONTAINER, command)
    except Refused as refused:
        return [Check(pod.node, "skip", f"pool {pod.pool}: {refused}")]
    found = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    if not found:
        return [Check(pod.node, "fail", f"pool {pod.pool}: shoal doctor said nothing: {errors.strip()}")]
    told = [
        Check(f"{pod.node} {each['name']}", each["outcome"], each["finding"], each.get("remedy", ""), node=pod.node)
        for each in found
    ]
    fine = sum(each.outcome == "pass" for each in told)
    return [Check(pod.node, "pass", f"pool {pod.pool}: {fine} of {len(told)} of its own checks are fine"), *told]
