"""The view: which nodes there are, as of one epoch.

Every placement and routing decision is made against one view, and says which by its epoch. Views are replaced as a
whole, never changed; a later epoch wins, whoever brings it. Nodes are kept in the order of their ids, so that a node's
position in the view is the same for everybody who holds that epoch.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from shoal_core import structure
from shoal_core.errors import ConfigError

REPLICA_COUNT_MAX = 8

NodeStatus = Literal["ready", "draining", "gone"]
"""ready: owns and serves; draining: serves what it has, owns nothing any more; gone: not to be asked."""


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One cache node."""

    id: str
    """Unique in the pool; placement depends on it and on nothing else that identifies the node."""
    addresses: tuple[str, ...]
    """unix:/path or tcp:host:port, fastest first."""
    capacity_bytes: int
    """Its weight in placement; 0 owns nothing."""
    zone: str = ""
    """Empty: unknown, which is no other node's zone."""
    rack: str = ""
    """Within the zone; empty: unknown."""
    status: NodeStatus = "ready"


class View(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All nodes of one epoch, ascending by id."""

    epoch: int
    """Rises with each change; 0 is no view at all."""
    nodes: tuple[Node, ...]
    replica_count: int = 1
    """Owners of each block, where its data set names no other number."""

    def position(self, node_id: str) -> int | None:
        """Where a node stands in `nodes`."""
        for position, node in enumerate(self.nodes):
            if node.id == node_id:
                return position
        return None


def make(epoch: int, nodes: tuple[Node, ...] | list[Node], replica_count: int = 1) -> View:
    """A checked view; ConfigError names what is wrong with it."""
    if epoch < 0:
        raise ConfigError(f"epoch: {epoch} is negative")
    if not 1 <= replica_count <= REPLICA_COUNT_MAX:
        raise ConfigError(f"replica_count: {replica_count} is not between 1 and {REPLICA_COUNT_MAX}")
    ordered = sorted(nodes, key=lambda node: node.id)
    for before, node in zip([None, *ordered], ordered, strict=False):
        if not node.id:
            raise ConfigError("nodes: a node has no id")
        if before is not None and before.id == node.id:
            raise ConfigError(f"nodes: {node.id} is there twice")
        if node.capacity_bytes < 0:
            raise ConfigError(f"nodes.{node.id}.capacity_bytes: {node.capacity_bytes} is negative")
    return View(epoch, tuple(ordered), replica_count)


def parse(data: Mapping[str, object]) -> View:
    """A view as JSON holds it; ConfigError names the field. Sizes may be text like "2TiB"."""
    given = structure.build(View, data)
    if given.epoch == 0:
        raise ConfigError("epoch: 0 is no view at all; the first is 1")
    for node in given.nodes:
        for address in node.addresses:
            if not address.startswith(("tcp:", "unix:")):
                raise ConfigError(f"nodes.{node.id}.addresses: {address!r} begins with neither tcp: nor unix:")
    return make(given.epoch, given.nodes, given.replica_count)


def newer(known: View | None, offered: View) -> View:
    """The one of two views that counts."""
    return offered if known is None or offered.epoch > known.epoch else known
