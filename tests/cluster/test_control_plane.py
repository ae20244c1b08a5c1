"""The control plane without nodes: objects live, controllers work, access is decided, and it can be killed."""

from __future__ import annotations

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.processes import ClusterError

CONFIG_MAP = "{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {size: large}}"


def test_objects_are_kept_and_controllers_work(control_plane: Cluster) -> None:
    kubectl = control_plane.kubectl
    namespace = kubectl.namespace()
    kubectl.apply(CONFIG_MAP, namespace)
    assert kubectl.get("configmap", "settings", namespace)["data"] == {"size": "large"}
    assert kubectl.find("configmap", "none", namespace) is None
    kubectl.run("--namespace", namespace, "create", "deployment", "web", "--image=none", "--replicas=2")
    kubectl.until("deployment", "web", lambda web: web.get("status", {}).get("unavailableReplicas") == 2, namespace)
    assert len(kubectl.items("pod", namespace, "app=web")) == 2
    kubectl.delete("namespace", namespace)
    assert kubectl.items("configmap", namespace) == []


def test_what_is_not_permitted_is_denied_and_audited(control_plane: Cluster) -> None:
    namespace = control_plane.kubectl.namespace()
    reader = type(control_plane.kubectl)(control_plane.kubectl.program, control_plane.kubeconfig_of("rita", "readers"))
    with pytest.raises(ClusterError, match='User "rita" cannot get resource "secrets"'):
        reader.get("secret", "key", namespace)
    denied = [
        event["user"]["groups"]
        for event in control_plane.audit()
        if event["user"]["username"] == "rita" and event["responseStatus"]["code"] == 403
    ]
    assert "readers" in denied[-1]


def test_objects_outlive_the_api_server(control_plane: Cluster) -> None:
    kubectl = control_plane.kubectl
    namespace = kubectl.namespace()
    kubectl.apply(CONFIG_MAP, namespace)
    control_plane.stop_api()
    try:
        with pytest.raises(ClusterError, match="refused"):
            kubectl.get("configmap", "settings", namespace)
    finally:
        control_plane.start_api()
    assert kubectl.get("configmap", "settings", namespace)["data"] == {"size": "large"}
