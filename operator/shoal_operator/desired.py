"""The objects that a pool is made of, complete, as they are applied: what they are is decided by the spec alone.

`to_apply` compares them with what is there. An object is applied again when it is missing, when a field that we want
differs (somebody edited it), or when what we want is not what we applied last: a field that was dropped from the spec
shows nowhere else. Fields that we say nothing about (defaults of the API server, other people's labels) stay as they
are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from shoal_core import limits
from shoal_operator import names, node_config, quantities
from shoal_operator.model import Manifest, Pool, Settings
from shoal_operator.specs import PoolSpec

_PROCESS_BYTES = 384 * limits.MIB
"""What a node takes beside its DRAM budget: the process, and fills in flight."""

_GRACE_S = 30
"""From SIGTERM on: reads that run end, the disk tier is closed. Blocks were handed over before, where they are."""


def owner(pool: Pool) -> Manifest:
    """The reference by which everything goes with the pool."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "CachePool",
        "name": pool.name,
        "uid": pool.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def objects(pool: Pool, spec: PoolSpec, settings: Settings) -> list[Manifest]:
    """All but the pool state and the key, in the order in which they are to be applied."""
    name, namespace = names.of_pool(pool.name), settings.namespace
    config = node_config.text(pool, spec, settings)
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [name], "verbs": ["get", "list", "watch"]}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    return [
        _object(pool, settings, "v1", "ServiceAccount", name, {}),
        _object(pool, settings, "rbac.authorization.k8s.io/v1", "Role", name, {"rules": [rule]}),
        _object(
            pool, settings, "rbac.authorization.k8s.io/v1", "RoleBinding", name,
            {"roleRef": role, "subjects": [subject]},
        ),
        _object(pool, settings, "v1", "Service", name, {"spec": _service(pool, spec)}),
        _object(
            pool, settings, "v1", "ConfigMap", names.config_of_pool(pool.name),
            {"data": {node_config.CONFIG_FILE: config}},
        ),
        _object(pool, settings, "apps/v1", "DaemonSet", name, {"spec": _daemon_set(pool, spec, settings, config)}),
    ]  # fmt: skip


def to_apply(wanted: Iterable[Manifest], found: Mapping[tuple[str, str], Manifest]) -> tuple[Manifest, ...]:
    """Those of the wanted objects that are missing or not as they are to be."""
    return tuple(
        manifest
        for manifest in wanted
        if not _holds(manifest, found.get((manifest["kind"], manifest["metadata"]["name"])))
    )


def template_hash(pool: Pool, spec: PoolSpec, settings: Settings) -> str:
    """On each pod that is as the pool wants it."""
    config = node_config.text(pool, spec, settings)
    return str(_template(pool, spec, settings, config)["metadata"]["annotations"][names.TEMPLATE_HASH])


def image(spec: PoolSpec, settings: Settings) -> str:
    return spec.image or settings.image


def _object(pool: Pool, settings: Settings, api: str, kind: str, name: str, body: Mapping[str, Any]) -> Manifest:
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": settings.namespace,
            "labels": names.pod_labels(pool.name),
            "annotations": {names.APPLIED_HASH: names.digest(body)},
            "ownerReferences": [owner(pool)],
        },
        **body,
    }


def _service(pool: Pool, spec: PoolSpec) -> Manifest:
    ports = ((names.DATA_PORT_NAME, spec.ports.data), (names.CONTROL_PORT_NAME, spec.ports.control))
    return {
        "clusterIP": "None",
        "selector": names.pod_selector(pool.name),
        "ports": [{"name": name, "port": port, "targetPort": port, "protocol": "TCP"} for name, port in ports],
    }


def _daemon_set(pool: Pool, spec: PoolSpec, settings: Settings, config: str) -> Manifest:
    return {
        "selector": {"matchLabels": names.pod_selector(pool.name)},
        # The operator replaces pods itself, one by one, with a hand-over where there is no disk.
        "updateStrategy": {"type": "OnDelete"},
        "revisionHistoryLimit": 3,
        "template": _template(pool, spec, settings, config),
    }


def _template(pool: Pool, spec: PoolSpec, settings: Settings, config: str) -> Manifest:
    pod_spec = _pod_spec(pool, spec, settings)
    annotations = {
        names.CONFIG_HASH: names.digest(config),
        names.TEMPLATE_HASH: names.digest([config, pod_spec]),
        names.CAPACITY: str(spec.capacity_bytes),
    }
    return {"metadata": {"labels": names.pod_labels(pool.name), "annotations": annotations}, "spec": pod_spec}


