"""What the chart makes of its values: kept files, the schema, and what every pod and role must keep to."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.chart import golden
from tests.chart.helm import CHART, Helm, every, one, rendered
from tests.cluster.processes import ClusterError
from tests.crds import schema

WORKLOADS = ("Deployment", "DaemonSet", "Pod")
RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def test_lint_finds_nothing(renderer: Helm) -> None:
    for values in golden.SETS:
        report = renderer.run("lint", "--strict", CHART, "--values", golden.VALUES / f"{values}.yaml")
        assert "0 chart(s) failed" in report


@pytest.mark.parametrize("values", golden.SETS)
def test_it_renders_as_kept(values: str) -> None:
    assert golden.current(values) == golden.kept(values), "meant? then: .venv/bin/python -m tests.chart.golden"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("operator.replcas=2", "at '/operator': additional properties 'replcas' not allowed"),
        ("webook.enabled=true", "additional properties 'webook' not allowed"),
        ("image.repo=shoal", "at '/image': additional properties 'repo' not allowed"),
        ("csi.resources.limit.memory=1Gi", "at '/csi/resources': additional properties 'limit' not allowed"),
        ("operator.replicas=two", "at '/operator/replicas': got string, want integer"),
        ("image.pullPolicy=Sometimes", "at '/image/pullPolicy': value must be one of"),
        ("image.digest=latest", "at '/image/digest': 'latest' does not match pattern"),
        ("csi.tokenSeconds=60", "at '/csi/tokenSeconds': minimum: got 60, want 600"),
        ("csi.kubeletDirectory=kubelet", "at '/csi/kubeletDirectory': 'kubelet' does not match pattern"),
        ("networkPolicy.readerCIDRs={everybody}", "at '/networkPolicy/readerCIDRs/0': 'everybody' does not match"),
        ("podMonitor.interval=often", "at '/podMonitor/interval': 'often' does not match pattern"),
    ],
)
def test_wrong_values_are_refused_by_name(renderer: Helm, setting: str, says: str) -> None:
    with pytest.raises(ClusterError) as refused:
        renderer.render("--set", setting)
    assert says in str(refused.value)


def test_the_schema_knows_exactly_the_values_there_are() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    known = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

    def compare(path: str, given: Any, expected: dict[str, Any]) -> None:
        if "properties" not in expected or path.endswith(("resources", "Selector")):
            return
        assert set(expected["properties"]) - {"global"} == set(given), path
        assert expected["additionalProperties"] is False, path
        for name, value in given.items():
            compare(f"{path}.{name}", value, expected["properties"][name])

    compare("", values, known)


def test_the_definitions_are_those_of_crds_and_stay() -> None:
    found = {each["spec"]["names"]["kind"]: each for each in every("default", "CustomResourceDefinition")}
    for kind, crd in schema.definitions().items():
        assert found[kind]["spec"] == crd["spec"]
        annotations = found[kind]["metadata"]["annotations"]
        assert annotations == {**crd["metadata"]["annotations"], "helm.sh/resource-policy": "keep"}
    assert every("smallest", "CustomResourceDefinition") == []


def _pod_spec(workload: dict[str, Any]) -> dict[str, Any]:
    return workload["spec"] if workload["kind"] == "Pod" else workload["spec"]["template"]["spec"]


@pytest.mark.parametrize("values", golden.SETS)
def test_all_run_one_image_and_only_the_driver_is_privileged(values: str) -> None:
    workloads = [each for each in rendered(values) if each["kind"] in WORKLOADS]
    assert {each["metadata"]["name"] for each in workloads} == {"shoal-operator", "shoal-csi", "shoal-test"}
    images = {container["image"] for each in workloads for container in _pod_spec(each)["containers"]}
    assert len(images) == 1
    environment = _pod_spec(one(values, "Deployment", "shoal-operator"))["containers"][0]["env"]
    assert {"name": "SHOAL_IMAGE", "value": images.pop()} in environment
    for each in workloads:
        spec = _pod_spec(each)
        assert "hostNetwork" not in spec and "hostPID" not in spec
        if each["metadata"]["name"] == "shoal-csi":
            continue
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert [container["securityContext"] for container in spec["containers"]] == [RESTRICTED]
        assert [volume for volume in spec.get("volumes", []) if "hostPath" in volume] == []


@pytest.mark.parametrize("values", golden.SETS)
def test_services_and_policies_select_the_pods_they_are_for(values: str) -> None:
    """By labels that pods have; `node` is what the operator gives to a pool's pods."""
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in rendered(values)
        if each["kind"] in ("Deployment", "DaemonSet")
    }
    components = {found["app.kubernetes.io/component"] for found in labels.values()} | {"node"}
    selectors = [each["spec"]["selector"] for each in every(values, "Service")]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in every(values, "NetworkPolicy")]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in every(values, "PodMonitor")]
    for selector in selectors:
        assert set(selector) == {"app.kubernetes.io/name", "app.kubernetes.io/component"}
        assert selector["app.kubernetes.io/component"] in components


def test_the_driver_stays_away_from_nodes_that_nobody_runs() -> None:
    spec = _pod_spec(one("default", "DaemonSet", "shoal-csi"))
    assert spec["tolerations"] == [{"operator": "Exists"}]
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {"key": "type", "operator": "NotIn", "values": ["kwok", "virtual-kubelet"]} in terms[0]["matchExpressions"]


def test_a_pod_monitor_needs_a_cluster_that_knows_it(renderer: Helm) -> None:
    switched_on = ("--set", "podMonitor.enabled=true")
    assert "kind: PodMonitor" not in renderer.render(*switched_on)
    known = renderer.render(*switched_on, "--api-versions", "monitoring.coreos.com/v1")
    assert known.count("kind: PodMonitor") == 2


def test_a_certificate_of_ones_own_is_not_made_again(renderer: Helm) -> None:
    given = ("webhook.enabled=true", "webhook.tls.existingSecret=mine", "webhook.tls.caBundle=PEM")
    text = renderer.render(*(word for setting in given for word in ("--set", setting)))
    assert "kind: Secret\n" not in text
    assert "secretName: mine" in text and "caBundle: UEVN\n" in text


WRITE = {"create", "update", "patch", "delete", "deletecollection", "*"}


@pytest.mark.parametrize("values", golden.SETS)
def test_no_role_is_wider_than_it_must_be(values: str) -> None:
    roles = every(values, "ClusterRole") + every(values, "Role")
    assert roles
    for role in roles:
        for rule in role["rules"]:
            where = f"{role['kind']} {role['metadata']['name']}: {rule}"
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], where
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"]), where
    for role in every(values, "ClusterRole"):
        for rule in role["rules"]:
            where = f"{role['metadata']['name']}: {rule}"
            held = set(rule["resources"])
            assert not held & {"secrets", "configmaps", "pods", "pods/exec", "serviceaccounts", "daemonsets"}, where
            if held & {"nodes", "customresourcedefinitions"}:
                assert not WRITE & set(rule["verbs"]), where
    for role in every(values, "Role"):
        secrets = [rule for rule in role["rules"] if "secrets" in rule["resources"]]
        assert all(set(rule["verbs"]) <= {"get", "create"} for rule in secrets)
