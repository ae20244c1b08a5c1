"""shoal drain: have a node hand its blocks over to the others, so that it can be stopped and nothing is read anew.

Two things make a drain. In the view the node becomes `draining`, with the next epoch, so that nobody counts it as an
owner any more; that needs the view's file, which this process must be able to write. And the node is told, and offers
all it holds to those who own it now. Without the first, readers go on asking it until it has handed over; this is said.
`--cancel` takes both back.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from shoal.cli import connection, output, progress
from shoal_core import units, view
from shoal_core.errors import BadRequest, ConfigError, NodeGone, ShoalError
from shoal_core.verbs import drain, stat
from shoal_transport.view_source import ViewSource

if TYPE_CHECKING:
    from shoal.members import Members

ANSWER_S = 10.0
POLL_S = 0.2
STALL_S = 120.0
"""Without another block handed over in all this time, the command ends; the node goes on."""
_WRITES_MAX = 5
"""Others may write the view as well: then it is read again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", metavar="NODE", help="its id in the view")
    parser.add_argument("--cancel", action="store_true", help="it is to stay after all")
    parser.add_argument(
        "--view", metavar="FILE", help="the view's file; otherwise what the node follows, if it is here"
    )
    parser.add_argument(
        "--wait", action=argparse.BooleanOptionalAction, default=True, help="until everything is handed over (default)"
    )
    parser.add_argument("--json", action="store_true", help="the result as one JSON document")
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    with connection.open_client(arguments, start=False) as client:
        members = client.members()
        node = members.node(arguments.node)
        if node is None:
            known = ", ".join(each.id for each in members.nodes)
            raise BadRequest(f"{arguments.node}: no node of that name; the view names {known or 'none'}")
        draining = Draining(members, node)
        location = arguments.view or draining.view_file()
        epoch = None
        if location is not None:
            epoch = set_status(location, node.id, "ready" if arguments.cancel else "draining")
        values = draining.tell(drain.CANCEL if arguments.cancel else drain.START)
        stalled = False
        if arguments.wait and not arguments.cancel:
            values, stalled = draining.wait(values, shown=not arguments.json)
    handed = values.get("handover", {})
    result = {
        "node": arguments.node,
        "epoch": epoch,
        "view": location,
        "draining": values["draining"],
        "done": is_done(values),
        "handed_over_blocks": handed.get("handed_over_blocks", 0),
        "handed_over_bytes": handed.get("handed_over_bytes", 0),
        "left_blocks": handed.get("left_blocks", 0),
        "refused": handed.get("refused", 0),
        "ownerless_blocks": handed.get("ownerless_blocks", 0),
        "stalled": stalled,
    }
    if arguments.json:
        output.json_line(result)
    else:
        _report(result, cancel=arguments.cancel, wait=arguments.wait, alone=members.alone)
    failed = arguments.wait and not arguments.cancel and (not result["done"] or result["ownerless_blocks"])
    return 1 if failed else 0


