"""Which nodes a pool is on, which pod counts, and which pools are in each other's way."""

from typing import Any

import pytest

from shoal_operator import selecting
from tests.operator import worlds


def taint(key: str, value: str = "", effect: str = "NoSchedule") -> dict[str, str]:
    return {"key": key, "value": value, "effect": effect}


@pytest.mark.parametrize(
    ("spec", "node", "selected"),
    [
        ({}, {}, True),
        ({"nodeSelector": {"disk": "nvme"}}, {}, False),
        ({"nodeSelector": {"disk": "nvme"}}, {"labels": {"disk": "nvme", "x": "y"}}, True),
        ({"nodeSelector": {"disk": "nvme"}}, {"labels": {"disk": "hdd"}}, False),
        ({}, {"taints": (taint("gpu"),)}, False),
        ({}, {"taints": (taint("gpu", effect="PreferNoSchedule"),)}, True),
        ({}, {"taints": (taint("node.kubernetes.io/unschedulable"), taint("node.kubernetes.io/not-ready"))}, True),
        ({}, {"taints": (taint("node.kubernetes.io/network-unavailable"),)}, False),
        ({"hostNetwork": True}, {"taints": (taint("node.kubernetes.io/network-unavailable"),)}, True),
        ({"tolerations": [{"operator": "Exists"}]}, {"taints": (taint("gpu", "a"), taint("b", effect="NoExecute"))},
         True),
        ({"tolerations": [{"key": "gpu", "operator": "Exists"}]}, {"taints": (taint("gpu", "a"),)}, True),
        ({"tolerations": [{"key": "gpu", "operator": "Exists"}]}, {"taints": (taint("tpu", "a"),)}, False),
        ({"tolerations": [{"key": "gpu", "value": "a"}]}, {"taints": (taint("gpu", "a"),)}, True),
        ({"tolerations": [{"key": "gpu", "value": "b"}]}, {"taints": (taint("gpu", "a"),)}, False),
        ({"tolerations": [{"key": "gpu"}]}, {"taints": (taint("gpu"),)}, True),
        ({"tolerations": [{"key": "gpu", "effect": "NoExecute"}]}, {"taints": (taint("gpu"),)}, False),
    ],
)  # fmt: skip
def test_selection(spec: Any, node: Any, selected: bool):
    of = worlds.pool(**spec).spec
    assert of is not None
    there = {"n": worlds.node("n", **node)}
    assert selecting.selects(of, there["n"]) is selected
    assert selecting.selected(of, there) == (("n",) if selected else ())


def test_the_pod_that_counts_is_the_newest_that_stays():
    ends = worlds.up("n1", uid="a", terminating=True, created_s=9.0)
    old, new = worlds.up("n1", uid="b", created_s=1.0), worlds.up("n1", uid="c", created_s=2.0)
    nowhere = worlds.down("", uid="d")
    for order in ([ends, old, new, nowhere], [nowhere, new, old, ends]):
        assert selecting.pod_by_node(order) == {"n1": new}
    assert selecting.pod_by_node([ends]) == {"n1": ends}


def aged(name: str, age_s: float, **spec: Any):
    stamp = worlds.moments.shown(worlds.NOW_S - age_s)
    return worlds.pool(name, meta={"creationTimestamp": stamp}, **spec)


@pytest.mark.parametrize(
    ("theirs", "conflict"),
    [
        ({}, True),
        ({"nvme": [{"path": "/mnt//cache/", "capacity": 1}]}, True),
        ({"nvme": [{"path": "/mnt/cache/b", "capacity": 1}]}, True),
        ({"nvme": [{"path": "/mnt", "capacity": 1}]}, True),
        ({"nvme": [{"path": "/mnt/cache2", "capacity": 1}]}, False),
        ({"nodeSelector": {"disk": "no"}}, False),
        ({"nvme": []}, False),
    ],
)  # fmt: skip
def test_the_younger_of_two_pools_on_one_path_gives_way(theirs: Any, conflict: bool):
    older, younger = aged("z", 100, **theirs), aged("a", 50)
    found = selecting.path_conflict(younger, [younger, older], worlds.nodes("n2", "n1"))
    assert found == ((older, "/mnt/cache", "n1") if conflict else None)
    assert selecting.path_conflict(older, [younger, older], worlds.nodes("n1")) is None


def test_of_two_pools_of_one_second_the_name_decides():
    one, other = aged("a", 5), aged("b", 5)
    assert selecting.path_conflict(one, [one, other], worlds.nodes("n1")) is None
    assert selecting.path_conflict(other, [one, other], worlds.nodes("n1")) is not None


def test_a_pool_whose_spec_cannot_be_read_is_in_nobodys_way():
    broken = worlds.facts.pool(worlds.custom("a", {}))
    assert selecting.path_conflict(broken, [worlds.pool("b")], worlds.nodes("n1")) is None
    assert selecting.path_conflict(worlds.pool("b"), [broken], worlds.nodes("n1")) is None
