"""What this user may do, as the API server decides it: each right that a command of the plugin needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kubectl_shoal.doctor.check import Check
from kubectl_shoal.kubectl import Kubectl, Refused
from kubectl_shoal.objects import Object


class Right(NamedTuple):
    """A verb on a resource, and the commands that are nothing without it."""

    verb: str
    group: str
    resource: str
    where: str
    """"": the whole cluster; "own": the namespace at hand; "system": Shoal's."""
    commands: str

    @property
    def text(self) -> str:
        return f"{self.verb} {self.resource}" + (f".{self.group}" if self.group else "")


RIGHTS = (
    Right("list", "shoal.dev", "cachepools", "", "status, drain"),
    Right("list", "shoal.dev", "datasets", "own", "datasets, locate, explain, evict, grant"),
    Right("create", "shoal.dev", "preloads", "own", "warm"),
    Right("patch", "shoal.dev", "cachepools", "", "drain"),
    Right("list", "", "pods", "system", "status, top, locate, explain, evict, bench, doctor"),
    Right("create", "", "pods/exec", "system", "top, locate, explain, evict, drain, bench, doctor"),
    Right("get", "", "configmaps", "system", "status"),
)


def checks(kubectl: Kubectl, system_namespace: str) -> Iterator[Check]:
    """One line for what is allowed, one for each that is not."""
    places = {"": "", "own": kubectl.namespace, "system": system_namespace}
    try:
        answers = kubectl.create(*(_question(right, places[right.where]) for right in RIGHTS))
    except Refused as refused:
        yield Check("your rights", "skip", str(refused))
        return
    denied = [right for right, answer in zip(RIGHTS, answers, strict=True) if not answer["status"]["allowed"]]
    allowed = [right.text for right in RIGHTS if right not in denied]
    if allowed:
        yield Check("your rights", "pass", ", ".join(allowed))
    for right in denied:
        where = f" in {places[right.where]}" if right.where else ""
        yield Check(
            "your rights", "warn", f"you may not {right.text}{where}: no {right.commands}",
            "a cluster administrator can allow it; ClusterRoles shoal-view and shoal-edit hold what data teams need",
        )  # fmt: skip


def _question(right: Right, namespace: str) -> Object:
    resource, _, part = right.resource.partition("/")
    attributes = {
        "verb": right.verb, "group": right.group, "resource": resource, "subresource": part, "namespace": namespace,
    }  # fmt: skip
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
