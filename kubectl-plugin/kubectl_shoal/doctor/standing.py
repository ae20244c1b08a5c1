"""Pools, data sets and preloads by their conditions, and the next step where a condition asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kubectl_shoal import conditions, objects
from kubectl_shoal.doctor.check import Check
from kubectl_shoal.kubectl import Kubectl, Refused
from kubectl_shoal.objects import Object

NEXT_STEPS = {
    "CredentialsDenied": "kubectl shoal grant dataset {name} -n {namespace} | kubectl apply -f -",
    "SecretMissing": "kubectl create secret generic NAME -n {namespace} --from-literal=AWS_ACCESS_KEY_ID=... "
    "--from-literal=AWS_SECRET_ACCESS_KEY=..., as spec.source.secretRef names it",
    "CredentialsRejected": "correct what the secret of spec.source.secretRef holds; the nodes read it anew",
    "OriginUnreachable": "check spec.source.endpoint, and that the nodes may reach it (NetworkPolicy, proxy, DNS)",
    "NotFound": "spec.source.uri is for good: make a new Dataset with the right one",
    "PoolNotFound": "make that CachePool, or a new Dataset that names another",
    "DatasetNotFound": "make that Dataset; its Preload begins by itself",
    "NoMatchingNodes": "kubectl label node NODE KEY=VALUE as spec.nodeSelector says, or correct spec.nodeSelector",
    "PathConflict": "give one of the pools another spec.nvme[0].path",
    "PodsNotReady": "kubectl describe pods -n shoal-system -l shoal.dev/pool={name}",
    "NodesNotReady": "kubectl get nodes; they come back by themselves",
    "Fallbacks": "kubectl shoal top {name} counts them by node",
    "ViewNotFollowed": "the nodes cannot read their ConfigMap: kubectl logs -n shoal-system -l shoal.dev/pool={name}",
    "NotSeen": "look at the operator above",
    "UnsupportedSpec": "upgrade the operator, or take out what it does not know",
    "UnsupportedField": "upgrade the operator, or take out what it does not know",
}
"""By reason. What is not here, the message says itself."""


def checks(kubectl: Kubectl, pool: str | None) -> Iterator[Check]:
    """One line for each kind that is well as a whole, else one for each finding."""
    pools = [objects.pool(kubectl, pool)] if pool is not None else objects.pools(kubectl)
    yield from _kind("CachePool", lambda: pools)
    looks: tuple[tuple[str, Callable[[], list[Object]]], ...] = (
        ("Dataset", lambda: objects.datasets(kubectl, None)),
        ("Preload", lambda: objects.preloads(kubectl, None)),
    )
    for kind, look in looks:
        try:
            yield from _kind(kind, look)
        except Refused as refused:
            yield Check(kind, "skip", str(refused))


def _kind(kind: str, look: Callable[[], list[Object]]) -> Iterator[Check]:
    found = look()
    bad = 0
    for each in found:
        for finding in conditions.findings(each):
            bad += 1
            yield _check(each, finding)
    if not bad:
        yield Check(kind, "pass", f"{len(found)}, all well" if found else "there is none")


def _check(found: Object, finding: conditions.Finding) -> Check:
    meta = found["metadata"]
    step = NEXT_STEPS.get(finding.reason, "").format(name=meta["name"], namespace=meta.get("namespace", ""))
    outcome = "fail" if finding.stalled or finding.reason == "NotSeen" else "warn"
    # The command of CredentialsDenied is in the operator's message too: once is enough.
    text = finding.message.partition("; to allow that")[0] if finding.reason == "CredentialsDenied" else finding.message
    return Check(objects.title(found), outcome, f"{finding.reason}: {text}", step)
