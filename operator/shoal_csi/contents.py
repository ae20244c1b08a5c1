"""What a volume holds: how its readers find nodes, and what the node beside them lets them read. Pure.

`client.json` and `token` are for the pod, `access.json` is for the cache node of the same machine. Addresses come from
the pool's view: the volume's own socket where this machine has a node, then nodes over TCP, nearest first and at most
eight. Nodes of one distance come in an order that depends on the volume, so that pods spread over them, and stay with
theirs as long as it is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from shoal_core.access import Claims, VolumeAccess
from shoal_core.view import Node, View
from shoal_csi.request import DatasetName, Pod, Request

MOUNTED_AT = "/run/shoal"
"""Where pods mount the volume; clients look for client.json there."""
TCP_ADDRESSES_MAX = 8
TOKEN_S = 600
"""How long a token is good for. kubelet has a new one made about once a minute, so that a client always has one, and
eight minutes without an API server are not noticed."""


class Place(msgspec.Struct, frozen=True):
    """Where this driver runs. Zone and rack: as it was told, for a machine without a cache node."""

    node_id: str
    zone: str = ""
    rack: str = ""

    def within(self, view: View) -> Place:
        """The place as the pool's view knows it, where it does."""
        position = view.position(self.node_id)
        if position is None:
            return self
        node = view.nodes[position]
        return Place(self.node_id, node.zone or self.zone, node.rack or self.rack)


def client(request: Request, urls: Mapping[DatasetName, str], view: View, place: Place) -> bytes:
    """client.json, as shoal_core.config.ClientConfig has it."""
    own = place.within(view)
    nodes = sorted(
        (node for node in view.nodes if node.status != "gone"), key=lambda node: _nearness(node, own, request.volume_id)
    )
    tcp = [address for node in nodes for address in node.addresses if address.startswith("tcp:")]
    addresses = tcp[:TCP_ADDRESSES_MAX]
    if view.position(place.node_id) is not None or not addresses:
        # Also where nothing can be reached: a pod starts all the same, and its reads go to the origin.
        addresses.insert(0, f"unix:{MOUNTED_AT}/node.sock")
    config = {
        "addresses": addresses,
        "datasets": {name: urls[dataset] for name, dataset in request.names().items()},
        "zone": own.zone,
        "rack": own.rack,
        "token_file": f"{MOUNTED_AT}/token",
    }
    return msgspec.json.format(msgspec.json.encode(config)) + b"\n"


def claims(request: Request, pool: str, now_s: float) -> Claims:
    """What the volume's token says."""
    return _claims(request.pod, pool, _on_nodes(request), now_s)


def claims_to_nothing(pod: Pod, pool: str, now_s: float) -> Claims:
    """What the token of a volume says that has lost its data sets: who it is, and that nothing is left."""
    return _claims(pod, pool, {}, now_s)


def _claims(pod: Pod, pool: str, datasets: dict[str, str], now_s: float) -> Claims:
    return Claims(pool, "reader", pod.who, pod.namespace, datasets, int(now_s) + TOKEN_S)


def access(request: Request) -> bytes:
    """access.json: the identity of the volume's socket."""
    return _access(request.pod, _on_nodes(request))


def access_to_nothing(pod: Pod) -> bytes:
    """access.json of a volume that has lost its data sets."""
    return _access(pod, {})


def _access(pod: Pod, datasets: dict[str, str]) -> bytes:
    return msgspec.json.encode(VolumeAccess(pod.who, pod.namespace, datasets, pod.uid))


def _on_nodes(request: Request) -> dict[str, str]:
    return {name: dataset.on_nodes for name, dataset in request.names().items()}


def _nearness(node: Node, own: Place, volume_id: str) -> tuple[bool, int, bytes]:
    if node.id == own.node_id:
        distance = 0
    elif own.zone and node.zone == own.zone:
        distance = 1 if own.rack and node.rack == own.rack else 2
    else:
        distance = 3
    spread = hashlib.sha256(f"{volume_id}\0{node.id}".encode()).digest()
    # What a draining node has it still serves, but it is about to go.
    return node.status == "draining", distance, spread
