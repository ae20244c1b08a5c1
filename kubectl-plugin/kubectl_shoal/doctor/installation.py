"""Is Shoal installed, all of it, in one version, and at work: definitions, operator, CSI driver."""

from __future__ import annotations

import argparse
import datetime as dt
import time
from collections.abc import Iterator

from kubectl_shoal import objects
from kubectl_shoal.doctor import versions
from kubectl_shoal.doctor.check import Check
from kubectl_shoal.kubectl import Kubectl, Refused
from kubectl_shoal.objects import Object
from shoal_core import units

KINDS = ("cachepools", "datasets", "preloads")
DRIVER = "csi.shoal.dev"
LEASE_S = 30.0
"""A leader renews every 2 s; one that has not for so long is gone."""
_INSTALL = "helm upgrade --install shoal charts/shoal --namespace shoal-system --create-namespace"


class Place:
    """Where Shoal is, and its pods as far as this user sees them."""

    def __init__(self, kubectl: Kubectl, arguments: argparse.Namespace) -> None:
        self.pods: list[objects.NodePod] | None = None
        """None: hidden from this user."""
        try:
            self.pods = objects.node_pods(kubectl, arguments.system_namespace)
        except Refused as refused:
            if refused.reason != "Forbidden":
                raise
        known = self.pods[0].namespace if self.pods else objects.SYSTEM_NAMESPACE
        self.namespace: str = arguments.system_namespace or known


def server(kubectl: Kubectl) -> Check:
    found = kubectl.get("/version")
    return Check("API server", "pass", f"Kubernetes {found['gitVersion']}")


def definitions(kubectl: Kubectl) -> Iterator[Check]:
    """The three kinds, and whether they are those of this version."""
    for kind in KINDS:
        name = f"{kind}.shoal.dev"
        try:
            found = kubectl.find(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
        except Refused as refused:
            yield _served(kubectl, kind, str(refused))
            continue
        if found is None:
            yield Check(f"CRD {kind}", "fail", "is not installed", _INSTALL)
            continue
        yield _schema(kind, found)


def _served(kubectl: Kubectl, kind: str, why: str) -> Check:
    """Who may not read the definition can still see whether its objects are served."""
    try:
        kubectl.get(objects.API)
    except Refused as refused:
        if refused.reason == "NotFound":
            return Check(f"CRD {kind}", "fail", "is not installed", _INSTALL)
    return Check(f"CRD {kind}", "skip", f"its version is hidden: {why}")


def _schema(kind: str, found: Object) -> Check:
    given = found["metadata"].get("annotations", {}).get(versions.SCHEMA_ANNOTATION, "0")
    schema, own = int(given) if given.isdigit() else 0, versions.SCHEMA_VERSION
    if schema < own:
        return Check(
            f"CRD {kind}", "fail", f"schema {schema} is older than what Shoal {versions.own()} needs, {own}",
            "kubectl apply --server-side -f crds/, or let the chart do it: crds.install",
        )  # fmt: skip
    if schema > own:
        return Check(f"CRD {kind}", "warn", f"schema {schema}, newer than this plugin's {own}", "upgrade the plugin")
    return Check(f"CRD {kind}", "pass", f"schema {schema}")


def running(kubectl: Kubectl, place: Place) -> Iterator[Check]:
    """Operator, leader, driver."""
    namespace = place.namespace
    looks = (
        ("operator", lambda: _operator(kubectl, namespace)),
        ("leader", lambda: _leader(kubectl, namespace)),
        ("CSI driver", lambda: _driver(kubectl, namespace)),
    )
    for name, look in looks:
        try:
            yield look()
        except Refused as refused:
            yield Check(name, "skip", str(refused), "ask whoever may see it, or name --system-namespace")
    if place.pods:
        yield _nodes_versions(place.pods)


def _operator(kubectl: Kubectl, namespace: str) -> Check:
    found = kubectl.find(f"/apis/apps/v1/namespaces/{namespace}/deployments/shoal-operator")
    if found is None:
        return Check(
            "operator", "fail", f"there is no Deployment shoal-operator in {namespace}",
            f"{_INSTALL}; or it is elsewhere: --system-namespace",
        )  # fmt: skip
    ready, wanted = found.get("status", {}).get("readyReplicas", 0), found["spec"].get("replicas", 1)
    image = found["spec"]["template"]["spec"]["containers"][0]["image"]
    text = f"{ready} of {wanted} ready, {image}"
    if not ready:
        return Check("operator", "fail", text, f"kubectl logs -n {namespace} deployment/shoal-operator")
    tag, own = versions.of_image(image), versions.own()
    if tag and own not in (tag, "unknown"):
        return Check("operator", "warn", f"{text}; this plugin is {own}", "use one version: upgrade the older one")
    return Check("operator", "pass" if ready >= wanted else "warn", text)


def _leader(kubectl: Kubectl, namespace: str) -> Check:
    lease = kubectl.find(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/shoal-operator")
    spec = (lease or {}).get("spec", {})
    holder, renewed = spec.get("holderIdentity"), spec.get("renewTime")
    if not holder or not renewed:
        return Check("leader", "fail", "no operator leads", f"kubectl logs -n {namespace} deployment/shoal-operator")
    since_s = time.time() - dt.datetime.fromisoformat(renewed).timestamp()
    if since_s > LEASE_S:
        return Check(
            "leader", "fail", f"{holder} has not renewed its lease for {units.age(since_s)}",
            f"kubectl logs -n {namespace} deployment/shoal-operator; status fields are as old as that",
        )  # fmt: skip
    return Check("leader", "pass", holder)


def _driver(kubectl: Kubectl, namespace: str) -> Check:
    if kubectl.find(f"/apis/storage.k8s.io/v1/csidrivers/{DRIVER}") is None:
        return Check("CSI driver", "fail", f"CSIDriver {DRIVER} is missing: pods cannot have a volume", _INSTALL)
    found = kubectl.find(f"/apis/apps/v1/namespaces/{namespace}/daemonsets/shoal-csi")
    if found is None:
        return Check("CSI driver", "fail", f"there is no DaemonSet shoal-csi in {namespace}", _INSTALL)
    status = found.get("status", {})
    ready, wanted = status.get("numberReady", 0), status.get("desiredNumberScheduled", 0)
    if ready < wanted:
        remedy = f"kubectl get pods -n {namespace} -l app.kubernetes.io/component=csi"
        return Check("CSI driver", "warn" if ready else "fail", f"{ready} of {wanted} nodes have it", remedy)
    return Check("CSI driver", "pass", f"on {ready} nodes")


def _nodes_versions(pods: list[objects.NodePod]) -> Check:
    images: dict[str, list[str]] = {}
    for pod in pods:
        images.setdefault(pod.image, []).append(pod.node)
    shown = "; ".join(f"{image} on {len(nodes)}" for image, nodes in sorted(images.items()))
    own, tags = versions.own(), {versions.of_image(image) for image in images} - {""}
    if len(images) > 1:
        return Check("images of nodes", "warn", shown, "an update is under way, or waits: kubectl shoal status")
    if tags - {own} and own != "unknown":
        return Check("images of nodes", "warn", f"{shown}; this plugin is {own}", "use one version")
    return Check("images of nodes", "pass", shown)