class Draining:
    """One node, while it hands over."""

    def __init__(self, members: Members, node: view.Node) -> None:
        self._members = members
        self._node = node
        if node.id in members.silent:
            raise NodeGone(f"{node.id} does not answer, so it hands nothing over: {members.silent[node.id]}")

    def tell(self, action: str) -> dict[str, Any]:
        """What the node answers: how far it is."""
        deadline = time.monotonic() + ANSWER_S
        reply: drain.Reply = self._members.call(self._node, drain.KIND, drain.Request(action), deadline)
        return reply.values

    def view_file(self) -> str | None:
        """The file that the node follows, if it is here, can be written, and is the view that the nodes have."""
        deadline = time.monotonic() + ANSWER_S
        reply: stat.Reply = self._members.call(self._node, stat.KIND, stat.Request(), deadline)
        location = (reply.values.get("cluster") or {}).get("view")
        if not isinstance(location, str):
            return None
        path = location if location.startswith("/") else urlsplit(location).path
        if location.startswith("http") or not os.access(path, os.R_OK) or not os.access(os.path.dirname(path), os.W_OK):
            return None
        try:
            present = ViewSource(location).read(ANSWER_S)
        except ShoalError:
            return None
        if present is None or present.epoch < self._members.epochs.get(self._node.id, 0):
            return None
        return location if present.position(self._node.id) is not None else None

    def wait(self, values: dict[str, Any], *, shown: bool) -> tuple[dict[str, Any], bool]:
        """Until everything is handed over, or nothing moves any more; what the node said last, and whether it stalled.

        NodeGone when it ends meanwhile."""
        moved, since = -1, time.monotonic()
        with progress.bar("drain", 0, shown=shown) as bar:
            while not is_done(values):
                handed = values.get("handover", {})
                bar.show(handed.get("handed_over_bytes", 0), handed.get("bytes", 0))
                if handed.get("handed_over_blocks", 0) != moved:
                    moved, since = handed.get("handed_over_blocks", 0), time.monotonic()
                elif time.monotonic() - since > STALL_S:
                    return values, True
                time.sleep(POLL_S)
                try:
                    values = self.tell(drain.PROGRESS)
                except ShoalError as error:
                    count = units.number(handed.get("handed_over_blocks", 0))
                    raise NodeGone(
                        f"{self._node.id} is gone, with {count} blocks handed over and {handed.get('left_blocks', 0)}"
                        f" left: {error}"
                    ) from error
        return values, False


def is_done(values: dict[str, Any]) -> bool:
    """Whether the node has handed everything over, and takes no more readers."""
    handed = values.get("handover")
    return bool(values["refusing"]) and (handed is None or not handed["draining"] or bool(handed["done"]))


def set_status(location: str, node_id: str, status: view.NodeStatus) -> int:
    """Write the view of the next epoch, unless it says so already; the epoch that does."""
    if not location.startswith(("/", "file:", "http:", "https:")):
        location = os.path.abspath(location)
    for left in reversed(range(_WRITES_MAX)):
        source = ViewSource(location)
        present = source.read(ANSWER_S)
        place = present.position(node_id) if present is not None else None
        if present is None or place is None:
            raise ConfigError(f"{location}: names no node {node_id}")
        if present.nodes[place].status == status:
            return present.epoch
        nodes = list(present.nodes)
        nodes[place] = msgspec.structs.replace(nodes[place], status=status)
        new = view.make(present.epoch + 1, nodes, present.replica_count)
        try:
            source.write(new)
            return new.epoch
        except ConfigError:
            if not left or location.startswith("http"):
                raise
    raise AssertionError("the loop ends by return or raise")


def _report(result: dict[str, Any], *, cancel: bool, wait: bool, alone: bool) -> None:
    name = output.printable(result["node"])
    if result["epoch"] is not None:
        status = "ready" if cancel else "draining"
        print(f"{name} is {status} in the view of epoch {result['epoch']} ({output.printable(result['view'])})")
    elif not alone:
        output.note(
            f"shoal: only {name} itself was told: its view is not a file that can be written from here, so it still"
            f" names the node as it was; use --view FILE, or change the view where it is kept"
        )
    if cancel:
        print(f"{name} stays")
        return
    moved = f"{units.number(result['handed_over_blocks'])} blocks, {units.size(result['handed_over_bytes'])}"
    if result["done"]:
        print(f"{name}: {moved} handed over; it takes no more readers and can be stopped")
    elif not wait:
        print(f"{name} was told to drain; so far {moved} handed over. 'shoal drain {name}' shows how far it is")
    if result["ownerless_blocks"]:
        output.note(f"shoal: {units.number(result['ownerless_blocks'])} blocks have no other node to go to")
    if wait and not result["done"]:
        output.note(
            f"shoal: {moved} handed over and nothing more for {STALL_S:.0f} s; {units.number(result['left_blocks'])}"
            f" blocks are left, {units.number(result['refused'])} refused"
        )
