"""What the installed accounts may do, asked of a real API server, and tried where being asked is not enough."""

from __future__ import annotations

import copy
import json
import secrets
from typing import Any, NamedTuple

import pytest

from tests.chart.helm import NAMESPACE, one
from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl
from tests.cluster.processes import ClusterError
from tests.crds import specs
from tests.support import waiting

OPERATOR = f"system:serviceaccount:{NAMESPACE}:shoal-operator"
DRIVER = f"system:serviceaccount:{NAMESPACE}:shoal-csi"
ELSEWHERE = "kube-system"
ALL = ""
"""As a namespace: in the whole cluster."""


class Act(NamedTuple):
    who: str
    verbs: str
    resource: str
    """RESOURCE[.GROUP][/SUBRESOURCE]"""
    namespace: str = ALL
    name: str = ""


ALLOWED = [
    Act(OPERATOR, "get list watch patch", "cachepools.shoal.dev"),
    Act(OPERATOR, "get list watch patch", "datasets.shoal.dev"),
    Act(OPERATOR, "get list watch patch delete", "preloads.shoal.dev"),
    Act(OPERATOR, "patch", "datasets.shoal.dev/status"),
    Act(OPERATOR, "get list watch", "nodes"),
    Act(OPERATOR, "create patch", "events"),
    Act(OPERATOR, "create", "subjectaccessreviews.authorization.k8s.io"),
    Act(OPERATOR, "get", "customresourcedefinitions.apiextensions.k8s.io", ALL, "datasets.shoal.dev"),
    Act(OPERATOR, "get list watch create patch delete", "daemonsets.apps", NAMESPACE),
    Act(OPERATOR, "get list watch create update patch", "configmaps", NAMESPACE),
    Act(OPERATOR, "create patch delete", "roles.rbac.authorization.k8s.io", NAMESPACE),
    Act(OPERATOR, "get create", "secrets", NAMESPACE),
    Act(OPERATOR, "get list watch delete", "pods", NAMESPACE),
    Act(OPERATOR, "create", "leases.coordination.k8s.io", NAMESPACE),
    Act(OPERATOR, "get update", "leases.coordination.k8s.io", NAMESPACE, "shoal-operator"),
    Act(DRIVER, "get", "datasets.shoal.dev"),
    Act(DRIVER, "get", "cachepools.shoal.dev"),
    Act(DRIVER, "create", "tokenreviews.authentication.k8s.io"),
    Act(DRIVER, "create", "subjectaccessreviews.authorization.k8s.io"),
    Act(DRIVER, "create patch", "events"),
    Act(DRIVER, "get", "secrets", NAMESPACE),
    Act(DRIVER, "get", "configmaps", NAMESPACE),
]
DENIED = [
    *(Act(who, "get list watch create patch delete", "secrets", ELSEWHERE) for who in (OPERATOR, DRIVER)),
    *(Act(who, "list watch update patch delete", "secrets", NAMESPACE) for who in (OPERATOR, DRIVER)),
    *(Act(who, "create update patch delete", "nodes") for who in (OPERATOR, DRIVER)),
    *(Act(who, "get list create patch delete", "configmaps", ELSEWHERE) for who in (OPERATOR, DRIVER)),
    *(Act(who, "get list watch create delete", "pods", ELSEWHERE) for who in (OPERATOR, DRIVER)),
    *(Act(who, "create get", "pods/exec", NAMESPACE) for who in (OPERATOR, DRIVER)),
    *(Act(who, "create patch", "clusterroles.rbac.authorization.k8s.io") for who in (OPERATOR, DRIVER)),
    *(Act(who, "create patch", "rolebindings.rbac.authorization.k8s.io", ELSEWHERE) for who in (OPERATOR, DRIVER)),
    *(Act(who, "create update delete", "datasets.shoal.dev") for who in (OPERATOR, DRIVER)),
    *(Act(who, "use", "datasets.shoal.dev") for who in (OPERATOR, DRIVER)),
    *(Act(who, "create", "serviceaccounts/token", NAMESPACE) for who in (OPERATOR, DRIVER)),
    *(Act(who, "impersonate", "users") for who in (OPERATOR, DRIVER)),
    Act(OPERATOR, "list watch patch delete", "customresourcedefinitions.apiextensions.k8s.io"),
    Act(OPERATOR, "get", "customresourcedefinitions.apiextensions.k8s.io", ALL, "other.example.org"),
    Act(OPERATOR, "create patch", "daemonsets.apps", ELSEWHERE),
    Act(OPERATOR, "create delete get list", "namespaces"),
    Act(OPERATOR, "get update", "leases.coordination.k8s.io", NAMESPACE, "another"),
    Act(OPERATOR, "patch create", "mutatingwebhookconfigurations.admissionregistration.k8s.io"),
    Act(DRIVER, "list watch patch", "datasets.shoal.dev"),
    Act(DRIVER, "create patch delete", "configmaps", NAMESPACE),
    Act(DRIVER, "create patch", "daemonsets.apps", NAMESPACE),
    Act(DRIVER, "get list", "nodes"),
]


