"""The kinds this operator reads or writes, and how the API's paths spell them.

`WATCHED_EVERYWHERE` and `WATCHED_IN_RELEASE` are all that the operator watches: what people write and where it is to
run, in the whole cluster; what the operator made of it, in the release's namespace only, by the pools' label.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from shoal_operator.names import API_VERSION


@dataclass(frozen=True)
class Kind:
    """One kind of one version of the API."""

    api_version: str
    name: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str = "", name: str | None = None, subresource: str | None = None) -> str:
        """Of one object; without a name of all in the namespace; without either of all there are."""
        parts = ["/apis" if "/" in self.api_version else "/api", self.api_version]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


_RBAC = "rbac.authorization.k8s.io/v1"
_REVIEWS = "authorization.k8s.io/v1"

KINDS = {
    kind.name: kind
    for kind in (
        Kind(API_VERSION, "CachePool", "cachepools", namespaced=False),
        Kind(API_VERSION, "Dataset", "datasets"),
        Kind(API_VERSION, "Preload", "preloads"),
        Kind("v1", "Node", "nodes", namespaced=False),
        Kind("v1", "Pod", "pods"),
        Kind("v1", "ConfigMap", "configmaps"),
        Kind("v1", "Secret", "secrets"),
        Kind("v1", "Service", "services"),
        Kind("v1", "ServiceAccount", "serviceaccounts"),
        Kind("v1", "Event", "events"),
        Kind("apps/v1", "DaemonSet", "daemonsets"),
        Kind(_RBAC, "Role", "roles"),
        Kind(_RBAC, "RoleBinding", "rolebindings"),
        Kind("coordination.k8s.io/v1", "Lease", "leases"),
        Kind(_REVIEWS, "SubjectAccessReview", "subjectaccessreviews", namespaced=False),
    )
}

WATCHED_EVERYWHERE = ("CachePool", "Dataset", "Preload", "Node")
WATCHED_IN_RELEASE = ("Pod", "DaemonSet", "ConfigMap", "Service", "ServiceAccount", "Role", "RoleBinding")
