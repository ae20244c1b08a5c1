"""A view as JSON holds it: what is understood, and what is said of what is not."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core import view
from shoal_core.errors import ConfigError

NODE = {"id": "a", "addresses": ["unix:/run/shoal.sock", "tcp:10.0.0.1:7000"], "capacity_bytes": "2TiB"}


def of(**fields: Any) -> dict[str, object]:
    return {"epoch": 3, "nodes": [NODE], **fields}


def node(**fields: Any) -> dict[str, object]:
    return of(nodes=[{**NODE, **fields}])


def test_what_a_person_writes():
    full = {**NODE, "id": "b", "zone": "z", "rack": "r", "status": "draining", "capacity_bytes": 5}
    assert view.parse(of(nodes=[full, NODE], replica_count=2)) == view.View(
        3,
        (
            view.Node("a", ("unix:/run/shoal.sock", "tcp:10.0.0.1:7000"), 2 << 40),
            view.Node("b", ("unix:/run/shoal.sock", "tcp:10.0.0.1:7000"), 5, "z", "r", "draining"),
        ),
        2,
    )


def test_a_view_of_no_nodes_is_one():
    assert view.parse({"epoch": 1, "nodes": []}) == view.make(1, [])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"nodes": []}, "epoch: this field is required"),
        ({"epoch": 1}, "nodes: this field is required"),
        (of(epoch=-1), "epoch: -1 is negative"),
        (of(epoch=0), "epoch: 0 is no view at all"),
        (of(epoch="1"), "epoch: expected int, got str"),
        (of(replica_count=0), "replica_count: 0 is not between 1 and 8"),
        (of(replica_count=9), "replica_count: 9 is not between 1 and 8"),
        (of(replicas=1), r"replicas: unknown field; did you mean replica_count\?"),
        (of(nodes={}), "nodes: expected a list"),
        (of(nodes=[NODE, NODE]), "nodes: a is there twice"),
        (of(nodes=[1]), r"nodes\[0\]: expected a table, got 1"),
        (node(id=""), "nodes: a node has no id"),
        (node(status="dead"), r"nodes\[0\].status: 'dead' is not allowed.*ready, draining, gone"),
        (node(capacity_bytes=-1), r"nodes\[0\].capacity_bytes: expected a number of bytes"),
        (node(addresses=["10.0.0.1:7000"]), r"nodes.a.addresses: '10.0.0.1:7000' begins with neither tcp: nor unix:"),
        (node(addresses="tcp:10.0.0.1:7000"), r"nodes\[0\].addresses: expected a list"),
        (node(port=1), r"nodes\[0\].port: unknown field"),
    ],
)
def test_what_cannot_be_is_said_by_field(data: dict[str, object], said: str):
    with pytest.raises(ConfigError, match=f"^{said}"):
        view.parse(data)


NODES = st.builds(
    view.Node,
    id=st.text(min_size=1),
    addresses=st.lists(st.text().map("tcp:{}".format) | st.text().map("unix:/{}".format)).map(tuple),
    capacity_bytes=st.integers(0, 2**60),
    zone=st.text(),
    rack=st.text(),
    status=st.sampled_from(["ready", "draining", "gone"]),
)


@given(st.lists(NODES, unique_by=lambda found: found.id), st.integers(1, 2**60), st.integers(1, 8))
def test_what_is_written_is_read_as_it_was(nodes: list[view.Node], epoch: int, replica_count: int):
    made = view.make(epoch, nodes, replica_count)
    assert view.parse(msgspec.json.decode(msgspec.json.encode(made))) == made
    assert all(made.position(found.id) == place for place, found in enumerate(made.nodes))
