"""Specs of this version, an older and a newer one."""

from typing import Any

import msgspec
import pytest

from shoal_core.errors import ConfigError
from shoal_operator import specs

DRAM = {"budget": "1Gi"}
SOURCE = {"uri": "s3://b/p"}


def test_a_spec_without_defaults_has_them():
    spec = specs.build(specs.PoolSpec, {"dram": DRAM})
    assert (spec.replicas, spec.block_size_bytes, spec.drain_timeout_s) == (1, 4 << 20, 600)
    assert spec.topology.zone_key == "topology.kubernetes.io/zone" and spec.ports == specs.Ports(7440, 7441)
    assert spec.capacity_bytes == 1 << 30
    assert specs.build(specs.DatasetSpec, {"pool": "p", "source": SOURCE}).version.refresh_s == 60
    assert specs.build(specs.PreloadSpec, {"dataset": "d"}).verify


def test_every_field_of_a_pool():
    given: dict[str, Any] = {
        "nodeSelector": {"disk": "nvme"}, "tolerations": [{"operator": "Exists"}], "image": "i", "hostNetwork": True,
        "imagePullPolicy": "Always", "imagePullSecrets": [{"name": "s"}], "dram": {"budget": 5, "hugePages": "never"},
        "nvme": [{"path": "/d", "capacity": "2Ti", "keepFree": "1Gi", "requireMount": False}], "replicas": 2,
        "topology": {"zoneKey": "z", "rackKey": "r"}, "blockSize": "1Mi", "resources": {"limits": {"memory": "1Gi"}},
        "updateStrategy": {"type": "OnDelete"}, "drainTimeoutSeconds": 5, "drainNodes": ["n"],
        "sharedMemory": {"namespaces": ["*"]}, "ports": {"data": 1, "control": 2}, "priorityClassName": "high",
    }  # fmt: skip
    spec = specs.build(specs.PoolSpec, given)
    assert spec.nvme == (specs.Nvme("/d", specs.Quantity(2 << 40), specs.Quantity(1 << 30), False),)
    assert spec.capacity_bytes == 2 << 40 and spec.shared_memory.namespaces == ("*",)
    assert spec.update_strategy.type == "OnDelete" and spec.drain_nodes == ("n",)
    assert specs.unknown(specs.PoolSpec, given) == ()


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        (specs.PoolSpec, None, "spec: expected object, got null"),
        (specs.PoolSpec, {}, "spec: object missing required field dram"),
        (specs.PoolSpec, {"dram": {"budget": "much"}}, "spec.dram.budget: 'much' is not a size such as"),
        (specs.PoolSpec, {"dram": {"budget": "1Gi", "hugePages": "2Mi"}}, "spec.dram.hugePages: invalid enum value"),
        (specs.PoolSpec, {"dram": DRAM, "replicas": 9}, "spec.replicas: expected int <= 8"),
        (specs.PoolSpec, {"dram": DRAM, "nvme": [{"path": "x", "capacity": 1}]}, "spec.nvme\\[0\\].path: expected str"),
        (specs.PoolSpec, {"dram": DRAM, "nvme": [{"path": "/x", "capacity": 1}] * 2}, "spec.nvme: expected array"),
        (specs.PoolSpec, {"dram": DRAM, "ports": {"data": 0}}, "spec.ports.data: expected int >= 1"),
        (specs.DatasetSpec, {"pool": "p"}, "spec: object missing required field source"),
        (specs.DatasetSpec, {"pool": "p", "source": SOURCE, "eviction": "LFU"}, "spec.eviction: invalid enum value"),
        (specs.PreloadSpec, {"dataset": "d", "policy": "Twice"}, "spec.policy: invalid enum value"),
    ],
)  # fmt: skip
def test_an_error_names_the_field(kind: type[msgspec.Struct], data: Any, said: str):
    with pytest.raises(ConfigError, match=f"^{said}"):
        specs.build(kind, data)


def test_fields_of_a_newer_version_are_left_aside_and_named():
    given = {
        "dram": {**DRAM, "numa": "local"},
        "nvme": [{"path": "/d", "capacity": 1, "raid": 0}],
        "tolerations": [{"anything": "goes"}],
        "rdma": {"resource": "x"},
    }
    assert specs.build(specs.PoolSpec, given).dram.budget_bytes == 1 << 30
    assert specs.unknown(specs.PoolSpec, given) == ("spec.dram.numa", "spec.nvme[0].raid", "spec.rdma")
    assert specs.unknown(specs.PoolSpec, {"dram": 3, "nvme": [4]}) == () == specs.unknown(specs.PoolSpec, None)
    source = {**SOURCE, "secretRef": {"name": "s", "key": "k"}}
    assert specs.unknown(specs.DatasetSpec, {"pool": "p", "source": source}) == ("spec.source.secretRef.key",)