def _may(cluster: Cluster, who: str, verb: str, act: Act) -> bool:
    resource, _, subresource = act.resource.partition("/")
    name, _, group = resource.partition(".")
    attributes = {
        "verb": verb,
        "group": group,
        "resource": name,
        "subresource": subresource,
        "namespace": act.namespace,
        "name": act.name,
    }
    groups = ["system:authenticated"]
    if who.startswith("system:serviceaccount:"):
        groups += ["system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}"]
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": who, "groups": groups, "resourceAttributes": attributes},
    }
    with cluster.api as api:
        status, answer = api.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    assert status == 201, answer
    return bool(answer["status"]["allowed"])


def _acts(acts: list[Act]) -> list[Any]:
    return [pytest.param(act, id="-".join(part.replace(" ", "+") for part in act if part)) for act in acts]


@pytest.mark.parametrize("act", _acts(ALLOWED))
def test_what_each_needs_it_may(installed: Cluster, act: Act) -> None:
    assert [verb for verb in act.verbs.split() if not _may(installed, act.who, verb, act)] == []


@pytest.mark.parametrize("act", _acts(DENIED))
def test_what_none_needs_is_denied(installed: Cluster, act: Act) -> None:
    assert [verb for verb in act.verbs.split() if _may(installed, act.who, verb, act)] == []


def _as(cluster: Cluster, who: str, *groups: str) -> Kubectl:
    return Kubectl(cluster.kubectl.program, cluster.kubeconfig_of(who, *groups))


def _role(name: str, resource: str, verbs: str, names: str = "[]") -> str:
    rule = f'{{apiGroups: [""], resources: [{resource}], verbs: [{verbs}], resourceNames: {names}}}'
    return f"{{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {{name: {name}}}, rules: [{rule}]}}"


def test_the_operator_can_grant_a_pool_its_state_and_nothing_that_it_lacks(installed: Cluster) -> None:
    operator = _as(installed, OPERATOR)
    operator.apply(_role("shoal-nvme", "configmaps", "get, list, watch", "[shoal-nvme]"), NAMESPACE)
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "shoal-nvme"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "shoal-nvme"},
        "subjects": [{"kind": "ServiceAccount", "name": "shoal-nvme", "namespace": NAMESPACE}],
    }
    operator.apply(json.dumps(binding), NAMESPACE)
    for role in (
        _role("shoal-more", "secrets", "get, list"),
        _role("shoal-more", "pods/exec", "create"),
        _role("shoal-more", "nodes", "patch"),
    ):
        with pytest.raises(ClusterError, match="attempting to grant RBAC permissions not currently held"):
            operator.apply(role, NAMESPACE)
    binding["roleRef"] = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    binding["metadata"] = {"name": "shoal-more"}
    with pytest.raises(ClusterError, match="attempting to grant RBAC permissions not currently held"):
        operator.apply(json.dumps(binding), NAMESPACE)


def test_secrets_elsewhere_stay_closed(installed: Cluster) -> None:
    namespace = installed.kubectl.namespace()
    installed.kubectl.run("--namespace", namespace, "create", "secret", "generic", "keys", "--from-literal=a=b")
    for who in (OPERATOR, DRIVER):
        with pytest.raises(ClusterError, match='cannot get resource "secrets"'):
            _as(installed, who).get("secret", "keys", namespace)