def _pod_spec(pool: Pool, spec: PoolSpec, settings: Settings) -> Manifest:
    optional: Manifest = {
        "nodeSelector": dict(spec.node_selector),
        "tolerations": list(spec.tolerations),
        "imagePullSecrets": list(spec.image_pull_secrets),
        "priorityClassName": spec.priority_class_name,
        "hostNetwork": spec.host_network,
        "dnsPolicy": "ClusterFirstWithHostNet" if spec.host_network else "",
    }
    return {
        "serviceAccountName": names.of_pool(pool.name),
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE_S,
        # hostPaths belong to root, so the node is root, but with no capability that root has elsewhere.
        "securityContext": {"runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [_container(pool, spec, settings)],
        "volumes": _volumes(pool, spec),
        **{name: value for name, value in optional.items() if value},
    }


def _container(pool: Pool, spec: PoolSpec, settings: Settings) -> Manifest:
    ports = ((names.DATA_PORT_NAME, spec.ports.data), (names.CONTROL_PORT_NAME, spec.ports.control))
    variables = {"NODE_NAME": "spec.nodeName", "POD_IP": "status.podIP", "POD_NAMESPACE": "metadata.namespace"}
    host_port = (lambda port: {"hostPort": port}) if spec.host_network else (lambda port: {})
    return {
        "name": "node",
        "image": image(spec, settings),
        "imagePullPolicy": spec.image_pull_policy,
        "command": [
            "python", "-m", "shoal_node", "--config", f"{node_config.CONFIG_DIRECTORY}/{node_config.CONFIG_FILE}",
        ],
        "env": [
            {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
            for name, path in variables.items()
        ],
        "ports": [
            {"name": name, "containerPort": port, "protocol": "TCP", **host_port(port)} for name, port in ports
        ],
        "resources": _resources(spec),
        # Restarts are rare, so a node that comes up is looked at every second, and left alone once it is up.
        "startupProbe": _probe("/healthz", period_s=1, failures=300, timeout_s=1),
        "readinessProbe": _probe("/readyz", period_s=2, failures=2, timeout_s=2),
        "livenessProbe": _probe("/healthz", period_s=10, failures=6, timeout_s=5),
        # A node that cannot start says why in its last lines: the operator finds them in the pod's status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": _mounts(pool, spec),
    }  # fmt: skip


def _resources(spec: PoolSpec) -> Manifest:
    """As given; without a word on memory, what the budget will take is asked for, so that a pod waits for memory rather
    than being killed for it later."""
    resources = dict(spec.resources)
    stated = {name for kind in ("requests", "limits") for name in (resources.get(kind) or {})}
    if "memory" not in stated:
        size = str(-(-(spec.dram.budget_bytes + _PROCESS_BYTES) // limits.MIB)) + "Mi"
        resources["requests"] = {**(resources.get("requests") or {}), "memory": size}
    return resources


def _probe(path: str, *, period_s: int, failures: int, timeout_s: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": names.CONTROL_PORT_NAME, "scheme": "HTTP"},
        "periodSeconds": period_s,
        "failureThreshold": failures,
        "timeoutSeconds": timeout_s,
    }


def _volumes(pool: Pool, spec: PoolSpec) -> list[Manifest]:
    run = node_config.run_directory(pool.name)
    volumes: list[Manifest] = [
        {"name": "config", "configMap": {"name": names.config_of_pool(pool.name)}},
        {"name": "key", "secret": {"secretName": names.key_of_pool(pool.name), "defaultMode": 0o400}},
        {"name": "run", "hostPath": {"path": run, "type": "DirectoryOrCreate"}},
        {"name": "scratch", "emptyDir": {"sizeLimit": "64Mi"}},
    ]
    # A path that is missing is a disk that is missing: never made, least of all on the root disk.
    volumes += [{"name": "nvme", "hostPath": {"path": nvme.path, "type": "Directory"}} for nvme in spec.nvme]
    return volumes if spec.nvme else [*volumes, {"name": "state", "emptyDir": {"sizeLimit": "64Mi"}}]


def _mounts(pool: Pool, spec: PoolSpec) -> list[Manifest]:
    run = node_config.run_directory(pool.name)
    return [
        {"name": "config", "mountPath": node_config.CONFIG_DIRECTORY, "readOnly": True},
        {"name": "key", "mountPath": node_config.KEY_DIRECTORY, "readOnly": True},
        {"name": "run", "mountPath": run, "mountPropagation": "HostToContainer"},
        {"name": "scratch", "mountPath": "/tmp"},
        {"name": "nvme", "mountPath": node_config.NVME_DIRECTORY}
        if spec.nvme
        else {"name": "state", "mountPath": node_config.STATE_DIRECTORY},
    ]


def _holds(wanted: object, found: object) -> bool:
    """Whether all that is wanted is there; more may be."""
    if isinstance(wanted, Mapping):
        table = cast("Mapping[str, object]", wanted)
        # The API server leaves out what is empty.
        if not isinstance(found, Mapping):
            return found is None and not table
        there = cast("Mapping[str, object]", found)
        return all(_holds(value, there.get(name)) for name, value in table.items())
    if isinstance(wanted, list):
        items = cast("list[object]", wanted)
        others = cast("list[object]", found) if isinstance(found, list) else []
        return len(items) == len(others) and all(map(_holds, items, others))
    return wanted == found or _same_amount(wanted, found)


def _same_amount(wanted: object, found: object) -> bool:
    """The API server writes quantities its own way: 1Gi for 1024Mi."""
    if isinstance(wanted, bool) or isinstance(found, bool):
        return False
    number = quantities.amount(wanted)
    return number is not None and number == quantities.amount(found)
