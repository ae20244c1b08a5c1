"""What things are called in the cluster: one place, so that operator, driver and plugin cannot disagree."""

from __future__ import annotations

import hashlib
import json

GROUP = "shoal.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

FIELD_MANAGER = "shoal-operator"
POOL_LABEL = "shoal.dev/pool"
CONFIG_HASH = "shoal.dev/config-hash"
TEMPLATE_HASH = "shoal.dev/template-hash"
"""On the pod template, so on each pod: whether it is as the pool wants it now."""
CAPACITY = "shoal.dev/capacity-bytes"
"""On each pod: what it was told to hold. After a change of the spec old and new ones differ for a while."""
APPLIED_HASH = "shoal.dev/applied-hash"
"""On each object the operator applies: what it applied, so that a field that is wanted no more is noticed."""

POOL_FINALIZER = "shoal.dev/pool"
DATASET_FINALIZER = "shoal.dev/dataset"

DATA_PORT_NAME = "data"
CONTROL_PORT_NAME = "control"

POOL_NAME_CHARACTERS_MAX = 40
"""So that `shoal-NAME-config` is a DNS label, with room for what controllers append."""


def of_pool(pool: str) -> str:
    """The DaemonSet, ServiceAccount, Service, Role, RoleBinding, and the ConfigMap of the pool state."""
    return f"shoal-{pool}"


def config_of_pool(pool: str) -> str:
    return f"shoal-{pool}-config"


def key_of_pool(pool: str) -> str:
    """The Secret that holds the pool's access key."""
    return f"shoal-{pool}-key"


def pod_selector(pool: str) -> dict[str, str]:
    """Which pods are a pool's nodes. It can never change: a DaemonSet's selector is for life."""
    return {"app.kubernetes.io/name": "shoal", "app.kubernetes.io/component": "node", POOL_LABEL: pool}


def pod_labels(pool: str) -> dict[str, str]:
    return {**pod_selector(pool), "app.kubernetes.io/managed-by": "shoal-operator"}


def on_nodes(namespace: str, dataset: str) -> str:
    """What a Dataset is called in shoal://NAME/path with full access."""
    return f"{namespace}.{dataset}"


def digest(value: object) -> str:
    """Ten hex digits that change when plain data does, and not with the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]
