"""The view: which nodes there are, as of one epoch.

Every placement and routing decision is made against one view, and says which by its epoch. Views are replaced as a
whole, never changed; a later epoch wins, whoever brings it. Nodes are kept in the order of their ids, so that a node's
position in the view is the same for everybody who holds that epoch.
"""

from typing import Literal

import msgspec

from shoal_core.errors import ConfigError

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
    nodes: tuple[Node, ...]

    def position(self, node_id: str) -> int | None:
        """Where a node stands in `nodes`."""
        for position, node in enumerate(self.nodes):
            if node.id == node_id:
                return position
        return None


def make(epoch: int, nodes: tuple[Node, ...] | list[Node]) -> View:
    """A checked view; ConfigError names what is wrong with it."""
    if epoch < 0:
        raise ConfigError(f"epoch: {epoch} is negative")
    ordered = sorted(nodes, key=lambda node: node.id)
    for before, node in zip([None, *ordered], ordered, strict=False):
        if not node.id:
            raise ConfigError("nodes: a node has no id")
        if before is not None and before.id == node.id:
            raise ConfigError(f"nodes: {node.id} is there twice")
        if node.capacity_bytes < 0:
            raise ConfigError(f"nodes.{node.id}.capacity_bytes: {node.capacity_bytes} is negative")
    return View(epoch, tuple(ordered))


def newer(known: View | None, offered: View) -> View:
    """The one of two views that counts."""
    return offered if known is None or offered.epoch > known.epoch else known
