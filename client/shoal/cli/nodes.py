"""shoal nodes: the nodes of the cluster, as the view names them, as each sees itself, and as this process finds them.

The epoch that each node has is shown beside the latest, so that a node with a stale view is seen. Without a cluster
there is one row: the node that is connected to.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.cli import connection, output
from shoal.members import DISTANCES
from shoal_core import units
from shoal_core.verbs import stat

if TYPE_CHECKING:
    from shoal.members import Members
    from shoal_core.view import Node

ANSWER_S = 5.0


class Row(NamedTuple):
    """What is known of one node. What only the node itself can say is None where it does not answer."""

    id: str
    status: str
    """In the view: ready, draining, gone."""
    draining: bool | None
    """The node's own word: it was told to hand over, whatever the view says."""
    zone: str
    rack: str
    addresses: tuple[str, ...]
    capacity_bytes: int
    """Its weight in placement; without a cluster, its largest tier."""
    dram_bytes: int | None
    disk_bytes: int | None
    blocks: int | None
    epoch: int | None
    distance: str
    silent: str | None
    """Why it could not be asked; None: it answered."""
    left_alone_s: float
    """How long reads of this process pass it over, after failures."""
    left_alone_by: list[str]
    """Ids of nodes that pass it over, after failures."""
    dead_for: list[str]
    """Ids of nodes that count it as dead."""
    view_error: str | None
    """Why it does not follow the view."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document per node")
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    with connection.open_client(arguments, start=False) as client:
        members = client.members()
        rows = found(members)
        epoch = max(members.epochs.values(), default=0)
    if arguments.json:
        for row in rows:
            output.json_line(row._asdict())
        return 0
    _print(rows, epoch)
    for row in rows:
        if row.silent is not None:
            output.note(f"shoal: {row.id} does not answer: {row.silent}")
        elif row.epoch is not None and row.epoch < epoch:
            why = f": {row.view_error}" if row.view_error else ""
            output.note(f"shoal: {row.id} has the view of epoch {row.epoch}; the latest is {epoch}{why}")
        if row.draining and row.status == "ready" and not members.alone:
            output.note(f"shoal: {row.id} was told to drain, but the view names it as ready")
    return 0


def found(members: Members) -> list[Row]:
    """A row for every node of the view."""
    deadline = time.monotonic() + ANSWER_S
    replies = members.ask_all(stat.KIND, stat.Request(), deadline)
    values: dict[str, dict[str, Any]] = {node_id: reply.values for node_id, reply in replies.items()}
    return [_row(members, node, values) for node in members.nodes]


def _row(members: Members, node: Node, values: dict[str, dict[str, Any]]) -> Row:
    own = values.get(node.id)
    tiers: dict[str, dict[str, int]] = own["tiers"] if own is not None else {}
    cluster = (own.get("cluster") or {}) if own is not None else {}
    capacity = max((tier["budget_bytes"] for tier in tiers.values()), default=0)
    with members.router_lock:
        peer = members.router.peers.get(node.id)
        now_ns = time.monotonic_ns()
        left_alone_ns = peer.retry_at_ns - now_ns if peer is not None and peer.is_open(now_ns) else 0
    return Row(
        id=node.id,
        status=node.status,
        draining=own["draining"] if own is not None else None,
        zone=node.zone,
        rack=node.rack,
        addresses=node.addresses,
        capacity_bytes=capacity if members.alone else node.capacity_bytes,
        dram_bytes=tiers["dram"]["used_bytes"] if "dram" in tiers else None,
        disk_bytes=tiers["disk"]["used_bytes"] if "disk" in tiers else None,
        blocks=max((tier["blocks"] for tier in tiers.values()), default=0) if own is not None else None,
        epoch=members.epochs.get(node.id),
        distance=DISTANCES[members.distance(node)],
        silent=members.silent.get(node.id),
        left_alone_s=left_alone_ns / 1e9,
        left_alone_by=_said(values, node.id, "circuit_open"),
        dead_for=_said(values, node.id, "dead"),
        view_error=cluster.get("view_error"),
    )


def _said(values: dict[str, dict[str, Any]], node_id: str, what: str) -> list[str]:
    """Ids of the nodes that say so of this one."""
    return [
        other
        for other, said in values.items()
        if ((said.get("cluster") or {}).get("nodes", {}).get(node_id) or {}).get(what)
    ]


def _print(rows: list[Row], epoch: int) -> None:
    output.columns(
        ("NODE", "STATUS", "ZONE", "RACK", "CAPACITY", "DRAM", "DISK", "BLOCKS", "EPOCH", "DISTANCE", "FOUND"),
        [
            (
                output.printable(row.id),
                row.status + (", drains" if row.draining and row.status != "draining" else ""),
                output.printable(row.zone) or "-",
                output.printable(row.rack) or "-",
                units.size(row.capacity_bytes),
                "-" if row.dram_bytes is None else units.size(row.dram_bytes),
                "-" if row.disk_bytes is None else units.size(row.disk_bytes),
                "-" if row.blocks is None else units.number(row.blocks),
                "-" if row.epoch is None else str(row.epoch) + (" (stale)" if row.epoch < epoch else ""),
                row.distance,
                _state(row),
            )
            for row in rows
        ],
        left=frozenset({"NODE", "STATUS", "ZONE", "RACK", "DISTANCE"}),
    )


def _state(row: Row) -> str:
    if row.status == "gone":
        return "not asked"
    if row.silent is not None:
        state = "no answer"
    elif row.left_alone_s > 0:
        state = f"answers, left alone for {units.duration(row.left_alone_s)}"
    else:
        state = "answers"
    for what, ids in (("left alone by", row.left_alone_by), ("dead for", row.dead_for)):
        state += f", {what} {', '.join(map(output.printable, ids))}" if ids else ""
    return state