def test_view_edit_and_admin_of_a_namespace_hold_for_what_is_ours_there(installed: Cluster) -> None:
    namespace = installed.kubectl.namespace()
    expected = {
        "view": {"get": True, "create": False, "use": False},
        "edit": {"get": True, "create": True, "use": False},
        "admin": {"get": True, "create": True, "use": True},
    }
    for role in expected:
        argv = ("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}-of-team")
        installed.kubectl.run("--namespace", namespace, *argv)

    def held() -> dict[str, dict[str, bool]]:
        act = Act("", "", "datasets.shoal.dev", namespace)
        return {
            role: {verb: _may(installed, f"{role}-of-team", verb, act) for verb in verbs}
            for role, verbs in expected.items()
        }

    waiting.until(lambda: held() == expected, "the roles are aggregated")
    assert not _may(installed, "admin-of-team", "create", Act("", "", "cachepools.shoal.dev"))
    assert not _may(installed, "admin-of-team", "use", Act("", "", "datasets.shoal.dev", "default"))


def test_an_account_that_is_bound_to_shoal_user_may_use_the_datasets_of_that_namespace(installed: Cluster) -> None:
    namespace = installed.kubectl.namespace()
    account = f"system:serviceaccount:{namespace}:default"
    act = Act(account, "use", "datasets.shoal.dev", namespace)
    assert not _may(installed, account, "use", act)
    argv = (
        "create",
        "rolebinding",
        "read-datasets",
        "--clusterrole=shoal-user",
        f"--serviceaccount={namespace}:default",
    )
    installed.kubectl.run("--namespace", namespace, *argv)
    waiting.until(lambda: _may(installed, account, "use", act), "the binding counts")
    assert not _may(installed, account, "create", act)


def _pod_of(kind: str, name: str) -> specs.Object:
    found = copy.deepcopy(one("default", kind, name))
    spec = found["spec"] if kind == "Pod" else found["spec"]["template"]["spec"]
    spec.pop("serviceAccountName", None)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def test_pods_keep_to_their_level_of_pod_security(installed: Cluster) -> None:
    """As the API server itself judges them: only the driver needs a privileged namespace."""
    namespace = installed.kubectl.namespace()
    label = ("label", "namespace", namespace, "--overwrite")
    pods = f"/api/v1/namespaces/{namespace}/pods?dryRun=All"
    installed.kubectl.run(*label, "pod-security.kubernetes.io/enforce=restricted")
    with installed.api as api:
        for kind, name in (("Deployment", "shoal-operator"), ("Pod", "shoal-test")):
            status, answer = api.request("POST", pods, _pod_of(kind, name))
            assert status == 201, answer
        status, answer = api.request("POST", pods, _pod_of("DaemonSet", "shoal-csi"))
        assert (status, "violates PodSecurity" in answer["message"]) == (403, True)
        installed.kubectl.run(*label, "pod-security.kubernetes.io/enforce=privileged")
        status, answer = api.request("POST", pods, _pod_of("DaemonSet", "shoal-csi"))
        assert status == 201, answer


def _webhook_called(cluster: Cluster, namespace: str, labels: dict[str, str]) -> bool:
    """Makes a pod; whether the API server asked the webhook, which nobody serves here, and went on without it."""
    name = f"train-{secrets.token_hex(4)}"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "train", "image": "train"}]},
    }
    with cluster.api as api:
        status, answer = api.request("POST", f"/api/v1/namespaces/{namespace}/pods", pod)
    assert status == 201, answer

    def events() -> list[dict[str, Any]]:
        wanted = ("create", "pods", name)
        keys = ("resource", "name")
        return [
            event
            for event in cluster.audit()
            if (event["verb"], *(event.get("objectRef", {}).get(key) for key in keys)) == wanted
        ]

    waiting.until(events, "the request is in the audit log")
    annotations = events()[0]["annotations"]
    return "inject.shoal.dev" in [value for key, value in annotations.items() if key.startswith("failed-open.mutation")]


def test_only_pods_that_ask_for_it_meet_the_webhook_and_they_start_without_its_answer(installed: Cluster) -> None:
    namespace = installed.kubectl.namespace()
    asks = {"shoal.dev/inject": "images"}
    assert _webhook_called(installed, namespace, asks)
    assert not _webhook_called(installed, namespace, {"app": "train"})
    assert not _webhook_called(installed, NAMESPACE, asks)
    assert not _webhook_called(installed, ELSEWHERE, asks)
