"""What a volume holds: addresses nearest first, and files that node and client understand."""

from __future__ import annotations

import itertools
import json

from shoal_core import access, config, view
from shoal_core.view import Node, View
from shoal_csi import contents
from shoal_csi.contents import Place
from shoal_csi.request import DatasetName, Pod, Request

SOCKET = "unix:/run/shoal/node.sock"
IMAGES = DatasetName("team-a", "images")


def _request(volume_id: str = "csi-1") -> Request:
    pod = Pod(namespace="team-a", name="job-0", uid="u-1", service_account="trainer")
    return Request(volume_id, "/target", pod, (IMAGES,), "t-1")


def _view(*nodes: Node) -> View:
    return view.make(1, nodes)


def _node(name: str, zone: str = "", rack: str = "", status: view.NodeStatus = "ready") -> Node:
    return Node(name, (f"unix:/{name}", f"tcp:{name}:7440"), 1, zone, rack, status)


def _client(view: View, place: Place, volume_id: str = "csi-1") -> config.ClientConfig:
    made = contents.client(_request(volume_id), {IMAGES: "s3://bucket/images"}, view, place)
    return config.parse_client(json.loads(made))


def _names(client: config.ClientConfig) -> list[str]:
    return [address.split(":")[1] for address in client.addresses if address != SOCKET]


def test_nearest_first() -> None:
    nodes = (_node("far", "b", "r"), _node("zone", "a", "s"), _node("rack", "a", "r"), _node("own", "a", "r"))
    for order in itertools.permutations(nodes):
        client = _client(_view(*order), Place("own"))
        assert client.addresses[0] == SOCKET and _names(client) == ["own", "rack", "zone", "far"]
        assert (client.zone, client.rack) == ("a", "r")


def test_a_machine_without_a_node_is_where_it_was_told_to_be() -> None:
    nodes = _view(_node("far", "b"), _node("near", "a"))
    client = _client(nodes, Place("elsewhere", "a"))
    assert client.addresses[0] != SOCKET and _names(client) == ["near", "far"] and client.zone == "a"
    assert {tuple(_names(_client(nodes, Place("elsewhere"), f"csi-{number}"))) for number in range(20)} == {
        ("far", "near"),
        ("near", "far"),
    }


def test_nodes_that_go_come_last_and_those_that_are_gone_not_at_all() -> None:
    nodes = _view(_node("own", "a", status="draining"), _node("gone", "a", status="gone"), _node("far", "b"))
    client = _client(nodes, Place("own"))
    assert client.addresses[0] == SOCKET and _names(client) == ["far", "own"]


def test_at_most_eight_spread_over_all_and_the_same_each_time() -> None:
    nodes = _view(*(_node(f"node-{number}") for number in range(40)))
    chosen = [_names(_client(nodes, Place("elsewhere"), f"csi-{number}")) for number in range(100)]
    assert {len(names) for names in chosen} == {8}
    assert len({names[0] for names in chosen}) > 30
    assert chosen[0] == _names(_client(nodes, Place("elsewhere"), "csi-0"))
    # A node less moves only those that used it.
    without = View(2, tuple(node for node in nodes.nodes if node.id != chosen[0][0]))
    again = [_names(_client(without, Place("elsewhere"), f"csi-{number}"))[0] for number in range(100)]
    moved = [names[0] for names, name in zip(chosen, again, strict=True) if names[0] != name]
    assert set(moved) == {chosen[0][0]}


def test_a_pool_without_nodes_stops_no_pod() -> None:
    assert _client(_view(), Place("elsewhere")).addresses == (SOCKET,)


def test_claims_and_identity_say_the_same() -> None:
    key = bytes(32)
    claims = access.verify(key, access.sign(key, contents.claims(_request(), "ssd", 1000.5)), 1599, "ssd")
    told = access.parse_volume(contents.access(_request()))
    assert claims.datasets == told.datasets == {"images": "team-a.images"}
    assert claims.who == told.who == "team-a/job-0" and claims.namespace == told.namespace == "team-a"
    assert claims.role == "reader" and claims.expires_s == 1600
    pod = _request().pod
    nothing = access.verify(key, access.sign(key, contents.claims_to_nothing(pod, "ssd", 1000)), 1599, "ssd")
    assert nothing.datasets == access.parse_volume(contents.access_to_nothing(pod)).datasets == {}
